from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eff_plugins.datasets.kitti_format import read_calibration, read_label

pytest.importorskip('mmdet3d')

from mmdet3d.structures import Box3DMode
from mmengine.registry import init_default_scope

from eff_plugins.registry import DATASETS
from tests.kitti_layout import CAR, P2, write_kitti

CLASSES = dict(classes=('Pedestrian', 'Cyclist', 'Car'))
RANGE = [0, -40, -3, 70, 40, 1]
LOAD = [
    dict(type='LoadPointsFromFile', coord_type='LIDAR', load_dim=4, use_dim=4),
    dict(type='eff_plugins.PointsInCameraView'),
]
TRAIN = [
    *LOAD,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True),
    dict(type='GlobalRotScaleTrans', rot_range=[-0.1, 0.1], scale_ratio_range=[0.95, 1.05]),
    dict(type='PointsRangeFilter', point_cloud_range=RANGE),
    dict(type='ObjectRangeFilter', point_cloud_range=RANGE),
    dict(type='Pack3DDetInputs', keys=['points', 'gt_bboxes_3d', 'gt_labels_3d']),
]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet3d')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_kitti(tmp_path)


def build(root: Path, **kwargs):
    defaults = dict(type='eff_plugins.RawKittiDataset', data_root=str(root), metainfo=CLASSES, pipeline=[])
    return DATASETS.build({**defaults, **kwargs})


def test_annotations(root):
    info = build(root).get_data_info(0)
    boxes = info['ann_info']['gt_bboxes_3d']
    # the inverse of VELO: x forward, y left, z up; the box stands on the same ground point
    np.testing.assert_allclose(boxes.tensor[0, :6], [20.3, -0.98, -1.76, 4.0, 1.6, 1.5], atol=1e-5)
    assert float(boxes.tensor[0, 6]) == pytest.approx(1.5 - np.pi / 2, abs=1e-6)
    assert info['ann_info']['gt_labels_3d'].tolist() == [2]
    assert info['ann_info']['truncated'].tolist() == [0.10]
    assert info['ann_info']['occluded'].tolist() == [1]
    assert info['ann_info']['difficulty'].tolist() == [1]
    back = boxes.convert_to(Box3DMode.CAM, info['lidar2cam']).tensor[0]
    np.testing.assert_allclose(back, [1.0, 1.7, 20.0, 4.0, 1.5, 1.6, -1.5], atol=1e-5)


def test_other_classes_and_empty_boxes_do_not_train(root):
    info = build(root).get_data_info(1)
    assert info['ann_info']['gt_labels_3d'].tolist() == [2]
    assert len(info['instances']) == 2  # the car and the misc; the flat car was skipped
    everything = build(root, metainfo=None)
    assert everything.metainfo['classes'][everything.get_data_info(1)['ann_info']['gt_labels_3d'][1]] == 'Misc'


def test_training_pipeline(root):
    data = build(root, pipeline=TRAIN)
    item = data[0]
    sample = item['data_samples']
    assert item['inputs']['points'].shape[1] == 4
    assert sample.gt_instances_3d.labels_3d.tolist() == [2]
    # the frame without objects is replaced by another one
    assert data[2]['data_samples'].gt_instances_3d.labels_3d.tolist() == [2]


def test_test_mode_hands_labels_to_the_metric(root):
    pipeline = [*LOAD, dict(type='Pack3DDetInputs', keys=['points'])]
    data = build(root, pipeline=pipeline, test_mode=True)
    truth = data[0]['data_samples'].eval_ann_info
    assert [obj.name for obj in truth['kitti_objects']] == ['Car', 'DontCare']
    assert len(truth['gt_bboxes_3d']) == 1
    assert truth['lidar2img'].shape == (4, 4)
    assert data[2]['data_samples'].eval_ann_info['kitti_objects'] == []


def test_points_in_camera_view(root):
    from PIL import Image

    Image.new('RGB', (600, 370)).save(root / 'training/image_2/000003.png')
    raw = np.fromfile(root / 'training/velodyne/000003.bin', np.float32).reshape(-1, 4)
    pipeline = [*LOAD, dict(type='Pack3DDetInputs', keys=['points'])]
    kept = build(root, pipeline=pipeline, test_mode=True)[1]['inputs']['points'].numpy()
    # by hand from P2 and VELO: camera x = -y + 0.02, y = -z - 0.06, z = x - 0.3
    x, y, z = -raw[:, 1] + 0.02, -raw[:, 2] - 0.06, raw[:, 0] - 0.3
    depth = z + 0.005
    u, v = (700 * x + 600 * z + 45) / depth, (700 * y + 180 * z - 0.3) / depth
    expected = raw[(depth > 0) & (u >= 0) & (u < 600) & (v >= 0) & (v < 370)]
    assert 0 < len(expected) < len(raw) / 2
    np.testing.assert_array_equal(kept, expected)


