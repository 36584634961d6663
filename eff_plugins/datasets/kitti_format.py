"""The text files of the KITTI object benchmark, read with numpy alone.

Format: the development kit's readme (Geiger et al., "Are we ready for autonomous driving?", CVPR 2012). A label line is
``type truncated occluded alpha left top right bottom height width length x y z rotation_y [score]``; x, y, z is the centre
of the bottom face in the rectified frame of camera 0 (x right, y down, z forward), metres.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Limits of easy, moderate and hard: 2D box height (pixels, exclusive), occlusion level and truncation (both inclusive).
MIN_HEIGHT = (40.0, 25.0, 25.0)
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)
DIFFICULTIES = ('easy', 'moderate', 'hard')


@dataclass(frozen=True)
class KittiObject:
    """One line of a label file.

    Attributes:
        name: ``Car``, ``Pedestrian``, ... or ``DontCare``, a region without labels, of which only ``bbox`` means anything.
        truncated: Share of the object outside the image, 0 to 1.
        occluded: 0 visible, 1 partly, 2 largely occluded, 3 unknown.
        alpha: Observation angle, radians.
        bbox: left, top, right, bottom, pixels of camera 2.
        dimensions: length, height, width, metres (the order of mmdet3d's camera boxes; the file has h, w, l).
        location: x, y, z of the bottom centre, rectified camera frame, metres.
        rotation_y: Heading about the camera's y axis, radians.
    """

    name: str
    truncated: float
    occluded: int
    alpha: float
    bbox: tuple[float, float, float, float]
    dimensions: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float

    @property
    def difficulty(self) -> int:
        """0 easy, 1 moderate, 2 hard, -1 harder than that (or ``DontCare``)."""
        if self.name == 'DontCare':
            return -1
        height = self.bbox[3] - self.bbox[1]
        for level in range(3):
            if (
                height > MIN_HEIGHT[level]
                and self.occluded <= MAX_OCCLUSION[level]
                and self.truncated <= MAX_TRUNCATION[level]
            ):
                return level
        return -1

    @property
    def has_volume(self) -> bool:
        """Whether the 3D box has a positive size in every direction."""
        return min(self.dimensions) > 0


@dataclass(frozen=True)
class KittiCalibration:
    """Calibration of one frame; all matrices are (4, 4) float64.

    Attributes:
        cam2img: P2, rectified camera frame to the pixels of camera 2.
        lidar2cam: R0_rect @ Tr_velo_to_cam, velodyne to the rectified camera frame.
    """

    cam2img: np.ndarray
    lidar2cam: np.ndarray

    @property
    def lidar2img(self) -> np.ndarray:
        """Velodyne to the pixels of camera 2, homogeneous."""
        return self.cam2img @ self.lidar2cam


def _parse_label_line(line: str) -> KittiObject:
    parts = line.split()
    if len(parts) not in (15, 16):
        raise ValueError(f'{len(parts)} columns, expected 15 (or 16 with a score)')
    values = [float(part) for part in parts[1:15]]
    if not np.isfinite(values).all():
        raise ValueError('a value is not finite')
    height, width, length = values[7:10]
    return KittiObject(
        name=parts[0],
        truncated=values[0],
        occluded=int(values[1]),
        alpha=values[2],
        bbox=(values[3], values[4], values[5], values[6]),
        dimensions=(length, height, width),
        location=(values[10], values[11], values[12]),
        rotation_y=values[13],
    )


def read_label(path: str | Path) -> list[KittiObject]:
    """All objects of a label file, ``DontCare`` regions included; an empty file gives an empty list.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is malformed; the message has file and line number.
    """
    path = Path(path)
    objects = []
    for number, line in enumerate(_read(path, 'label').splitlines(), start=1):
        if line.strip():
            try:
                objects.append(_parse_label_line(line))
            except ValueError as error:
                raise ValueError(f'{path}:{number}: not a KITTI label line ({error}): {line.strip()!r}') from error
    return objects


def read_calibration(path: str | Path) -> KittiCalibration:
    """Read ``P2``, ``R0_rect`` and ``Tr_velo_to_cam`` of a calibration file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is malformed (with its number) or one of the three matrices is missing.
    """
    path = Path(path)
    shapes = {'P2': (3, 4), 'R0_rect': (3, 3), 'Tr_velo_to_cam': (3, 4)}
    found = {}
    for number, line in enumerate(_read(path, 'calibration').splitlines(), start=1):
        key, _, rest = line.partition(':')
        if key.strip() in shapes:
            rows, columns = shapes[key.strip()]
            try:
                values = np.array([float(part) for part in rest.split()])
                matrix = np.eye(4)
                matrix[:rows, :columns] = values.reshape(rows, columns)
            except ValueError as error:
                raise ValueError(
                    f'{path}:{number}: {key.strip()} needs {rows * columns} numbers ({error}): {line.strip()!r}'
                ) from error
            if not np.isfinite(matrix).all():
                raise ValueError(f'{path}:{number}: {key.strip()} holds a value that is not finite')
            found[key.strip()] = matrix
    missing = [key for key in shapes if key not in found]
    if missing:
        raise ValueError(
            f'{path}: no line {", ".join(f"{key}:" for key in missing)}; is it a KITTI object calibration?'
        )
    return KittiCalibration(cam2img=found['P2'], lidar2cam=found['R0_rect'] @ found['Tr_velo_to_cam'])


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise FileNotFoundError(
            f'no {what} file {path}; every frame needs one (see the layout in the docs of RawKittiDataset)'
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not a text file ({error})') from error


def project_to_image(points: np.ndarray, lidar2img: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and depths of velodyne points.

    Args:
        points: (..., 3) metres.
        lidar2img: (4, 4).

    Returns:
        Pixels (..., 2), meaningful where the depth is positive, and depths (...,).
    """
    points = np.asarray(points, dtype=np.float64)
    projected = points @ lidar2img[:3, :3].T + lidar2img[:3, 3]
    depth = projected[..., 2]
    safe = np.where(abs(depth) < 1e-9, 1e-9, depth)
    return projected[..., :2] / safe[..., None], depth
