"""Digits extruded to solids: point clouds with normals, and turntable views over photographs.

The digit stands in the x-y plane with y up and is as thick as ``depth`` says along z; the solid lies in the unit sphere.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from . import sources
from .storage import positive, progress, rng_for, write_npz


def _outline(rng: np.random.Generator, index: int) -> np.ndarray:
    """A deformed digit as a bool mask, (h, w), with an empty border."""
    alpha = sources.warp(index, rng.uniform(-10, 10), rng.uniform(-0.2, 0.2), rng.uniform(0.8, 1.1))
    return np.pad(alpha > 0.5, 2)


def sample_surface(rng: np.random.Generator, mask: np.ndarray, depth: float, count: int) -> np.ndarray:
    """Points spread evenly over the surface of an extruded mask.

    Args:
        rng: Random stream.
        mask: Outline (h, w) bool with an empty border.
        depth: Thickness relative to the longer side of the outline.
        count: Number of points.

    Returns:
        (count, 6) float32: x, y, z in the unit sphere and the unit normal.
    """
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2)
    slope = np.stack([-cv2.Sobel(soft, cv2.CV_32F, 1, 0), -cv2.Sobel(soft, cv2.CV_32F, 0, 1)], -1)
    faces = np.argwhere(mask)
    rim = np.argwhere(mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool))
    thickness = depth * max(mask.shape)
    # a face counts twice (front and back); a rim pixel carries about 1.1 pixels of outline
    wall_share = 1.1 * len(rim) * thickness / (1.1 * len(rim) * thickness + 2 * len(faces))
    on_wall = rng.random(count) < wall_share
    pixel = np.where(
        on_wall[:, None], rim[rng.integers(len(rim), size=count)], faces[rng.integers(len(faces), size=count)]
    )
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    z = np.where(on_wall, rng.uniform(-0.5, 0.5, count), side / 2) * thickness
    place = pixel + rng.uniform(-0.5, 0.5, (count, 2)) * ~on_wall[:, None]
    outward = slope[pixel[:, 0], pixel[:, 1]]
    outward = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
    normal = np.where(
        on_wall[:, None],
        np.column_stack([outward[:, 0], -outward[:, 1], np.zeros(count)]),
        np.column_stack([np.zeros((count, 2)), side]),
    )
    height, width = mask.shape
    xyz = np.column_stack([place[:, 1] - (width - 1) / 2, (height - 1) / 2 - place[:, 0], z])
    return np.concatenate([xyz / np.linalg.norm(xyz, axis=1).max(), normal], 1).astype(np.float32)


def _solid(split: str, seed: int, number: int, count: int) -> tuple[np.random.Generator, np.ndarray, int]:
    rng = rng_for('solid', split, seed, number)
    _, index = sources.pick_digit(rng, split, number % 10)
    return rng, sample_surface(rng, _outline(rng, index), float(rng.uniform(0.15, 0.35)), count), index


def generate_points(
    root: str | Path, split: str, *, seed: int = 0, count: int | None = None, points: int = 1024
) -> None:
    """Point clouds: ``points.npz`` with ``points`` (N, points, 6) float16, ``labels`` and ``indices`` (N,).

    A row of a cloud is a position and a normal.

    Args:
        root: Folder to write to; it is made.
        split: ``'train'`` or ``'val'``.
        seed: Two seeds give two sets.
        count: Number of clouds, by default 1000 for train and 200 for val; classes take turns.
        points: Points a cloud.

    Raises:
        ValueError: An argument is out of range.
    """
    count = {'train': 1000, 'val': 200}[sources.check_split(split)] if count is None else positive('count', count)
    clouds = np.empty((count, positive('points', points), 6), np.float16)
    indices = np.empty(count, np.int64)
    for number in progress(range(count), f'digit points {split}'):
        _, clouds[number], indices[number] = _solid(split, seed, number, points)
    Path(root).mkdir(parents=True, exist_ok=True)
    write_npz(Path(root) / 'points.npz', points=clouds, labels=np.arange(count) % 10, indices=indices)


def render_view(
    surface: np.ndarray, photo: np.ndarray, colour: np.ndarray, azimuth: float, elevation: float
) -> np.ndarray:
    """Orthographic picture of a densely sampled surface, Lambert shading, light beside the camera.

    Args:
        surface: (P, 6) position in the unit sphere and normal.
        photo: Background (H, H, 3) uint8.
        colour: (3,) colour of the solid, 0 to 255.
        azimuth: Turn of the solid about its upright axis in degrees.
        elevation: Height of the camera in degrees.
    """
    size = photo.shape[0]
    a, e = np.radians([azimuth, elevation])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    rotation = (tilt @ turn).T
    position, normal = surface[:, :3] @ rotation, surface[:, 3:] @ rotation
    light = np.array([0.4, 0.5, 0.77])
    shade = 0.35 + 0.65 * np.clip(normal @ light, 0, 1)
    towards = normal[:, 2] > 0
    position, shade = position[towards], shade[towards]
    order = np.argsort(position[:, 2], kind='stable')  # the nearest is written last
    fine = 2 * size
    column = np.clip((position[order, 0] * 0.47 + 0.5) * fine, 0, fine - 1).astype(np.int64)
    row = np.clip((0.5 - position[order, 1] * 0.47) * fine, 0, fine - 1).astype(np.int64)
    grey = np.zeros((fine, fine), np.float32)
    grey[row, column] = shade[order]
    closed = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    solid = cv2.resize((closed > 0).astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)[..., None]
    lit = cv2.resize(closed, (size, size), interpolation=cv2.INTER_AREA)[..., None] * colour.astype(np.float32)
    return np.clip(photo * (1 - solid) + lit + 0.5, 0, 255).astype(np.uint8)


def generate_views(
    root: str | Path,
    split: str,
    *,
    seed: int = 0,
    count: int | None = None,
    size: int = 64,
    views: int = 12,
    elevation: float = 20.0,
) -> None:
    """Turntable views: ``views.npz`` with ``views`` (N, V, size, size, 3) uint8 RGB, ``labels`` and ``indices`` (N,).

    View ``k`` is turned by ``360 k / V`` degrees from a random start of the object.

    Args:
        root: Folder to write to; it is made.
        split: ``'train'`` or ``'val'``.
        seed: Two seeds give two sets.
        count: Number of objects, by default 300 for train and 60 for val; classes take turns.
        size: Side of a view in pixels, at least 16.
        views: Views an object.
        elevation: Height of the camera in degrees.

    Raises:
        ValueError: An argument is out of range.
    """
    if size < 16:
        raise ValueError(f'size={size} must be at least 16')
    count = {'train': 300, 'val': 60}[sources.check_split(split)] if count is None else positive('count', count)
    pictures = np.empty((count, positive('views', views), size, size, 3), np.uint8)
    indices = np.empty(count, np.int64)
    for number in progress(range(count), f'digit views {split}'):
        rng, surface, indices[number] = _solid(split, seed, number, 8 * size * size)
        photo = sources.background(rng, split, size)
        colour = np.maximum(sources.contrasting_colour(rng, photo), 60)
        start = rng.uniform(0, 360)
        for k in range(views):
            pictures[number, k] = render_view(surface, photo, colour, start + 360 * k / views, elevation)
    Path(root).mkdir(parents=True, exist_ok=True)
    write_npz(Path(root) / 'views.npz', views=pictures, labels=np.arange(count) % 10, indices=indices)
