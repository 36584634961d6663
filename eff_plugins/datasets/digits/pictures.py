"""Pictures: detection with instance masks, semantic segmentation, classification."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from . import sources
from .scenes import Scene, SceneSpec, compose
from .storage import positive, progress, rng_for, write_json, write_npz

CLASSES = tuple(str(d) for d in range(10))


def _scenes(split: str, seed: int, count: int, spec: SceneSpec, label: str) -> Iterator[tuple[str, Scene]]:
    for number in progress(range(positive('count', count)), f'{label} {split}'):
        yield f'{number:06d}', compose(rng_for('scene', split, seed, number), split, spec)


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture or a grey mask; the suffix chooses the format.

    Raises:
        OSError: It could not be written (a full disk, a missing folder).
    """
    content = image[..., ::-1] if image.ndim == 3 else image
    if not cv2.imwrite(str(path), content, [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise OSError(f'{path}: could not be written')


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a bool mask (H, W): column by column, the first run counts zeros."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    bounds = np.concatenate([[0], edges, [mask.size]])
    runs = np.diff(bounds)
    return {'size': list(mask.shape), 'counts': [int(r) for r in (runs[:-1] if runs[-1] == 0 else runs)]}


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict]:
    rows = []
    for number, (label, index) in enumerate(zip(scene.labels, scene.indices, strict=True)):
        mask = scene.owner == number
        ys, xs = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
        rows.append(
            {
                'id': first_id + number,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': box,
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': run_lengths(mask),
                'source_index': index,
            }
        )
    return rows


def generate_detection(
    root: str | Path,
    split: str,
    *,
    seed: int = 0,
    count: int | None = None,
    size: int = 320,
    digits: tuple[int, int] = (3, 8),
    digit_size: tuple[int, int] = (20, 80),
    digit_spread: float | None = None,
) -> None:
    """Detection and instance masks: ``images/*.jpg`` and ``annotations.json`` in COCO's format.

    Boxes and areas are those of the visible ink; ``segmentation`` holds uncompressed run lengths; ``category_id`` is the
    digit plus one; ``source_index`` (an extra field) says which of scikit-learn's digits it is.

    Args:
        root: Folder to write to; it is made.
        split: ``'train'`` or ``'val'``.
        seed: Two seeds give two sets; the first pictures of a set do not depend on ``count``.
        count: Number of pictures, by default 1000 for train and 200 for val.
        size: Side of a picture in pixels.
        digits: Least and greatest number of digits a picture.
        digit_size: Least and greatest length of a digit's longer side in pixels.
        digit_spread: Greatest ratio of two digits' sizes within one picture; by default only ``digit_size`` bounds it.

    Raises:
        ValueError: An argument is out of range; the message says what would be right.
    """
    spec = SceneSpec(size, tuple(digits), tuple(digit_size), digit_spread)  # type: ignore[arg-type]
    count = {'train': 1000, 'val': 200}[sources.check_split(split)] if count is None else count
    folder = Path(root)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for name, scene in _scenes(split, seed, count, spec, 'digit detection'):
        write_picture(folder / 'images' / f'{name}.jpg', scene.image)
        images.append({'id': len(images) + 1, 'file_name': f'{name}.jpg', 'width': size, 'height': size})
        annotations += _annotations(scene, len(images), len(annotations) + 1)
    categories = [{'id': d + 1, 'name': name} for d, name in enumerate(CLASSES)]
    write_json(folder / 'annotations.json', {'images': images, 'annotations': annotations, 'categories': categories})


def generate_segmentation(
    root: str | Path,
    split: str,
    *,
    seed: int = 0,
    count: int | None = None,
    size: int = 320,
    digits: tuple[int, int] = (3, 8),
    digit_size: tuple[int, int] = (24, 96),
) -> None:
    """Semantic masks: ``images/*.jpg`` and ``masks/*.png`` of the same names, values 0 = background, ``d + 1`` = digit ``d``.

    Arguments as in :func:`generate_detection`; by default 800 pictures for train and 160 for val.
    """
    spec = SceneSpec(size, tuple(digits), tuple(digit_size))  # type: ignore[arg-type]
    count = {'train': 800, 'val': 160}[sources.check_split(split)] if count is None else count
    folder = Path(root)
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, scene in _scenes(split, seed, count, spec, 'digit segmentation'):
        write_picture(folder / 'images' / f'{name}.jpg', scene.image)
        write_picture(folder / 'masks' / f'{name}.png', scene.semantic())


def generate_classification(
    root: str | Path, split: str, *, seed: int = 0, count: int | None = None, size: int = 32
) -> None:
    """One digit a picture: ``images.npz`` with ``images`` (N, size, size, 3) uint8 RGB, ``labels`` and ``indices`` (N,).

    Args:
        root: Folder to write to; it is made.
        split: ``'train'`` or ``'val'``.
        seed: Two seeds give two sets.
        count: Number of pictures, by default 4000 for train and 800 for val; classes take turns.
        size: Side of a picture in pixels, at least 16.

    Raises:
        ValueError: An argument is out of range.
    """
    if size < 16:
        raise ValueError(f'size={size} must be at least 16')
    count = {'train': 4000, 'val': 800}[sources.check_split(split)] if count is None else positive('count', count)
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10
    indices = np.empty(count, np.int64)
    for number in progress(range(count), f'digit classification {split}'):
        rng = rng_for('classification', split, seed, number)
        images[number] = sources.background(rng, split, size)
        _, indices[number] = sources.pick_digit(rng, split, int(labels[number]))
        stamp = sources.digit_stamp(rng, int(indices[number]), round(size * float(rng.uniform(0.6, 0.9))))
        top, left = (int(rng.integers(0, size - side + 1)) for side in stamp.shape)
        under = images[number, top : top + stamp.shape[0], left : left + stamp.shape[1]]
        colour = sources.contrasting_colour(rng, under)
        sources.blend(images[number], stamp * np.float32(rng.uniform(0.75, 1)), colour, top, left)
    Path(root).mkdir(parents=True, exist_ok=True)
    write_npz(Path(root) / 'images.npz', images=images, labels=labels, indices=indices)
