"""Reading pictures of users' own data, some of which may be missing or damaged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from eff_plugins.compat import require

require('mmcv', 'LoadPicture')

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from mmcv.transforms import LoadImageFromFile  # noqa: E402
from mmengine.logging import print_log  # noqa: E402

from eff_plugins.registry import TRANSFORMS  # noqa: E402

_PATIENCE = 50  # distinct bad pictures at the start before a whole set is given up


class BadPictureError(ValueError):
    """A picture is missing or does not decode; the message names it."""


def picture_problem(path: str) -> str | None:
    """What is wrong with a local picture file, or None where it decodes (or is not a local file)."""
    if '://' in path:
        return None
    file = Path(path)
    if not file.is_file():
        return 'there is no such file'
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if not len(content):
        return 'the file is empty'
    if cv2.imdecode(content, cv2.IMREAD_UNCHANGED) is None:
        return 'the file does not decode as a picture'
    return None


@TRANSFORMS.register_module()
class LoadPicture(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` whose error names the file and what is wrong with it.

    Raises:
        BadPictureError: The picture is missing or does not decode.
    """

    def transform(self, results: dict) -> dict | None:
        """Read ``results['img_path']`` into ``results['img']``, (H, W, 3) uint8 BGR."""
        try:
            return super().transform(results)
        except Exception as error:
            problem = picture_problem(results['img_path'])
            if problem is None:
                raise
            raise BadPictureError(f'{results["img_path"]}: {problem}; replace it or take it out of the set') from error


class SkipBadPictures:
    """For data sets: in training a bad picture is skipped, counted and logged; in testing it is an error.

    Nothing is checked beforehand: a picture is looked at again only after its pipeline failed. Each process that loads
    data counts for itself.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._bad_pictures: set[str] = set()
        self._any_good = False
        super().__init__(*args, **kwargs)

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline; None (draw another sample) for a bad picture in training.

        Raises:
            BadPictureError: In testing, the picture is bad; in training, all are.
        """
        try:
            data = super().prepare_data(idx)  # type: ignore[misc]
        except Exception as error:
            paths = [self.get_data_info(idx).get(key) for key in ('img_path', 'seg_map_path')]  # type: ignore[attr-defined]
            problems = {path: picture_problem(path) for path in paths if path}
            path, problem = next(((p, text) for p, text in problems.items() if text), (None, None))
            if path is None:
                raise
            if self.test_mode:  # type: ignore[attr-defined]
                raise BadPictureError(f'{path}: {problem}; replace it or take it out of the set') from error
            self._skip(path, str(problem))
            return None
        self._any_good = self._any_good or data is not None
        return data

    def _skip(self, path: str, problem: str) -> None:
        if path not in self._bad_pictures:
            self._bad_pictures.add(path)
            text = f'skipped bad picture number {len(self._bad_pictures)}: {path}: {problem}'
            print_log(text, logger='current', level=logging.WARNING)
        total = len(self)  # type: ignore[arg-type]
        if not self._any_good and len(self._bad_pictures) >= min(total, _PATIENCE):
            raise BadPictureError(
                f'all of the first {len(self._bad_pictures)} pictures (of {total}) are bad, the last one is {path}: '
                f'{problem}; check the image folder in data_prefix'
            )


def check_data_root(data_root: str | None, what: str) -> None:
    """Say that a data root is missing, and what to do.

    Raises:
        FileNotFoundError: It is a local path without a folder.
    """
    if data_root and '://' not in data_root and not Path(data_root).is_dir():
        raise FileNotFoundError(
            f"{data_root}: no such folder; data_root of {what} must hold the data. Set it in the config; for the suite's "
            'own sample data, set the environment variable EFF_PLUGINS_DATA to the folder that holds them'
        )
