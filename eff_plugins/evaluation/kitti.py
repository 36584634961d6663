"""The KITTI object metric on a CPU (mmdet3d's own needs numba.cuda)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from eff_plugins.compat import require
from eff_plugins.datasets.kitti_format import DIFFICULTIES, project_to_image
from eff_plugins.evaluation.kitti_ap import METRICS, MIN_OVERLAP, Boxes, kitti_ap
from eff_plugins.registry import METRICS as METRIC_REGISTRY

require('mmdet3d', 'KittiAP')
from mmdet3d.structures import Box3DMode  # noqa: E402

_NEAREST = 0.1  # metres in front of the camera; corners behind are moved there before they are projected


@METRIC_REGISTRY.register_module()
class KittiAP(BaseMetric):
    """Average precision in the image, the ground plane and space, per class and difficulty.

    Reads the labels from :class:`eff_plugins.datasets.kitti_raw.RawKittiDataset` through the data samples, so there is
    no annotation file to name. Metric names: ``kitti/Car_3d_moderate_AP40`` (40 recall positions), ``..._AP11`` and
    ``kitti/mAP40_3d_moderate``, the mean over the classes that occur; values in percent, as the benchmark gives them. A
    class and difficulty without a valid object has no value and is left out.

    Args:
        classes: Classes to evaluate; default: the data set's.
        metrics: Any of ``bbox``, ``bev``, ``3d``. For ``bbox`` the 3D boxes are projected into the picture.
        min_overlap: Overlap that a match must exceed, by class; default: the benchmark's 0.7 for Car, 0.5 for Pedestrian and
            Cyclist. Other classes need an entry.
        recall_sampling: ``benchmark`` or ``exact`` (for fewer than about 40 objects), see
            :func:`eff_plugins.evaluation.kitti_ap.kitti_ap`.
        collect_device: As in mmengine.
        prefix: As in mmengine.

    Raises:
        ValueError: Unknown metric or sampling, or a class without ``min_overlap``.
    """

    default_prefix = 'kitti'

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        metrics: Sequence[str] = ('bev', '3d'),
        min_overlap: Mapping[str, float] | None = None,
        recall_sampling: str = 'benchmark',
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        unknown = sorted({*metrics} - {*METRICS})
        if unknown or not metrics:
            raise ValueError(f'metrics={tuple(metrics)}: choose from {", ".join(METRICS)}')
        if recall_sampling not in ('benchmark', 'exact'):
            raise ValueError(f"recall_sampling={recall_sampling!r} must be 'benchmark' or 'exact'")
        self.classes = classes
        self.metrics = tuple(metrics)
        self.min_overlap = {**MIN_OVERLAP, **(min_overlap or {})}
        self.recall_sampling = recall_sampling

    def process(self, data_batch: dict | None, data_samples: Sequence[dict]) -> None:
        """Convert each frame's predictions to the camera frame and keep them beside its objects."""
        classes = self.dataset_meta['classes']
        for sample in data_samples:
            truth = sample.get('eval_ann_info')
            if not truth or 'kitti_objects' not in truth:
                raise ValueError(
                    "KittiAP found no labels in a data sample; use dataset type='eff_plugins.RawKittiDataset' with "
                    'test_mode=True and load_eval_anns=True, and Pack3DDetInputs at the end of its pipeline'
                )
            self.results.append((_objects(truth), _detections(sample['pred_instances_3d'], truth, classes)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """AP in percent, and a table in the log."""
        classes = self.classes or self.dataset_meta['classes']
        unknown = [name for name in classes if name not in self.min_overlap]
        if unknown:
            raise ValueError(
                f'the benchmark has no overlap for {unknown}; give min_overlap=dict({unknown[0]}=0.5) or classes='
            )
        objects, detections = zip(*results, strict=True)
        table = kitti_ap(objects, detections, classes, self.metrics, self.min_overlap, self.recall_sampling)
        found: dict[str, float] = {}
        for (name, metric, level), pair in table.items():
            if pair is not None:
                key = f'{name}_{metric}_{DIFFICULTIES[level]}'
                found[f'{key}_AP40'], found[f'{key}_AP11'] = 100 * pair[0], 100 * pair[1]
        for metric in self.metrics:
            for level, difficulty in enumerate(DIFFICULTIES):
                pairs = [table[name, metric, level] for name in classes]
                values = [pair[0] for pair in pairs if pair is not None]
                if values:
                    found[f'mAP40_{metric}_{difficulty}'] = 100 * float(np.mean(values))
        if not found:
            print_log(f'KittiAP: no valid object of {tuple(classes)} in {len(results)} frames', 'current', level=30)
        return found


def _objects(truth: Mapping) -> Boxes:
    objects = truth['kitti_objects']
    return Boxes.make(
        [obj.name for obj in objects],
        [obj.bbox for obj in objects],
        [[*obj.location, *obj.dimensions, obj.rotation_y] for obj in objects],
        [obj.truncated for obj in objects],
        [obj.occluded for obj in objects],
    )


def _detections(prediction: Mapping, truth: Mapping, classes: Sequence[str]) -> Boxes:
    """Predicted LiDAR boxes as :class:`Boxes`; one outside the picture is dropped, as it has no 2D box."""
    boxes = prediction['bboxes_3d'].to('cpu')
    scores = prediction['scores_3d'].cpu().numpy()
    labels = prediction['labels_3d'].cpu().numpy()
    camera = boxes.convert_to(Box3DMode.CAM, np.asarray(truth['lidar2cam'])).tensor[:, :7].numpy()
    image, visible = project_boxes(boxes.corners.numpy(), np.asarray(truth['lidar2img']), truth['image_size'])
    sizes = (camera[:, 3:6] > 0).all(1) if len(camera) else np.zeros(0, bool)
    keep = np.flatnonzero(visible & sizes & np.isfinite(camera).all(1))
    names = [classes[labels[i]] for i in keep]
    return Boxes.make(names, image[keep], camera[keep], score=scores[keep])


def project_boxes(
    corners: np.ndarray, lidar2img: np.ndarray, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """2D boxes around projected 3D boxes, cut to the picture.

    Args:
        corners: (N, 8, 3) in the velodyne frame, metres.
        lidar2img: (4, 4).
        image_size: (height, width), pixels.

    Returns:
        Boxes (N, 4) left, top, right, bottom, and whether any of each lies in the picture (N,).
    """
    if not len(corners):
        return np.zeros((0, 4)), np.zeros(0, bool)
    pixels, depth = project_to_image(corners, lidar2img)
    near = depth < _NEAREST
    pixels = np.where(near[..., None], pixels * (depth / _NEAREST)[..., None], pixels)
    height, width = image_size
    limit = np.array([width - 1.0, height - 1.0])
    low, high = pixels.min(1), pixels.max(1)
    visible = ~near.all(1) & (high > 0).all(1) & (low < limit).all(1)
    return np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)], axis=1), visible
