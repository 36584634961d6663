"""Average precision of the KITTI object benchmark in plain numpy.

Rules: the benchmark's development kit (Geiger et al., CVPR 2012) and, for 40 recall positions, Simonelli et al.,
"Disentangling Monocular 3D Object Detection", ICCV 2019. In short, for one class and difficulty:

* A labelled object is *valid* if it is of the class and within the difficulty's limits; of the class but harder, or of the
  class's neighbour (Van for Car, Person_sitting for Pedestrian), it is *ignored*: finding it or missing it costs nothing.
* A detection whose 2D box is lower than the difficulty's minimum height is ignored, whatever its class.
* Detections that fall into ``DontCare`` regions are no false positives. These regions are 2D boxes without a place in
  space, so, as in the development kit, this has an effect on the 2D metric only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eff_plugins.datasets.kitti_format import MAX_OCCLUSION, MAX_TRUNCATION, MIN_HEIGHT
from eff_plugins.ops.rotated_iou import rotated_iou, upright_box_iou

METRICS = ('bbox', 'bev', '3d')
MIN_OVERLAP = {'Car': 0.7, 'Pedestrian': 0.5, 'Cyclist': 0.5}
NEIGHBOUR = {'Car': 'Van', 'Pedestrian': 'Person_sitting'}
_OTHER, _VALID, _IGNORED = -1, 0, 1


@dataclass(frozen=True)
class Boxes:
    """Objects or detections of one frame, N of them.

    Attributes:
        names: (N,) class names; ``DontCare`` marks regions of which only ``bbox`` means anything.
        bbox: (N, 4) left, top, right, bottom, pixels.
        camera: (N, 7) x, y, z of the bottom centre, length, height, width, rotation_y in the rectified camera frame.
        truncated: (N,); zeros for detections.
        occluded: (N,); zeros for detections.
        score: (N,); zeros for objects.
    """

    names: np.ndarray
    bbox: np.ndarray
    camera: np.ndarray
    truncated: np.ndarray
    occluded: np.ndarray
    score: np.ndarray

    @classmethod
    def make(cls, names: Sequence[str], bbox, camera, truncated=None, occluded=None, score=None) -> Boxes:
        """Build from anything array-like; what is left out is zero."""
        count = len(names)
        rest = [np.zeros(count) if x is None else np.asarray(x, dtype=np.float64) for x in (truncated, occluded, score)]
        return cls(
            np.asarray(names, dtype=object),
            np.asarray(bbox, dtype=np.float64).reshape(count, 4),
            np.asarray(camera, dtype=np.float64).reshape(count, 7),
            *rest,
        )


def image_overlap(boxes1: np.ndarray, boxes2: np.ndarray, over_first: bool = False) -> np.ndarray:
    """Overlap (N, M) of axis-aligned boxes (N, 4), (M, 4): intersection over union, or over the first box's area."""
    low = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(-1)
    area1, area2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes1, boxes2))
    base = np.broadcast_to(area1[:, None], intersection.shape) if over_first else area1[:, None] + area2 - intersection
    return np.divide(intersection, base, out=np.zeros_like(intersection), where=base > 0)


def overlap(metric: str, detections: Boxes, objects: Boxes) -> np.ndarray:
    """Overlap (detections, objects) as ``metric`` measures it; 0 with a ``DontCare`` region, except for ``bbox``."""
    if metric == 'bbox':
        return image_overlap(detections.bbox, objects.bbox)
    result = np.zeros((len(detections.names), len(objects.names)))
    real = np.flatnonzero(objects.names != 'DontCare')
    # rotation_y turns from z to x, hence the minus in the plane (x, z); y points down, hence the height axis -y.
    upright = [np.stack([b[:, 0], b[:, 2], -b[:, 1], b[:, 3], b[:, 5], b[:, 4], -b[:, 6]], axis=1)
               for b in (detections.camera, objects.camera[real])]  # fmt: skip
    if metric == 'bev':
        upright = [b[:, [0, 1, 3, 4, 6]] for b in upright]
        result[:, real] = rotated_iou(*upright)
    else:
        result[:, real] = upright_box_iou(*upright)
    return result


def _flag_objects(objects: Boxes, name: str, level: int) -> np.ndarray:
    height = objects.bbox[:, 3] - objects.bbox[:, 1]
    too_hard = (
        (objects.occluded > MAX_OCCLUSION[level])
        | (objects.truncated > MAX_TRUNCATION[level])
        | (height <= MIN_HEIGHT[level])
    )
    flags = np.full(len(objects.names), _OTHER)
    flags[objects.names == name] = _VALID
    flags[(objects.names == name) & too_hard] = _IGNORED
    if name in NEIGHBOUR:
        flags[objects.names == NEIGHBOUR[name]] = _IGNORED
    return flags


def _flag_detections(detections: Boxes, name: str, level: int) -> np.ndarray:
    flags = np.where(detections.names == name, _VALID, _OTHER)
    flags[abs(detections.bbox[:, 3] - detections.bbox[:, 1]) < MIN_HEIGHT[level]] = _IGNORED
    return flags


