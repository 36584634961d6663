"""Bird's-eye pictures of a point cloud with its boxes; needs numpy and OpenCV only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.runner import Runner

from eff_plugins.registry import HOOKS
from eff_plugins.visualization.hooks import DrawingHook

_SPAN = (0.0, -21.0, 65.0, 21.0)  # x min, y min, x max, y max; metres
_TRUTH_COLOUR = (90, 230, 90)  # BGR, like all colours here
_COLOURS = ((60, 130, 255), (255, 200, 60), (80, 80, 255), (230, 90, 230), (60, 230, 230))


def draw_bev(
    points: np.ndarray,
    predicted: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    truth: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    span: tuple[float, float, float, float] = _SPAN,
    pixels_per_metre: float = 16.0,
) -> np.ndarray:
    """Draw a cloud from above: x (forward) to the right, y (left) up, points coloured by height.

    Args:
        points: (P, 3 or more) x, y, z, metres.
        predicted: (N, 4, 2) ground corners of predicted boxes; the edge from corner 0 to 1 is the front.
        labels: (N,) class indices, which choose the colour.
        scores: (N,) confidences, written beside the boxes.
        truth: (M, 4, 2) corners of labelled boxes (green).
        classes: Class names for the text.
        span: Part of the ground that is drawn: x min, y min, x max, y max, metres.
        pixels_per_metre: Scale.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    import cv2

    x0, y0, x1, y1 = span
    width, height = round((x1 - x0) * pixels_per_metre), round((y1 - y0) * pixels_per_metre)
    canvas = np.full((height, width, 3), 24, np.uint8)

    def to_pixels(xy: np.ndarray) -> np.ndarray:
        return np.stack([(xy[..., 0] - x0) * pixels_per_metre, (y1 - xy[..., 1]) * pixels_per_metre], axis=-1)

    for x in range(int(np.ceil(x0 / 10)) * 10, int(x1) + 1, 10):
        column = int((x - x0) * pixels_per_metre)
        cv2.line(canvas, (column, 0), (column, height), (55, 55, 55), 1)
        _text(canvas, f'{x} m', (column + 4, height - 8), (150, 150, 150))

    place = np.floor(to_pixels(points[:, :2])).astype(int)
    inside = (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
    shade = np.uint8(np.clip((points[inside, 2] + 2.5) / 4.0, 0, 1) * 255)
    table = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS).reshape(256, 3)
    # a wash of light: no point is as bright as a box
    canvas[place[inside, 1], place[inside, 0]] = np.uint8(table[shade] * 0.6 + 70)

    if truth is not None:
        for box in truth:
            _box(canvas, to_pixels(box), _TRUTH_COLOUR, 3)
    for box, label, score in zip(predicted, labels, scores, strict=True):
        colour = _COLOURS[int(label) % len(_COLOURS)]
        corners = to_pixels(box)
        _box(canvas, corners, colour, 1)
        name = str(int(label)) if classes is None else classes[int(label)]
        right, top = corners[:, 0].max(), corners[:, 1].min()
        _text(canvas, f'{name} {score:.2f}', (int(right) + 4, int(top)), colour)
    if truth is not None:
        _text(canvas, f'labels ({len(truth)})', (8, 20), _TRUTH_COLOUR)
    _text(canvas, f'predictions ({len(predicted)})', (8, 40), (255, 255, 255))
    return canvas


def _box(canvas: np.ndarray, corners: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
    """Outline, and a line from the centre to the front."""
    import cv2

    cv2.polylines(canvas, [np.round(corners).astype(np.int32)], True, colour, thickness, cv2.LINE_AA)
    line = np.round([corners.mean(0), corners[:2].mean(0)]).astype(int)
    cv2.line(canvas, line[0].tolist(), line[1].tolist(), colour, thickness, cv2.LINE_AA)


def _text(canvas: np.ndarray, text: str, position: tuple[int, int], colour: tuple[int, int, int]) -> None:
    import cv2

    for shade, thickness in (((0, 0, 0), 3), (colour, 1)):
        cv2.putText(canvas, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.45, shade, thickness, cv2.LINE_AA)


def ground_corners(boxes: Any) -> np.ndarray:
    """(N, 4, 2) corners of mmdet3d LiDAR boxes (N, >= 7: x, y, z, length, width, height, yaw), front edge first."""
    tensor = boxes.tensor.detach().cpu().numpy().astype(np.float64)
    unit = np.array([[0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
    local = unit[None] * tensor[:, None, 3:5]
    cos, sin = np.cos(tensor[:, 6])[:, None], np.sin(tensor[:, 6])[:, None]
    turned = np.stack([local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos], axis=-1)
    return turned + tensor[:, None, :2]


def _truth_boxes(sample: Any) -> Any | None:
    """Labelled boxes of a data sample, or None."""
    annotations = getattr(sample, 'eval_ann_info', None)
    return None if not annotations else annotations.get('gt_bboxes_3d')


def draw_bev_sample(
    points: np.ndarray, sample: Any, out: str | Path, classes: Sequence[str] | None = None, score_thr: float = 0.3
) -> None:
    """Draw one of mmdet3d's data samples and save it as a picture.

    Args:
        points: (P, 3 or more) the cloud that the network saw.
        sample: ``Det3DDataSample`` with ``pred_instances_3d``; labels are drawn where ``eval_ann_info`` has them.
        out: Path of the picture.
        classes: Class names.
        score_thr: Least confidence that is drawn.

    Raises:
        OSError: The picture cannot be written.
    """
    import cv2

    found = sample.pred_instances_3d
    scores = found.scores_3d.detach().cpu().numpy()
    keep = scores >= score_thr
    truth = _truth_boxes(sample)
    picture = draw_bev(
        points,
        ground_corners(found.bboxes_3d)[keep],
        found.labels_3d.cpu().numpy()[keep],
        scores[keep],
        None if truth is None else ground_corners(truth),
        classes,
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), picture):
        raise OSError(f'cannot write the picture {out}')


def draw_bev_file(path: str | Path, sample: Any, out: str | Path, classes: Sequence[str] | None = None) -> None:
    """As :func:`draw_bev_sample` for a velodyne file of float32 x, y, z, reflectance."""
    points = np.fromfile(path, dtype=np.float32)
    if not points.size or points.size % 4:
        raise ValueError(f'{path}: {points.size} float32 values are no whole number of points (x, y, z, reflectance)')
    draw_bev_sample(points.reshape(-1, 4), sample, out, classes)


@HOOKS.register_module()
class BevVisualizationHook(DrawingHook):
    """Saves a bird's-eye picture of every tested frame.

    Args:
        out_dir: Folder for the pictures.
        score_thr: Least confidence that is drawn.
    """

    def __init__(self, out_dir: str, score_thr: float = 0.3) -> None:
        super().__init__(out_dir)
        self.score_thr = score_thr

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the batch; the names of the pictures end with those of the velodyne files."""
        classes = runner.test_dataloader.dataset.metainfo.get('classes')
        clouds = data_batch['inputs']['points']
        for points, sample in zip(clouds, outputs or (), strict=True):
            out = self.next_file(runner, sample.metainfo['lidar_path'])
            draw_bev_sample(points.detach().cpu().numpy(), sample, out, classes, self.score_thr)
