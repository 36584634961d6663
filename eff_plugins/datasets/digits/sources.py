"""What every embedded set is made of: real handwritten digits and regions of two photographs, split once for all seeds.

scikit-learn ships 1797 real digits of 8x8 pixels (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, CC BY
4.0) and two photographs. Of the digits of each class every fifth belongs to ``val``; of each photograph the left part
belongs to ``train`` and the right part to ``val``, with a gap between them. Neither depends on a seed, so that two sets of
different seeds never share anything across the splits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from eff_plugins.compat import require

require('cv2', 'datasets.digits')
require('sklearn', 'datasets.digits')

import cv2  # noqa: E402
from sklearn.datasets import load_digits, load_sample_images  # noqa: E402

SPLITS = ('train', 'val')
TEMPLATE = 96  # side of an upscaled digit in pixels


def check_split(split: str) -> str:
    """Return ``split`` if it is known.

    Raises:
        ValueError: It is neither ``'train'`` nor ``'val'``.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r}; the embedded digits have {" and ".join(map(repr, SPLITS))}')
    return split


def digit_indices(split: str) -> list[np.ndarray]:
    """Indices into scikit-learn's digits that a split may use: one array a class."""
    wanted = check_split(split) == 'val'
    target = _digits()[1]
    per_class = [np.flatnonzero(target == label) for label in range(10)]
    return [rows[(np.arange(len(rows)) % 5 == 4) == wanted] for rows in per_class]


def photo_columns(split: str, width: int) -> tuple[int, int]:
    """First and one past the last column of a photograph that a split may use."""
    return (0, int(0.66 * width)) if check_split(split) == 'train' else (int(0.68 * width), width)


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.images.astype(np.float32), data.target.astype(np.int64)


@lru_cache(maxsize=1)
def _photos() -> list[np.ndarray]:
    return [np.ascontiguousarray(photo) for photo in load_sample_images().images]


@lru_cache(maxsize=2048)
def template(index: int) -> np.ndarray:
    """A digit as a smooth alpha mask, (96, 96) float32 in [0, 1], with an empty margin around it."""
    padded = np.pad(_digits()[0][index] / 16, 2)
    big = cv2.resize(padded, (TEMPLATE, TEMPLATE), interpolation=cv2.INTER_CUBIC)
    big = cv2.GaussianBlur(big, (0, 0), TEMPLATE / 60)
    return np.clip((big - 0.25) / 0.25, 0, 1).astype(np.float32)


def pick_digit(rng: np.random.Generator, split: str, label: int | None = None) -> tuple[int, int]:
    """Draw ``(label, index of the source digit)``; the label is drawn too where it is not given."""
    label = int(rng.integers(10)) if label is None else label
    rows = _split_indices(split)[label]
    return label, int(rows[rng.integers(len(rows))])


@lru_cache(maxsize=2)
def _split_indices(split: str) -> list[np.ndarray]:
    return digit_indices(split)


def warp(index: int, angle: float, shear: float, aspect: float) -> np.ndarray:
    """A digit rotated by ``angle`` degrees, sheared and stretched: an alpha mask cut to its ink, float32 in [0, 1]."""
    side = int(TEMPLATE * 1.5)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[aspect, shear], [0, 1]])
    shift = side / 2 - linear @ np.full(2, TEMPLATE / 2)
    alpha = cv2.warpAffine(template(index), np.column_stack([linear, shift]).astype(np.float32), (side, side))
    return cut_to_ink(alpha)


def cut_to_ink(alpha: np.ndarray) -> np.ndarray:
    """Cut an alpha mask to the box of its pixels above one half."""
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def digit_stamp(rng: np.random.Generator, index: int, long_side: int, rotate: float = 15.0) -> np.ndarray:
    """A randomly deformed digit whose longer side is ``long_side`` pixels: alpha mask, float32 in [0, 1]."""
    alpha = warp(index, rng.uniform(-rotate, rotate), rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.1))
    scale = long_side / max(alpha.shape)
    height, width = (max(1, round(side * scale)) for side in alpha.shape)
    return cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """A random crop of a photograph, mirrored, turned and its colours varied: (size, size, 3) uint8 RGB."""
    photos = _photos()
    photo = photos[rng.integers(len(photos))]
    low, high = photo_columns(split, photo.shape[1])
    side = int(rng.integers(96, 205))  # what the narrower region (val's) has room for
    top = int(rng.integers(0, photo.shape[0] - side + 1))
    left = int(rng.integers(low, high - side + 1))
    crop = np.rot90(photo[top : top + side, left : left + side], int(rng.integers(4)))
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    gain = rng.uniform(0.6, 1.1) * rng.uniform(0.9, 1.1, 3)
    return np.clip(crop * gain.astype(np.float32) + np.float32(rng.uniform(-15, 15)), 0, 255).astype(np.uint8)


def contrasting_colour(rng: np.random.Generator, under: np.ndarray) -> np.ndarray:
    """A random colour far from the mean of the pixels ``under`` (..., 3): the farthest of four draws."""
    mean = under.reshape(-1, 3).mean(0)
    draws = rng.uniform(0, 255, (4, 3))
    weights = np.array([0.6, 1.2, 0.5])  # the eye's, roughly: a difference in green is the most visible one
    return draws[int(np.argmax((((draws - mean) * weights) ** 2).sum(1)))]


def blend(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray, top: int, left: int) -> None:
    """Paint ``colour`` through ``alpha`` (h, w) onto ``image`` (H, W, 3) uint8 in place; the stamp lies inside it."""
    window = image[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    weight = alpha[..., None]
    window[:] = (window * (1 - weight) + colour.astype(np.float32) * weight + 0.5).astype(np.uint8)
