from __future__ import annotations

import numpy as np
import pytest

from eff_plugins.visualization.bev import draw_bev, draw_bev_file, ground_corners

SPAN = (0.0, -10.0, 20.0, 10.0)
GREEN = (90, 230, 90)


def square(x: float, y: float) -> np.ndarray:
    return np.array([[x + 1, y - 1], [x + 1, y + 1], [x - 1, y + 1], [x - 1, y - 1]])


def coloured(picture: np.ndarray, colour: tuple) -> np.ndarray:
    """Places (N, 2) in metres of the pixels of one colour, for SPAN at 10 pixels a metre."""
    rows, columns = np.nonzero((picture == colour).all(-1))
    return np.stack([columns / 10, 10 - rows / 10], axis=1)


def draw(**kwargs) -> np.ndarray:
    arguments = dict(
        points=np.zeros((0, 4)), predicted=np.zeros((0, 4, 2)), labels=np.zeros(0, int), scores=np.zeros(0), span=SPAN
    )
    return draw_bev(**{**arguments, **kwargs}, pixels_per_metre=10)


def test_boxes_are_where_they_should_be():
    """x to the right, y up: a box at (15, 5) is in the upper right quarter."""
    picture = draw(truth=square(15, 5)[None])
    assert picture.shape == (200, 200, 3)
    places = coloured(picture[40:], GREEN)  # without the text
    places[:, 1] -= 4
    assert len(places) > 20
    np.testing.assert_allclose(places.min(0), [14, 4], atol=0.25)
    np.testing.assert_allclose(places.max(0), [16, 6], atol=0.25)
    drawn = draw(
        predicted=square(15, -5)[None], labels=np.array([1]), scores=np.array([0.8]), classes=['Car', 'Cyclist']
    )
    assert (drawn != draw()).any(-1)[100:, 100:].sum() > 60
    assert not (drawn != draw()).any(-1)[100:, :100].any()


def test_points_outside_are_left_out():
    points = np.array([[5, 5, 0, 0], [-5, 0, 0, 0], [5, 50, 0, 0], [500, 0, 0, 0.0]])
    changed = (draw(points=points) != draw()).any(-1)
    assert np.argwhere(changed).tolist() == [[50, 50]]


def test_sample_to_file(tmp_path):
    pytest.importorskip('mmdet3d')
    import cv2
    import torch
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    boxes = LiDARInstance3DBoxes(torch.tensor([[20.0, 3, -1, 4, 2, 1.5, np.pi / 2], [30, 0, -1, 4, 2, 1.5, 0]]))
    corners = ground_corners(boxes)
    np.testing.assert_allclose(corners[0].max(0) - corners[0].min(0), [2, 4], atol=1e-5)
    np.testing.assert_allclose(corners[1, :2].mean(0), [32, 0], atol=1e-5)  # the front
    sample = Det3DDataSample(
        pred_instances_3d=InstanceData(
            bboxes_3d=boxes, scores_3d=torch.tensor([0.9, 0.1]), labels_3d=torch.tensor([0, 2])
        )
    )
    cloud = tmp_path / 'cloud.bin'
    np.random.default_rng(0).uniform(0, 30, (200, 4)).astype(np.float32).tofile(cloud)
    out = tmp_path / 'new' / 'picture.png'
    draw_bev_file(cloud, sample, out)
    assert cv2.imread(str(out)).shape == (672, 1040, 3)
    cloud.write_bytes(b'123')
    with pytest.raises(ValueError, match=r'cloud\.bin: .*no whole number of points'):
        draw_bev_file(cloud, sample, out)