class _Frame:
    """What one frame contributes for one class, difficulty and metric."""

    def __init__(
        self, detections: Boxes, objects: Boxes, overlaps: np.ndarray, name: str, level: int, limit: float, stuff: bool
    ) -> None:
        det_flags, obj_flags = _flag_detections(detections, name, level), _flag_objects(objects, name, level)
        taken = np.flatnonzero(det_flags != _OTHER)
        # in the order of falling score, so that a threshold keeps the first k of them
        taken = taken[np.argsort(-detections.score[taken], kind='stable')]
        kept = np.flatnonzero(obj_flags != _OTHER)
        self.score = detections.score[taken]
        self.det_ignored = det_flags[taken] == _IGNORED
        self.obj_ignored = obj_flags[kept] == _IGNORED
        self.overlap = overlaps[np.ix_(taken, kept)]
        self.hit = self.overlap > limit
        self.valid = int((~self.obj_ignored).sum())
        regions = objects.bbox[objects.names == 'DontCare']
        inside = image_overlap(detections.bbox[taken], regions, over_first=True) > limit
        self.in_stuff = inside.any(1) if stuff else np.zeros(len(taken), bool)
        self._counts: dict[int, tuple[int, int]] = {}

    def true_positive_scores(self) -> list[float]:
        """Scores of the detections that find a valid object when each object takes its most confident one."""
        free = np.ones(len(self.score), bool)
        scores = []
        for j, ignored in enumerate(self.obj_ignored):
            candidates = np.flatnonzero(free & self.hit[:, j])
            if len(candidates):
                best = candidates[0]
                free[best] = False
                if not ignored and not self.det_ignored[best]:
                    scores.append(float(self.score[best]))
        return scores

    def counts(self, threshold: float) -> tuple[int, int]:
        """True and false positives among the detections that score at least ``threshold``."""
        k = int((self.score >= threshold).sum())
        if k not in self._counts:
            self._counts[k] = self._count(k)
        return self._counts[k]

    def _count(self, k: int) -> tuple[int, int]:
        free = np.ones(k, bool)
        ignored_det = self.det_ignored[:k]
        found = 0
        for j, ignored in enumerate(self.obj_ignored):
            candidates = free & self.hit[:k, j]
            if not candidates.any():
                continue
            regular = np.flatnonzero(candidates & ~ignored_det)
            # the best overlap among regular detections; an ignored one (the first of them) only where there is none
            best = regular[self.overlap[regular, j].argmax()] if len(regular) else np.flatnonzero(candidates)[0]
            free[best] = False
            found += not ignored and not ignored_det[best]
        return found, int((free & ~ignored_det & ~self.in_stuff[:k]).sum())


def _benchmark_thresholds(scores: Sequence[float], valid: int, positions: int = 41) -> list[float]:
    """The scores at which recall comes nearest to the next of ``positions`` equally spaced values (development kit)."""
    ordered = sorted(scores, reverse=True)
    thresholds: list[float] = []
    recall = 0.0
    for i, score in enumerate(ordered):
        last = i == len(ordered) - 1
        left, right = (i + 1) / valid, (i + 1 if last else i + 2) / valid
        if right - recall < recall - left and not last:
            continue
        thresholds.append(score)
        recall += 1 / (positions - 1)
    return thresholds


def _sample(frames: Sequence[_Frame], valid: int, sampling: str) -> np.ndarray:
    """Interpolated precision (41,) at recall 0, 1/40, ..., 1."""
    scores = [score for frame in frames for score in frame.true_positive_scores()]
    precision = np.zeros(41)
    if not scores or not valid:
        return precision
    exact = sampling == 'exact'
    thresholds = sorted({*scores}, reverse=True) if exact else _benchmark_thresholds(scores, valid)
    totals = np.array([np.sum([frame.counts(t) for frame in frames], axis=0) for t in thresholds], dtype=np.float64)
    found, false = totals.T
    curve = np.divide(found, found + false, out=np.zeros_like(found), where=found + false > 0)
    curve = np.maximum.accumulate(curve[::-1])[::-1]
    if not exact:
        precision[: len(curve)] = curve[:41]
        return precision
    reached = np.maximum.accumulate(found) / valid
    for i in range(41):
        first = np.searchsorted(reached, i / 40 - 1e-9)
        precision[i] = curve[first] if first < len(curve) else 0.0
    return precision


def kitti_ap(
    objects: Sequence[Boxes],
    detections: Sequence[Boxes],
    classes: Sequence[str],
    metrics: Sequence[str] = ('bev', '3d'),
    min_overlap: Mapping[str, float] = MIN_OVERLAP,
    recall_sampling: str = 'benchmark',
) -> dict[tuple[str, str, int], tuple[float, float] | None]:
    """Average precision of every class, metric and difficulty.

    Args:
        objects: Labelled objects of each frame, ``DontCare`` regions included.
        detections: Detections of each frame, in the same order.
        classes: Classes to evaluate, each with an entry in ``min_overlap``.
        metrics: Of ``bbox`` (image), ``bev`` (ground plane) and ``3d``.
        min_overlap: Overlap that a match must exceed.
        recall_sampling: ``benchmark`` takes precision at the scores that the development kit takes; with fewer than 40
            objects it then stays below 1 even for perfect detections, since there are fewer scores than recall positions.
            ``exact`` reads the same interpolated curve at the recall positions themselves. The two agree for many objects.

    Returns:
        ``(class, metric, difficulty 0-2) -> (AP at 40 recall positions, AP at 11)``, each in [0, 1]; None where the data
        hold no valid object.
    """
    result: dict[tuple[str, str, int], tuple[float, float] | None] = {}
    for metric in metrics:
        overlaps = [overlap(metric, d, o) for d, o in zip(detections, objects, strict=True)]
        for name in classes:
            for level in range(3):
                frames = [
                    _Frame(d, o, shared, name, level, min_overlap[name], metric == 'bbox')
                    for d, o, shared in zip(detections, objects, overlaps, strict=True)
                ]
                valid = sum(frame.valid for frame in frames)
                precision = _sample(frames, valid, recall_sampling)
                result[name, metric, level] = (
                    (float(precision[1:].mean()), float(precision[::4].mean())) if valid else None
                )
    return result
