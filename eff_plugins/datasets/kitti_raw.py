"""The raw KITTI object layout as an mmdet3d data set, with no info files to prepare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log
from PIL import Image

from eff_plugins.compat import require
from eff_plugins.datasets.kitti_format import KittiObject, project_to_image, read_calibration, read_label
from eff_plugins.registry import DATASETS, TRANSFORMS

require('mmdet3d', 'RawKittiDataset')
from mmcv.transforms import BaseTransform  # noqa: E402
from mmdet3d.datasets import KittiDataset  # noqa: E402

# Frames whose picture is absent are cut to the size that most KITTI pictures have.
_IMAGE_SIZE = (375, 1242)
_POINT_BYTES = 16  # x, y, z, reflectance as float32


@DATASETS.register_module()
class RawKittiDataset(KittiDataset):
    """KITTI frames read straight from their folders; everything downstream is mmdet3d's.

    Layout below ``data_root``, for ``split='training'``::

        training/velodyne/000000.bin  training/calib/000000.txt  training/label_2/000000.txt  [training/image_2/000000.png]

    Boxes are given to the pipeline in the velodyne frame, as mmdet3d's ``KittiDataset`` gives them. ``truncated``,
    ``occluded``, ``difficulty`` and ``alpha`` stay in the annotations; ``DontCare`` regions have no 3D box: they never reach
    training and are handed to :class:`eff_plugins.evaluation.kitti.KittiAP`, with all other raw objects, through
    ``eval_ann_info['kitti_objects']``. An object whose 3D box is empty is skipped, counted and logged.

    Args:
        data_root: Folder that holds ``training`` (and ``testing``).
        split: Name of the folder below it.
        frames: Which frames: a list of ids (``['000000', ...]``), a text file with one id a line (relative to
            ``data_root`` or absolute), or None for all.
        fraction: Part ``(start, end)`` of the chosen frames in order, each in [0, 1]; ``(0, 0.8)`` and ``(0.8, 1)`` split
            them in two.
        kwargs: Arguments of ``mmdet3d.datasets.KittiDataset`` (``pipeline``, ``metainfo``, ``test_mode``,
            ``load_eval_anns`` …) but ``ann_file`` and ``data_prefix``.

    Raises:
        FileNotFoundError: The root, a folder, or a frame's velodyne, calibration or label file is missing.
        ValueError: A file is malformed (with file and line), or no frame is left.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'training',
        frames: Sequence[str] | str | None = None,
        fraction: tuple[float, float] = (0.0, 1.0),
        **kwargs: Any,
    ) -> None:
        start, end = fraction
        if not 0 <= start < end <= 1:
            raise ValueError(f'fraction={fraction} must be (start, end) with 0 <= start < end <= 1')
        self.split = split
        self.frames = frames
        self.fraction = fraction
        prefix = {'pts': f'{split}/velodyne', 'img': f'{split}/image_2'}
        super().__init__(data_root=data_root, ann_file='', data_prefix=prefix, **kwargs)

    @property
    def _labelled(self) -> bool:
        return not self.test_mode or self.load_eval_anns

    def _folder(self, name: str) -> Path:
        return Path(self.data_root) / self.split / name

    def _frame_ids(self) -> list[str]:
        """The chosen frames' ids in order."""
        root = Path(self.data_root)
        for folder in (root, self._folder('velodyne')):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f'no folder {folder}; data_root must hold {self.split}/velodyne, {self.split}/calib and '
                    f'{self.split}/label_2 of the KITTI object data (is EFF_PLUGINS_DATA set?)'
                )
        if self.frames is None:
            ids = sorted(path.stem for path in self._folder('velodyne').glob('*.bin'))
        elif isinstance(self.frames, str):
            listing = root / self.frames
            if not listing.is_file():
                raise FileNotFoundError(f'no list of frames {listing}; give a text file with one id a line, or a list')
            ids = listing.read_text().split()
        else:
            ids = [str(frame) for frame in self.frames]
        twice = [frame for frame, count in Counter(ids).items() if count > 1]
        if twice:
            raise ValueError(f'frames names {twice[0]} twice')
        chosen = ids[round(self.fraction[0] * len(ids)) : round(self.fraction[1] * len(ids))]
        if not chosen:
            raise ValueError(f'no frame left in {root / self.split}: {len(ids)} found, fraction={self.fraction}')
        return chosen

    def load_data_list(self) -> list[dict]:
        """Read calibration and labels of every frame (the points stay on disk)."""
        empty_boxes = 0
        data_list = []
        for frame in self._frame_ids():
            self._check_points(frame)
            objects = read_label(self._folder('label_2') / f'{frame}.txt') if self._labelled else []
            kept = [obj for obj in objects if obj.name == 'DontCare' or obj.has_volume]
            empty_boxes += len(objects) - len(kept)
            data_list.append(self.parse_data_info(self._raw_info(frame, kept)))
        if empty_boxes:
            print_log(
                f'{self.data_root}: skipped {empty_boxes} objects whose 3D box has no volume', 'current', level=30
            )
        if not self.test_mode and self.filter_empty_gt and not any(self.num_ins_per_cat):
            raise ValueError(
                f'{self.data_root}: none of the {len(data_list)} frames has an object of {self.metainfo["classes"]}; '
                'nothing to train on'
            )
        return data_list

    def _check_points(self, frame: str) -> None:
        """Fail now, not in the middle of an epoch, where a point file is missing or cut off."""
        points = self._folder('velodyne') / f'{frame}.bin'
        if not points.is_file():
            raise FileNotFoundError(f'no velodyne file {points} for frame {frame}')
        if points.stat().st_size == 0 or points.stat().st_size % _POINT_BYTES:
            raise ValueError(
                f'{points}: {points.stat().st_size} bytes is no whole number of points (x, y, z, reflectance as float32); '
                'the file is empty or cut off'
            )

    def _raw_info(self, frame: str, objects: list[KittiObject]) -> dict:
        """One frame as mmdet3d's info files describe it."""
        calibration = read_calibration(self._folder('calib') / f'{frame}.txt')
        height, width = _image_size(self._folder('image_2'), frame)
        classes = self.METAINFO['classes']
        instances = [_instance(obj, classes) for obj in objects if obj.name != 'DontCare']
        return {
            'frame': frame,
            'lidar_points': {'lidar_path': f'{frame}.bin', 'num_pts_feats': 4},
            'images': {
                'CAM2': {
                    'img_path': f'{frame}.png',
                    'height': height,
                    'width': width,
                    'cam2img': calibration.cam2img,
                    'lidar2cam': calibration.lidar2cam,
                    'lidar2img': calibration.lidar2img,
                }
            },
            'image_size': (height, width),
            'instances': instances,
            'kitti_objects': objects,
        }

    def parse_data_info(self, info: dict) -> dict:
        """As mmdet3d's, plus what the metric needs: raw objects, calibration and picture size of the frame."""
        objects = info.pop('kitti_objects')
        info = super().parse_data_info(info)
        camera = info['images']['CAM2']
        info.update({key: camera[key] for key in ('cam2img', 'lidar2cam', 'lidar2img')})
        if 'eval_ann_info' in info:
            info['eval_ann_info'].update(
                kitti_objects=objects,
                lidar2cam=camera['lidar2cam'],
                lidar2img=camera['lidar2img'],
                image_size=info['image_size'],
            )
        return info


