from __future__ import annotations

import math

import numpy as np
import pytest

from eff_plugins.ops.rotated_iou import rotated_intersection, rotated_iou, upright_box_iou


def random_boxes(rng: np.random.Generator, count: int, spread: float = 3.0) -> np.ndarray:
    return np.column_stack(
        [
            rng.uniform(-spread, spread, (count, 2)),
            rng.uniform(0.2, 5.0, (count, 2)),
            rng.uniform(-2 * math.pi, 2 * math.pi, count),
        ]
    )


def inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    x, y, w, h, angle = box
    dx, dy = points[:, 0] - x, points[:, 1] - y
    along = dx * math.cos(angle) + dy * math.sin(angle)
    across = -dx * math.sin(angle) + dy * math.cos(angle)
    return (abs(along) <= w / 2) & (abs(across) <= h / 2)


KNOWN = [
    # identical; turned by a quarter and by a half; shifted by half; touching; apart; nested
    ([0, 0, 4, 2, 0.3], [0, 0, 4, 2, 0.3], 8.0),
    ([0, 0, 4, 2, 0.3], [0, 0, 2, 4, 0.3 + math.pi / 2], 8.0),
    ([0, 0, 4, 2, 0.0], [0, 0, 4, 2, math.pi], 8.0),
    ([0, 0, 4, 2, 0.0], [2, 0, 4, 2, 0.0], 4.0),
    ([0, 0, 4, 2, 0.0], [4, 0, 4, 2, 0.0], 0.0),
    ([0, 0, 4, 2, 0.0], [10, 0, 4, 2, 1.0], 0.0),
    ([5, -7, 6, 6, 0.4], [5, -7, 2, 1, 1.9], 2.0),
    # a cross of two bars; the unit square and itself turned by 45 degrees (a regular octagon)
    ([0, 0, 10, 1, 0.7], [0, 0, 10, 1, 0.7 + math.pi / 2], 1.0),
    ([0, 0, 1, 1, 0.0], [0, 0, 1, 1, math.pi / 4], 2 * (math.sqrt(2) - 1)),
    # a corner of 45 degrees cuts a triangle off; no area at all
    ([0, 0, 2, 2, 0.0], [2, 0, math.sqrt(2), math.sqrt(2), math.pi / 4], 0.0),
    ([0, 0, 2, 2, 0.0], [1.5, 0, math.sqrt(2), math.sqrt(2), math.pi / 4], 0.25),
    ([0, 0, 0, 2, 0.0], [0, 0, 2, 2, 0.5], 0.0),
]


@pytest.mark.parametrize(('first', 'second', 'area'), KNOWN)
def test_known_areas(first, second, area):
    for a, b in ((first, second), (second, first)):
        assert rotated_intersection(np.array([a], float), np.array([b], float))[0, 0] == pytest.approx(area, abs=1e-12)


def test_continuous_near_coincident_edges():
    """Where vertex clipping is fragile: nearly the same box, by steps around the rounding error."""
    box = np.array([[35.0, -12.0, 3.9, 1.6, 1.57]])
    for step in 10.0 ** np.arange(-18, -5):
        moved = box + np.array([step, -step, step, step, step])
        assert rotated_iou(box, moved)[0, 0] == pytest.approx(1.0, abs=10 * step + 1e-12)


def test_far_from_origin():
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 40), random_boxes(rng, 40)
    shift = np.array([1000.0, -2000.0, 0, 0, 0])
    near, far = rotated_intersection(first, second), rotated_intersection(first + shift, second + shift)
    np.testing.assert_allclose(far, near, atol=1e-9)


def test_against_monte_carlo():
    rng = np.random.default_rng(1)
    first, second = random_boxes(rng, 12, 1.5), random_boxes(rng, 12, 1.5)
    points = rng.uniform(-5, 5, (200_000, 2))
    areas = rotated_intersection(first, second)
    in_first, in_second = (np.stack([inside(points, box) for box in boxes]) for boxes in (first, second))
    estimate = (in_first[:, None] & in_second[None]).mean(-1) * 100.0
    # the standard error of an area A of the 100 sampled is sqrt(A (100 - A) / n)
    error = np.sqrt(np.maximum(areas, 0.01) * 100.0 / len(points))
    assert (areas > 0.1).sum() > 60
    assert (abs(areas - estimate) < 5 * error).all()


def test_against_mmcv():
    ops = pytest.importorskip('mmcv.ops')
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(2)
    first, second = random_boxes(rng, 60), random_boxes(rng, 50)
    ours = rotated_iou(first, second)
    # from x towards y, which mmcv calls clockwise since its y points down
    theirs = ops.box_iou_rotated(*(torch.from_numpy(boxes).float() for boxes in (first, second))).numpy()
    assert (ours > 0.05).mean() > 0.2
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_boxes_in_space():
    box = np.array([[1.0, 2.0, -1.0, 4.0, 2.0, 1.5, 0.4]])
    lifted = box + np.array([0, 0, 0.5, 0, 0, 0, 0])
    above = box + np.array([0, 0, 1.5, 0, 0, 0, 0])
    iou = upright_box_iou(box, np.concatenate([box, lifted, above]))[0]
    np.testing.assert_allclose(iou, [1.0, 8.0 / 16.0, 0.0], atol=1e-12)


def test_empty_and_faulty_input():
    none = np.zeros((0, 5))
    assert rotated_iou(none, np.ones((3, 5))).shape == (0, 3)
    assert upright_box_iou(np.ones((2, 7)), np.zeros((0, 7))).shape == (2, 0)
    with pytest.raises(ValueError, match=r'boxes2 must have shape \(N, 5\)'):
        rotated_iou(none, np.ones((3, 4)))
    with pytest.raises(ValueError, match='boxes1 holds a negative size'):
        rotated_intersection(np.array([[0, 0, -1, 1, 0.0]]), none)
    with pytest.raises(ValueError, match='boxes1 holds a value that is not finite'):
        rotated_iou(np.array([[0, 0, np.nan, 1, 0.0]]), none)
