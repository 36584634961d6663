"""mmdet's COCO reader for users' own data: what is wrong with the files is said early, once and by name."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

from eff_plugins.compat import require

require('mmdet', 'CocoDataset')

from mmdet.datasets import CocoDataset as MMDetCocoDataset  # noqa: E402
from mmdet.datasets.api_wrappers import COCO  # noqa: E402
from mmengine.logging import print_log  # noqa: E402

from eff_plugins.registry import DATASETS  # noqa: E402

from .loading import SkipBadPictures, check_data_root  # noqa: E402

_LOOKED_FOR = 200  # pictures whose presence is checked at the start


def clean_annotations(content: dict[str, Any]) -> Counter[str]:
    """Repair the annotations of a COCO file in place and count what was done.

    Boxes are clipped to their picture; boxes that are then smaller than a pixel, that are not four finite numbers, or whose
    picture or category the file lacks are dropped; a missing or zero ``area`` becomes that of the box.

    Raises:
        KeyError: ``images``, ``annotations`` or ``categories``, or a field of them, is missing.
    """
    sizes = {row['id']: (row['width'], row['height']) for row in content['images']}
    categories = {row['id'] for row in content['categories']}
    counts: Counter[str] = Counter()
    kept = []
    for row in content['annotations']:
        if row['image_id'] not in sizes:
            counts['boxes of pictures that the file does not list dropped'] += 1
            continue
        if row['category_id'] not in categories:
            counts['boxes of categories that the file does not list dropped'] += 1
            continue
        box = _clip(row['bbox'], *sizes[row['image_id']])
        if box is None:
            counts['boxes without a pixel inside their picture dropped'] += 1
            continue
        if max(abs(a - b) for a, b in zip(box, row['bbox'], strict=True)) > 1e-3:
            counts['boxes clipped to their picture'] += 1
            row['bbox'] = box
        if not row.get('area', 0) > 0:
            row['area'] = box[2] * box[3]
        kept.append(row)
    content['annotations'] = kept
    return counts


def _clip(box: Any, width: float, height: float) -> list[float] | None:
    try:
        x, y, w, h = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    if not all(math.isfinite(value) for value in (x, y, w, h)):
        return None
    left, top = max(x, 0.0), max(y, 0.0)
    w, h = min(x + w, width) - left, min(y + h, height) - top
    return [left, top, w, h] if w >= 1 and h >= 1 else None


class _CleanCOCO(COCO):
    """mmdet's COCO reader that repairs the annotations before it indexes them."""

    def createIndex(self) -> None:
        self.repairs = clean_annotations(self.dataset)
        super().createIndex()


@DATASETS.register_module()
class CocoDataset(SkipBadPictures, MMDetCocoDataset):
    """mmdet's ``CocoDataset`` with the same arguments, hardened.

    While loading: missing folders and files, classes that the file lacks or has in another order, and a training file
    without one usable box are errors that name path and remedy; boxes are repaired as :func:`clean_annotations` says, and
    counted. While training: bad pictures are skipped (see :class:`.loading.SkipBadPictures`).

    Raises:
        FileNotFoundError: ``data_root``, the annotation file, the image folder or all of its pictures are missing.
        ValueError: The annotation file is damaged, does not fit ``metainfo['classes']``, or leaves nothing to train on.
    """

    def load_data_list(self) -> list[dict]:
        """Read the annotation file; one row a picture."""
        self._check_paths()
        try:
            rows = super().load_data_list()
        except json.JSONDecodeError as error:
            raise ValueError(f'{self.ann_file}: not a json file ({error}); write it again') from error
        except (KeyError, AttributeError, TypeError) as error:
            reason = f'{error} is missing' if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f'{self.ann_file}: not a COCO detection file: {reason}. It needs images (id, file_name, width, height), '
                'annotations (id, image_id, category_id, bbox) and categories (id, name)'
            ) from error
        self._check_pictures(rows)
        boxes = sum(len(row['instances']) for row in rows)
        if not boxes:
            text = f'{self.ann_file}: none of its {len(rows)} pictures has a usable box of the classes {self._names()}'
            if not self.test_mode:
                raise ValueError(f'{text}; there is nothing to train on. Check bbox = [x, y, width, height] in pixels')
            print_log(f'{text}; AP will be undefined', logger='current', level=logging.WARNING)
        return rows

    def COCOAPI(self, path: str) -> COCO:  # type: ignore[override]
        """mmdet's hook for reading the file, used here to repair and check it before anything is parsed."""
        content = _CleanCOCO(path)
        for what, count in content.repairs.items():
            print_log(f'{self.ann_file}: {count} {what}', logger='current', level=logging.WARNING)
        self._check_classes([str(row['name']) for row in content.dataset['categories']])
        return content

    def filter_data(self) -> list[dict]:
        """Drop pictures as ``filter_cfg`` says and log how many.

        Raises:
            ValueError: No picture is left.
        """
        rows = super().filter_data()
        if self.test_mode:
            return rows
        empty = sum(not row['instances'] for row in rows)
        dropped = len(self.data_list) - len(rows)
        if dropped or empty:
            print_log(
                f'{self.ann_file}: {dropped} of {len(self.data_list)} pictures dropped by filter_cfg={self.filter_cfg}; '
                f'{empty} pictures without a box kept',
                logger='current',
            )
        if not rows:
            raise ValueError(
                f'{self.ann_file}: filter_cfg={self.filter_cfg} leaves none of {len(self.data_list)} pictures'
            )
        return rows

    def _names(self) -> str:
        return ', '.join(map(str, self.metainfo['classes']))

    def _check_paths(self) -> None:
        check_data_root(self.data_root, 'CocoDataset')
        if '://' not in self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f'{self.ann_file}: no such annotation file; correct data_root or ann_file in the config '
                "(for the suite's own sample data: the environment variable EFF_PLUGINS_DATA)"
            )
        folder = self.data_prefix.get('img', '')
        if folder and '://' not in folder and not Path(folder).is_dir():
            raise FileNotFoundError(
                f"{folder}: no such image folder; correct data_prefix=dict(img='...') in the config"
            )

    def _check_classes(self, names: list[str]) -> None:
        classes = list(self.metainfo['classes'])
        absent = [name for name in classes if name not in names]
        if absent:
            raise ValueError(
                f'{self.ann_file} has {len(names)} categories: {", ".join(names)}; metainfo names {len(classes)} classes: '
                f'{self._names()}. Not in the file: {", ".join(absent)}. Set metainfo=dict(classes=(...)) to names from '
                "the file and the head's num_classes to their number"
            )
        in_order = [name for name in names if name in classes]
        if in_order != classes:
            # mmdet and its metric number the labels in the file's order: names would be exchanged silently
            raise ValueError(
                f'{self.ann_file} lists the categories as {", ".join(in_order)}; metainfo has the classes as '
                f'{self._names()}. Use the same order (in all annotation files), each name once'
            )

    def _check_pictures(self, rows: list[dict]) -> None:
        step = max(1, len(rows) // _LOOKED_FOR)
        paths = [row['img_path'] for row in rows[::step] if '://' not in row['img_path']]
        if paths and not any(Path(path).is_file() for path in paths):
            raise FileNotFoundError(
                f'{paths[0]}: no such picture, nor any other of {len(paths)} that {self.ann_file} lists; correct '
                "data_prefix=dict(img='...') in the config"
            )
