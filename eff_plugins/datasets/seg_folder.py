"""mmseg's folder reader for users' own pictures and masks: what is wrong is said early and by name."""

from __future__ import annotations

from pathlib import Path

from eff_plugins.compat import require

require('mmseg', 'SegFolderDataset')

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402

from eff_plugins.registry import DATASETS  # noqa: E402

from .loading import SkipBadPictures, check_data_root  # noqa: E402

_LOOKED_AT = 8  # masks whose values are checked at the start


@DATASETS.register_module()
class SegFolderDataset(SkipBadPictures, BaseSegDataset):
    """A folder of pictures and a folder of masks of the same names; mmseg's ``BaseSegDataset``, hardened.

    Arguments as there; ``metainfo=dict(classes=(...))`` is required. A mask holds class numbers and ``ignore_index``.

    Raises:
        FileNotFoundError: A folder is missing or empty, or a picture has no mask.
        ValueError: No classes are given, or a mask holds a value that is no class.
    """

    def load_data_list(self) -> list[dict]:
        """One row a picture with its mask."""
        check_data_root(self.data_root, 'SegFolderDataset')
        if not self.metainfo.get('classes'):
            raise ValueError("SegFolderDataset needs the names of the classes: metainfo=dict(classes=('...', ...))")
        for key in ('img_path', 'seg_map_path'):
            folder = self.data_prefix.get(key)
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(
                    f"{folder}: no such folder; correct data_prefix=dict({key}='...') in the config"
                )
        rows = super().load_data_list()
        if not rows:
            raise FileNotFoundError(
                f'{self.data_prefix["img_path"]}: no pictures that end in {self.img_suffix!r}; set img_suffix in the config'
            )
        absent = [row for row in rows if 'seg_map_path' in row and not Path(row['seg_map_path']).is_file()]
        if absent:
            raise FileNotFoundError(
                f'{absent[0]["seg_map_path"]}: no such mask for {absent[0]["img_path"]} ({len(absent)} of {len(rows)} '
                "masks are missing); a mask has its picture's name and ends in seg_map_suffix"
            )
        self._check_masks(rows)
        return rows

    def _check_masks(self, rows: list[dict]) -> None:
        classes = len(self.metainfo['classes'])
        for row in rows[:: max(1, len(rows) // _LOOKED_AT)]:
            mask = cv2.imread(row['seg_map_path'], cv2.IMREAD_UNCHANGED) if 'seg_map_path' in row else None
            if mask is None:
                continue  # a bad file is met, and reported, when it is loaded
            if mask.ndim == 3 and Path(row['seg_map_path']).suffix.lower() in ('.jpg', '.jpeg'):
                raise ValueError(f'{row["seg_map_path"]}: a mask in a lossy colour format; store class numbers as PNG')
            # a palette PNG decodes to colours here and to class numbers in mmseg: only grey masks are checked
            if mask.ndim != 2 or self.reduce_zero_label or self.label_map:
                continue
            foreign = np.setdiff1d(mask, [*range(classes), self.ignore_index])
            if len(foreign):
                raise ValueError(
                    f'{row["seg_map_path"]}: holds the values {foreign[:5].tolist()}, but there are {classes} classes '
                    f'(0 to {classes - 1}) and ignore_index={self.ignore_index}; correct the masks or metainfo'
                )
