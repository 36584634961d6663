"""Classification data: arrays in an npz file, folders of pictures, and the embedded digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from eff_plugins.registry import DATASETS

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@DATASETS.register_module()
class ArrayImageDataset(BaseDataset):
    """An npz file with ``images`` (N, H, W, 3) uint8 RGB and ``labels`` (N,).

    Args:
        ann_file: Path of the npz file, relative to ``data_root`` where that is given.
        classes: Names of the classes; by default their numbers.

    Raises:
        FileNotFoundError: The file is missing; the message names it and how to get it.
        ValueError: The arrays are missing or have other shapes.
    """

    def __init__(self, ann_file: str, classes: Sequence[str] | None = None, **kwargs: Any) -> None:
        if classes is not None:
            kwargs['metainfo'] = {'classes': tuple(classes)}
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> list[dict]:
        path = Path(self.ann_file)
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: no such file. Set data_root in the config, or the environment variable EFF_PLUGINS_DATA to the '
                "folder of the suite's sample data"
            )
        with np.load(path, allow_pickle=False) as arrays:
            if not {'images', 'labels'} <= set(arrays):
                raise ValueError(
                    f"{path} holds {sorted(arrays)}; it needs 'images' (N, H, W, 3) uint8 and 'labels' (N,)"
                )
            self._images, labels = arrays['images'], arrays['labels']
        if self._images.ndim != 4 or self._images.shape[3] != 3 or len(self._images) != len(labels):
            raise ValueError(
                f'{path}: images {self._images.shape} and labels {labels.shape} do not fit (N, H, W, 3), (N,)'
            )
        if 'classes' not in self._metainfo:
            self._metainfo['classes'] = tuple(str(i) for i in range(int(labels.max()) + 1))
        return [{'index': i, 'gt_label': int(label)} for i, label in enumerate(labels)]

    def get_data_info(self, idx: int) -> dict:
        info = super().get_data_info(idx)
        info['img'] = self._images[info['index']]
        return info


@DATASETS.register_module()
class DigitClsDataset(ArrayImageDataset):
    """Embedded handwritten digits over photographs, generated at the first use.

    Args:
        split: ``'train'`` or ``'val'``; no source digit and no background is in both.
        generator: Arguments of the generator, such as ``seed`` and ``count``.
    """

    def __init__(self, split: str, generator: dict | None = None, **kwargs: Any) -> None:
        from eff_plugins.datasets.digits import ensure_digits

        folder = ensure_digits('classification', split, **(generator or {}))
        super().__init__(ann_file=str(folder / 'images.npz'), classes=[str(d) for d in range(10)], **kwargs)


@DATASETS.register_module()
class FolderImageDataset(BaseDataset):
    """One sub-folder a class, picture files inside.

    Args:
        data_root: Folder that holds the class folders.
        pipeline: Transforms; the first is ``LoadImage``.
        classes: Folders to use, in the order of their labels; by default all, sorted by name.

    Raises:
        FileNotFoundError: The folder is missing or has no class folder with a picture in it.
    """

    def __init__(
        self, data_root: str, pipeline: list[dict | Callable], classes: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if classes is not None:
            kwargs['metainfo'] = {'classes': tuple(classes)}
        super().__init__(data_root=data_root, pipeline=pipeline, **kwargs)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root)
        if not root.is_dir():
            raise FileNotFoundError(f'{root}: no such folder; data_root must hold one sub-folder a class')
        classes = self._metainfo.get('classes') or tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
        self._metainfo['classes'] = classes
        rows = []
        for label, name in enumerate(classes):
            pictures = sorted(p for p in (root / name).glob('*') if p.suffix.lower() in PICTURES)
            if not pictures:
                raise FileNotFoundError(f'{root / name}: no picture files ({", ".join(PICTURES)}) for class {name!r}')
            rows += [{'img_path': str(p), 'gt_label': label} for p in pictures]
        if not rows:
            raise FileNotFoundError(f'{root}: no sub-folders; data_root must hold one sub-folder a class')
        return rows