def _image_size(folder: Path, frame: str) -> tuple[int, int]:
    """(height, width) from the picture's header."""
    for suffix in ('.png', '.jpg'):
        path = folder / f'{frame}{suffix}'
        if path.is_file():
            try:
                with Image.open(path) as image:
                    return image.height, image.width
            except OSError as error:
                raise ValueError(f'{path}: not a readable picture ({error}); delete or replace it') from error
    return _IMAGE_SIZE


def _instance(obj: KittiObject, classes: Sequence[str]) -> dict:
    """An entry of ``instances`` of mmdet3d's info format; a type outside the benchmark's gets label -1."""
    label = classes.index(obj.name) if obj.name in classes else -1
    return {
        'bbox': list(obj.bbox),
        'bbox_label': label,
        'bbox_3d': [*obj.location, *obj.dimensions, obj.rotation_y],
        'bbox_label_3d': label,
        'truncated': obj.truncated,
        'occluded': obj.occluded,
        'alpha': obj.alpha,
        'difficulty': obj.difficulty,
        'score': 0.0,
    }


@TRANSFORMS.register_module()
class PointsInCameraView(BaseTransform):
    """Keep the points that project into the picture of camera 2, where alone KITTI has labels.

    What mmdet3d writes to disk as ``velodyne_reduced``, done while loading. Put it right after ``LoadPointsFromFile``,
    before any transform that moves the points.

    Required keys: ``points`` (mmdet3d ``BasePoints``); ``lidar2img`` (4, 4) and ``image_size`` (height, width), without which
    (a user's bare velodyne file) all points stay. Modified keys: ``points``.
    """

    def transform(self, results: dict) -> dict:
        """Cut the points; a frame with none in view is an error, since its calibration must be wrong."""
        if 'lidar2img' not in results:
            return results
        points = results['points']
        pixels, depth = project_to_image(points.tensor[:, :3].numpy(), np.asarray(results['lidar2img']))
        height, width = results['image_size']
        inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
        if not inside.any():
            raise ValueError(
                f'{results.get("lidar_path", "points")}: none of {len(inside)} points projects into the picture of '
                f'{width}x{height}; check the calibration file of this frame'
            )
        results['points'] = points[np.flatnonzero(inside)]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