def test_choice_of_frames(root):
    assert len(build(root, fraction=(0.0, 0.67), test_mode=True)) == 2
    assert build(root, fraction=(0.67, 1.0), test_mode=True).get_data_info(0)['frame'] == '000007'
    assert build(root, frames=['000003']).get_data_info(0)['frame'] == '000003'
    (root / 'train.txt').write_text('000000\n000003\n')
    assert len(build(root, frames='train.txt')) == 2
    for arguments, message in (
        (dict(frames=['000001']), r'no velodyne file .*000001\.bin'),
        (dict(frames='val.txt'), r'no list of frames .*val\.txt'),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            build(root, **arguments)
    with pytest.raises(ValueError, match='twice'):
        build(root, frames=['000000', '000000'])
    with pytest.raises(ValueError, match='fraction'):
        build(root, fraction=(0.5, 0.5))
    with pytest.raises(ValueError, match='nothing to train on'):
        build(root, frames=['000007'])


def test_unlabelled_split(root):
    (root / 'training').rename(root / 'testing')
    for path in (root / 'testing/label_2').iterdir():
        path.unlink()
    assert len(build(root, split='testing', test_mode=True, load_eval_anns=False)) == 3
    with pytest.raises(FileNotFoundError, match=r'no label file .*000000\.txt'):
        build(root, split='testing', test_mode=True)


def test_missing_and_broken_files(root):
    with pytest.raises(FileNotFoundError, match='no folder .*nowhere.*EFF_PLUGINS_DATA'):
        build(root / 'nowhere')
    label = root / 'training/label_2/000000.txt'
    for line, message in (
        ('Car 0 0 0 1 2 3', '7 columns'),
        (CAR.replace('4.0', 'four'), 'four'),
        (CAR.replace('4.0', 'nan'), 'finite'),
    ):
        label.write_text(f'{CAR}\n{line}\n')
        with pytest.raises(ValueError, match=rf'000000\.txt:2: not a KITTI label line.*{message}'):
            build(root)
    label.write_text(CAR)
    calib = root / 'training/calib/000003.txt'
    good = calib.read_text()
    calib.write_text(good.replace(f'P2: {P2}', 'P2: 1 2 3'))
    with pytest.raises(ValueError, match=r'000003\.txt:2: P2 needs 12 numbers'):
        build(root)
    calib.write_text(good.replace('R0_rect', 'R_rect'))
    with pytest.raises(ValueError, match=r'000003\.txt: no line R0_rect:'):
        build(root)
    calib.unlink()
    with pytest.raises(FileNotFoundError, match=r'no calibration file .*000003\.txt'):
        build(root)
    calib.write_text(good)
    points = root / 'training/velodyne/000007.bin'
    points.write_bytes(points.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r'000007\.bin: 7997 bytes is no whole number of points'):
        build(root)


def test_broken_picture(root):
    (root / 'training/image_2/000000.png').write_bytes(b'not a picture')
    with pytest.raises(ValueError, match=r'000000\.png: not a readable picture'):
        build(root)


def test_wrong_calibration_is_noticed(root):
    calib = root / 'training/calib/000000.txt'
    calib.write_text(calib.read_text().replace(f'P2: {P2}', 'P2: 700 0 90000 45 0 700 180 -0.3 0 0 1 0.005'))
    with pytest.raises(ValueError, match='none of 500 points projects'):
        build(root, pipeline=TRAIN)[0]


@pytest.mark.skipif(
    not Path(os.environ.get('EFF_PLUGINS_DATA', ''), 'kitti_frames').is_dir() or 'EFF_PLUGINS_DATA' not in os.environ,
    reason='EFF_PLUGINS_DATA does not name a folder with kitti_frames',
)
def test_real_frames():
    """Labelled boxes of real frames hold points, which tells that all three coordinate frames are right."""
    root = Path(os.environ['EFF_PLUGINS_DATA']) / 'kitti_frames'
    pipeline = [*LOAD, dict(type='Pack3DDetInputs', keys=['points'])]
    data = build(root, pipeline=pipeline, test_mode=True)
    assert len(data) >= 3
    first = data[0]
    points = first['inputs']['points'][:, :3].numpy()
    x, y, z, length, width, height, yaw = first['data_samples'].eval_ann_info['gt_bboxes_3d'].tensor[0].numpy()
    across = points[:, :2] - [x, y]
    along = across @ [np.cos(yaw), np.sin(yaw)], across @ [-np.sin(yaw), np.cos(yaw)]
    inside = (
        (abs(along[0]) < length / 2) & (abs(along[1]) < width / 2) & (points[:, 2] > z) & (points[:, 2] < z + height)
    )
    assert inside.sum() > 100  # a pedestrian at 8 m
    calibration = read_calibration(root / 'training/calib/000000.txt')
    assert abs(np.linalg.det(calibration.lidar2cam[:3, :3]) - 1) < 1e-4
    assert [obj.difficulty for obj in read_label(root / 'training/label_2/000002.txt')] == [0, 1]
