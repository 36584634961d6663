"""Pictures of several digits over a cluttered photograph, with the mask of what is visible of each digit."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from . import sources

# none of them looks like a digit
_LETTERS = 'AEFHKMNRTWXY'
_MAX_OVERLAP = 0.35  # of the smaller of two boxes
_MIN_VISIBLE = 0.6  # of a digit's ink


@dataclass(frozen=True)
class SceneSpec:
    """What a picture holds.

    Args:
        size: Side of the picture in pixels.
        digits: Least and greatest number of digits.
        digit_size: Least and greatest length of a digit's longer side in pixels.
        digit_spread: Greatest ratio of two digits' sizes within one picture; None leaves them to ``digit_size``.

    Raises:
        ValueError: A range is empty, or a digit does not fit into the picture.
    """

    size: int = 320
    digits: tuple[int, int] = (3, 8)
    digit_size: tuple[int, int] = (20, 80)
    digit_spread: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.digits[0] <= self.digits[1]:
            raise ValueError(f'digits={self.digits} must be (least, greatest) with 1 <= least <= greatest')
        if not 8 <= self.digit_size[0] <= self.digit_size[1] <= self.size:
            raise ValueError(
                f'digit_size={self.digit_size} must be (least, greatest) with 8 <= least <= greatest <= size={self.size}'
            )
        if self.digit_spread is not None and self.digit_spread < 1:
            raise ValueError(f'digit_spread={self.digit_spread} must be at least 1, or None')


@dataclass
class Scene:
    """A picture and its digits.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        owner: (H, W) int16: number of the digit that is seen at a pixel, -1 for none.
        labels: Class of each digit.
        indices: Source of each digit, an index into scikit-learn's digits.
    """

    image: np.ndarray
    owner: np.ndarray
    labels: list[int]
    indices: list[int]

    def semantic(self) -> np.ndarray:
        """Class mask (H, W) uint8: 0 is background, ``d + 1`` is digit ``d``."""
        return np.array([*(label + 1 for label in self.labels), 0], np.uint8)[self.owner]


def compose(rng: np.random.Generator, split: str, spec: SceneSpec) -> Scene:
    """Draw one picture.

    Raises:
        ValueError: The digits asked for do not fit into the picture.
    """
    image = sources.background(rng, split, spec.size)
    for _ in range(int(rng.integers(2, 6))):
        _distract(rng, image)
    scene = Scene(image, np.full((spec.size, spec.size), -1, np.int16), [], [])
    boxes: list[tuple[int, int, int, int]] = []
    areas: list[int] = []
    wanted = int(rng.integers(spec.digits[0], spec.digits[1] + 1))
    low, high = spec.digit_size
    if spec.digit_spread is not None and high > low * spec.digit_spread:
        low = round(float(np.exp(rng.uniform(np.log(low), np.log(high / spec.digit_spread)))))
        high = round(low * spec.digit_spread)
    for number in range(wanted):
        for attempt in range(200):
            # small digits are as frequent as large ones on a log scale; after many failures only the smallest may fit
            side = low if attempt > 100 else round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
            label, index = sources.pick_digit(rng, split)
            stamp = sources.digit_stamp(rng, index, side)
            if _place(rng, scene, boxes, areas, stamp):
                scene.labels.append(label)
                scene.indices.append(index)
                break
        else:
            if number < spec.digits[0]:
                raise ValueError(
                    f'{spec}: {spec.digits[0]} digits do not fit; enlarge size or lower digits or digit_size'
                )
            break
    noise = rng.normal(0, rng.uniform(0, 5), image.shape[:2]).astype(np.float32)[..., None]
    scene.image = np.clip(scene.image + noise, 0, 255).astype(np.uint8)
    return scene


def _place(rng: np.random.Generator, scene: Scene, boxes: list, areas: list[int], stamp: np.ndarray) -> bool:
    """Paint a stamp at a random place unless it hides too much of an earlier digit; say whether it was painted."""
    size, (height, width) = scene.image.shape[0], stamp.shape
    top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
    for y, x, h, w in boxes:
        overlap = max(0, min(top + height, y + h) - max(top, y)) * max(0, min(left + width, x + w) - max(left, x))
        if overlap > _MAX_OVERLAP * min(height * width, h * w):
            return False
    ink = stamp > 0.5
    window = scene.owner[top : top + height, left : left + width]
    covered = np.bincount(window[ink & (window >= 0)], minlength=len(areas))
    for number in np.flatnonzero(covered):
        if (scene.owner == number).sum() - covered[number] < _MIN_VISIBLE * areas[number]:
            return False
    colour = sources.contrasting_colour(rng, scene.image[top : top + height, left : left + width])
    sources.blend(scene.image, stamp * np.float32(rng.uniform(0.75, 1)), colour, top, left)
    window[ink] = len(areas)
    boxes.append((top, left, height, width))
    areas.append(int(ink.sum()))
    return True


def _distract(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw something that is not a digit: a curve, a letter or a patch of noise."""
    size = image.shape[0]
    kind = int(rng.integers(3))
    colour = tuple(float(c) for c in rng.integers(0, 256, 3))
    thickness = max(1, round(size * float(rng.uniform(0.006, 0.02))))
    centre = rng.integers(0, size, 2)
    if kind == 0:
        # long enough not to be taken for a 1 or a 7
        turns = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-0.9, 0.9, 5))
        steps = np.cumsum(np.column_stack([np.cos(turns), np.sin(turns)]) * size * float(rng.uniform(0.12, 0.25)), 0)
        points = (centre + np.vstack([np.zeros(2), steps])).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(image, [points], False, colour, thickness, cv2.LINE_AA)
    elif kind == 1:
        letter = _LETTERS[int(rng.integers(len(_LETTERS)))]
        scale = size * float(rng.uniform(0.08, 0.2)) / 22
        place = (int(centre[0]), int(centre[1]))
        cv2.putText(image, letter, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    else:
        height, width = (int(v) for v in rng.integers(max(2, size // 20), max(4, size // 6), 2))
        window = image[centre[0] : centre[0] + height, centre[1] : centre[1] + width]
        window[:] = np.clip(window + rng.normal(0, 40, window.shape), 0, 255).astype(np.uint8)
