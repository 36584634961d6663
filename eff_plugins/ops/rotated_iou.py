"""Exact overlap of rotated rectangles and of upright 3D boxes, in plain vectorised numpy.

The area of a polygon inside an axis-aligned rectangle [-a, a] x [-b, b] needs no list of vertices: by Green's theorem it
is the integral of ``clip(x, -a, a) dy`` over the part of the polygon's boundary with ``|y| <= b``, and along one edge the
integrand is linear between the edge's crossings of ``x = -a`` and ``x = a``. Each edge is therefore cut at no more than
four places and summed with the trapezoidal rule, which is exact there. Unlike vertex clipping this has no special cases:
shared corners, coincident and parallel edges come out right because the area depends on the edges continuously.
"""

from __future__ import annotations

import numpy as np

_PAIRS_AT_ONCE = 65536  # bounds the memory of a call: about 30 MB of float64 temporaries


def _as_boxes(boxes: np.ndarray, width: int, name: str) -> np.ndarray:
    """``boxes`` as float64 (N, width), or an error that names the argument."""
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f'{name} must have shape (N, {width}), got {array.shape}')
    if not np.isfinite(array).all():
        raise ValueError(f'{name} holds a value that is not finite')
    return array


def rectangle_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners of rotated rectangles, counter-clockwise.

    Args:
        boxes: (N, 5) centre x, centre y, size along the rectangle's own x, size along its own y, angle in radians
            (counter-clockwise).

    Returns:
        (N, 4, 2) float64.
    """
    boxes = _as_boxes(boxes, 5, 'boxes')
    unit = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    local = unit[None] * boxes[:, None, 2:4]
    cos, sin = np.cos(boxes[:, 4])[:, None], np.sin(boxes[:, 4])[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + boxes[:, None, :2]


def _crossing(start: np.ndarray, delta: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Parameter t in [0, 1] where ``start + t * delta`` meets ``level``, clamped; any t serves where delta is 0."""
    safe = np.where(delta == 0.0, 1.0, delta)
    with np.errstate(over='ignore'):
        return np.clip((level - start) / safe, 0.0, 1.0)


def _paired_intersection(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Intersection areas (P,) of the rectangles (P, 5) pair by pair."""
    # Rectangle 1 in the frame of rectangle 2, whose sides are then |x| = a and |y| = b.
    cos, sin = np.cos(boxes2[:, 4]), np.sin(boxes2[:, 4])
    offset = boxes1[:, :2] - boxes2[:, :2]
    local = boxes1.copy()
    local[:, 0] = offset[:, 0] * cos + offset[:, 1] * sin
    local[:, 1] = -offset[:, 0] * sin + offset[:, 1] * cos
    local[:, 4] = boxes1[:, 4] - boxes2[:, 4]
    corners = rectangle_corners(local)
    a, b = boxes2[:, 2:3] / 2, boxes2[:, 3:4] / 2

    x, y = corners[..., 0], corners[..., 1]
    dx, dy = np.roll(x, -1, axis=1) - x, np.roll(y, -1, axis=1) - y
    inside = [_crossing(y, dy, -b), _crossing(y, dy, b)]
    enter, leave = np.minimum(*inside), np.maximum(*inside)
    # An edge that runs parallel to y = const contributes nothing (dy = 0), inside the band or not.
    bends = [np.clip(_crossing(x, dx, level), enter, leave) for level in (-a, a)]
    cuts = np.stack([enter, np.minimum(*bends), np.maximum(*bends), leave], axis=-1)
    clipped = np.clip(x[..., None] + cuts * dx[..., None], -a[..., None], a[..., None])
    integral = (np.diff(cuts, axis=-1) * (clipped[..., 1:] + clipped[..., :-1])).sum(-1) / 2
    area = (integral * dy).sum(-1)
    smaller = np.minimum(boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3])
    return np.clip(area, 0.0, smaller)


def rotated_intersection(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Areas of intersection of every rectangle of one set with every rectangle of another.

    Args:
        boxes1: (N, 5) as in :func:`rectangle_corners`.
        boxes2: (M, 5).

    Returns:
        (N, M) float64, in the square of the input's unit; exact up to rounding.

    Raises:
        ValueError: Wrong shape, a value that is not finite, or a negative size.
    """
    boxes1, boxes2 = _as_boxes(boxes1, 5, 'boxes1'), _as_boxes(boxes2, 5, 'boxes2')
    for name, boxes in (('boxes1', boxes1), ('boxes2', boxes2)):
        if (boxes[:, 2:4] < 0).any():
            raise ValueError(f'{name} holds a negative size')
    n, m = len(boxes1), len(boxes2)
    result = np.zeros((n, m))
    # Circles around the rectangles that do not meet settle most pairs of a scene.
    radius1, radius2 = np.hypot(*boxes1[:, 2:4].T) / 2, np.hypot(*boxes2[:, 2:4].T) / 2
    gap = np.hypot(*(boxes1[:, None, :2] - boxes2[None, :, :2]).transpose(2, 0, 1))
    rows, columns = np.nonzero(gap < radius1[:, None] + radius2[None])
    for i in range(0, len(rows), _PAIRS_AT_ONCE):
        row, column = rows[i : i + _PAIRS_AT_ONCE], columns[i : i + _PAIRS_AT_ONCE]
        result[row, column] = _paired_intersection(boxes1[row], boxes2[column])
    return result


def _ratio(intersection: np.ndarray, size1: np.ndarray, size2: np.ndarray) -> np.ndarray:
    """Intersection over union; 0 where both boxes are empty."""
    union = size1[:, None] + size2[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def rotated_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Intersection over union of rotated rectangles: (N, 5), (M, 5) -> (N, M). Arguments and errors as above."""
    boxes1, boxes2 = _as_boxes(boxes1, 5, 'boxes1'), _as_boxes(boxes2, 5, 'boxes2')
    areas = [boxes[:, 2] * boxes[:, 3] for boxes in (boxes1, boxes2)]
    return _ratio(rotated_intersection(boxes1, boxes2), *areas)


def upright_box_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes that turn about the vertical axis only.

    Args:
        boxes1: (N, 7) x, y, bottom z, size x, size y, height, angle; z points up.
        boxes2: (M, 7).

    Returns:
        (N, M) float64 in [0, 1].

    Raises:
        ValueError: As :func:`rotated_intersection`.
    """
    boxes1, boxes2 = _as_boxes(boxes1, 7, 'boxes1'), _as_boxes(boxes2, 7, 'boxes2')
    ground = [0, 1, 3, 4, 6]
    area = rotated_intersection(boxes1[:, ground], boxes2[:, ground])
    bottom = np.maximum(boxes1[:, None, 2], boxes2[None, :, 2])
    top = np.minimum((boxes1[:, 2] + boxes1[:, 5])[:, None], (boxes2[:, 2] + boxes2[:, 5])[None])
    volumes = [boxes[:, 3:6].prod(axis=1) for boxes in (boxes1, boxes2)]
    return _ratio(area * np.clip(top - bottom, 0.0, None), *volumes)
