"""Paired bootstrap over pictures: how much of a difference between two networks is the choice of the test pictures.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. All networks are read on the same draws of the pictures, and
the interval is that of the differences.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pycocotools.coco import COCO

DRAWS = 2000
Counts = np.ndarray
Interval = tuple[float, float]


def draws(pictures: int, number: int = DRAWS, seed: int = 0) -> Counts:
    """(number, pictures): how often each picture is in each draw of as many pictures, with replacement."""
    chosen = np.random.default_rng(seed).integers(0, pictures, (number, pictures))
    return np.stack([np.bincount(row, minlength=pictures) for row in chosen])


def interval(values: np.ndarray) -> Interval:
    """95 % of the draws' ``values`` (number,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(ours: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Interval:
    """95 % interval of the difference of two means over seeds, given each seed's values (number,) on the same draws."""
    return interval(np.mean(ours, 0) - np.mean(others, 0))


def mean_interval(differences: np.ndarray) -> Interval:
    """95 % interval of the mean of ``differences`` (N,), one a picture."""
    return interval(draws(len(differences)) @ differences / len(differences))


class CocoPictures:
    """Average precision of boxes over any draw of the pictures.

    COCO's matching takes picture by picture and is done once; a draw only counts anew what was matched.

    Args:
        truth: The annotations.
        predictions: A dict a box, as in COCO's result files.
        ious: At which a box counts as found; by default COCO's 0.5, 0.55 to 0.95.
    """

    def __init__(self, truth: COCO, predictions: Sequence[dict[str, Any]], ious: Sequence[float] | None = None) -> None:
        from pycocotools.coco import COCO  # comes with mmdet
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            boxes = truth.loadRes(list(predictions)) if predictions else COCO()  # loadRes takes no empty list
            found = COCOeval(truth, boxes, 'bbox')
            params = found.params
            params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], ['all'], [100]
            params.iouThrs = params.iouThrs if ious is None else np.array(ious)
            found.evaluate()
        self.ious = params.iouThrs
        self.recalls = params.recThrs
        self.pictures = len(params.imgIds)
        grid = [found.evalImgs[i : i + self.pictures] for i in range(0, len(found.evalImgs), self.pictures)]
        self.classes = [_Class(row, len(self.ious)) for row in grid]

    @classmethod
    def of(cls, metric: Any, ious: Sequence[float] | None = None) -> CocoPictures:
        """What mmdet's ``CocoMetric`` found last; its ``outfile_prefix`` must be set."""
        return cls(metric._coco_api, json.loads(Path(f'{metric.outfile_prefix}.bbox.json').read_text()), ious)

    def ap(self, times: Counts) -> np.ndarray:
        """(T,) average precision at each of ``ious`` of the pictures taken ``times`` (N,) each.

        Classes without an object there are left out, as COCO does; without any object it is 0.
        """
        found = [precision for one in self.classes if (precision := one.precision(times, self.recalls)) is not None]
        return np.mean(found, 0) if found else np.zeros(len(self.ious))


class _Class:
    """What was matched of one class: boxes by falling score."""

    def __init__(self, pictures: Sequence[dict[str, Any] | None], thresholds: int) -> None:
        none = np.zeros((thresholds, 0))
        nothing = dict(gtIgnore=np.zeros(0), dtScores=np.zeros(0), dtIgnore=none, dtMatches=none)
        rows = [found or nothing for found in pictures]
        self.truths = np.array([np.count_nonzero(row['gtIgnore'] == 0) for row in rows])
        order = np.argsort(-np.concatenate([row['dtScores'] for row in rows]), kind='stable')
        self.owner = np.repeat(np.arange(len(rows)), [len(row['dtScores']) for row in rows])[order]
        ignored, matched = (
            np.concatenate([row[name] for row in rows], 1)[:, order] > 0 for name in ('dtIgnore', 'dtMatches')
        )
        self.right, self.wrong = matched & ~ignored, ~matched & ~ignored

    def precision(self, times: Counts, recalls: np.ndarray) -> np.ndarray | None:
        """(T,) mean over the recalls of the highest precision at that recall or a higher one."""
        truths = int(self.truths @ times)
        if truths == 0:
            return None
        weights = times[self.owner]
        right, wrong = (np.cumsum(weights * kind, 1) for kind in (self.right, self.wrong))
        precision = right / np.maximum(right + wrong, 1)
        best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], 1)  # recalls that are never reached
        at = [np.searchsorted(row / truths, recalls, side='left') for row in right]
        return np.stack([row[places].mean() for row, places in zip(best, at, strict=True)])


def resampled(metric: Callable[[Counts], Any], pictures: int) -> np.ndarray:
    """The metric of each of :func:`draws`, along the first axis."""
    return np.stack([metric(times) for times in draws(pictures)])
