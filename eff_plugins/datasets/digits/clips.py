"""Clips of one moving digit whose class is the motion, such that no single frame says anything about the class.

A digit has four coordinates: x and y (on a torus: what leaves on one side comes back on the other), the logarithm of its
size (it wraps from the largest to the smallest), and its angle. At the first frame all four are uniform and independent;
each motion adds a step to one of them, and on a circle a uniform variable stays uniform. So at EVERY frame the joint
distribution of position, size and angle is exactly the same for all classes; only two frames together tell them apart.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from . import sources
from .storage import positive, progress, rng_for, write_json, write_npz

MOTIONS = ('left', 'right', 'up', 'down', 'grow', 'shrink', 'clockwise', 'counterclockwise')
# motion -> (coordinate, sign); image coordinates: y points down, so a growing angle turns clockwise
_STEPS = {
    'left': (0, -1),
    'right': (0, 1),
    'up': (1, -1),
    'down': (1, 1),
    'grow': (2, 1),
    'shrink': (2, -1),
    'clockwise': (3, 1),
    'counterclockwise': (3, -1),
}
# total change of a coordinate over a clip, as a share of its circle
_TRAVEL = ((0.4, 0.8), (0.4, 0.8), (0.5, 0.8), (0.4, 0.7))
_SIZES = (0.25, 0.6)  # length of the digit's longer side, as a share of the frame's


def motion_states(rng: np.random.Generator, motion: str, frames: int) -> np.ndarray:
    """Coordinates of a clip: (frames, 4) in [0, 1): x, y, size (logarithmic) and angle, each on a circle.

    Raises:
        ValueError: Unknown motion.
    """
    if motion not in _STEPS:
        raise ValueError(f'unknown motion {motion!r}; known: {", ".join(MOTIONS)}')
    start = rng.random(4)
    shares = [rng.uniform(*bounds) for bounds in _TRAVEL]  # all are drawn, so that classes use the stream equally
    coordinate, sign = _STEPS[motion]
    states = np.tile(start, (frames, 1))
    states[:, coordinate] += sign * shares[coordinate] * np.arange(frames) / max(frames - 1, 1)
    return states % 1


def render(
    photo: np.ndarray, alpha: np.ndarray, colour: np.ndarray, state: np.ndarray, strength: float = 1.0
) -> np.ndarray:
    """One frame.

    Args:
        photo: Background (H, H, 3) uint8.
        alpha: The digit's alpha mask (h, w) float32 in [0, 1].
        colour: (3,) its colour, 0 to 255.
        state: (4,) a row of :func:`motion_states`.
        strength: Opacity of the digit.
    """
    size = photo.shape[0]
    x, y = state[:2] * size
    scale = size * _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** state[2] / max(alpha.shape)
    cos, sin = np.cos(2 * np.pi * state[3]) * scale, np.sin(2 * np.pi * state[3]) * scale
    linear = np.array([[cos, -sin], [sin, cos]])
    # drawn in the middle of a square, then rolled to its place: the frame is a torus
    middle = np.array([size / 2 + x % 1, size / 2 + y % 1])
    shift = middle - linear @ (np.array(alpha.shape[::-1]) / 2)
    matrix = np.column_stack([linear, shift]).astype(np.float32)
    weight = cv2.warpAffine(alpha, matrix, (size, size), flags=cv2.INTER_LINEAR)
    weight = np.roll(weight, (int(y) - size // 2, int(x) - size // 2), (0, 1))[..., None] * np.float32(strength)
    return (photo * (1 - weight) + colour.astype(np.float32) * weight + 0.5).astype(np.uint8)


def _clip(rng: np.random.Generator, split: str, motion: str, frames: int, size: int) -> tuple[np.ndarray, int]:
    photo = sources.background(rng, split, size)
    _, index = sources.pick_digit(rng, split)
    alpha = sources.cut_to_ink(sources.template(index))
    # halved, because a frame uses at most 0.6 of its side: less aliasing where digits are small
    alpha = cv2.resize(alpha, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) if size <= 128 else alpha
    alpha = np.pad(alpha, 1)
    colour = sources.contrasting_colour(rng, photo)
    strength = float(rng.uniform(0.85, 1))
    states = motion_states(rng, motion, frames)
    return np.stack([render(photo, alpha, colour, state, strength) for state in states]), index


def generate_motion(
    root: str | Path, split: str, *, seed: int = 0, count: int | None = None, size: int = 96, frames: int = 16
) -> None:
    """Clips of moving digits: ``clips/*.npz`` with ``frames`` (T, size, size, 3) uint8 RGB, and ``annotations.json``.

    The json holds ``classes`` and ``clips``: ``file``, ``label``, ``frames`` and ``source_index`` of each clip.
    Mirroring a clip changes its class.

    Args:
        root: Folder to write to; it is made.
        split: ``'train'`` or ``'val'``.
        seed: Two seeds give two sets.
        count: Number of clips, by default 800 for train and 160 for val; classes take turns.
        size: Side of a frame in pixels, at least 32.
        frames: Frames a clip, at least 2.

    Raises:
        ValueError: An argument is out of range.
    """
    if size < 32:
        raise ValueError(f'size={size} must be at least 32')
    if frames < 2:
        raise ValueError(f'frames={frames} must be at least 2: one frame shows no motion')
    count = {'train': 800, 'val': 160}[sources.check_split(split)] if count is None else positive('count', count)
    folder = Path(root)
    (folder / 'clips').mkdir(parents=True, exist_ok=True)
    rows = []
    for number in progress(range(count), f'digit motion {split}'):
        label = number % len(MOTIONS)
        clip, index = _clip(rng_for('motion', split, seed, number), split, MOTIONS[label], frames, size)
        name = f'clips/{number:06d}.npz'
        write_npz(folder / name, frames=clip)
        rows.append({'file': name, 'label': label, 'frames': frames, 'source_index': index})
    write_json(folder / 'annotations.json', {'classes': list(MOTIONS), 'clips': rows})
