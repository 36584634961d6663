"""Drawing results on a user's own clips: npz files of the digit motions, through the tool's own class."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from eff_plugins.datasets.digits.storage import read_clip
from eff_plugins.engine.infer import Inferencer
from eff_plugins.engine.runs import load_config
from tests.configs.test_configs import ROOT

MOTIONS = ('left', 'right', 'up', 'down', 'grow', 'shrink', 'clockwise', 'counterclockwise')


def fresh(config, folder, **meta):
    """An untrained network's checkpoint, behind the class that the tool uses."""
    cfg = load_config(str(ROOT / config))
    pytest.importorskip(cfg.default_scope)
    cfg.model.backbone.get('backbone', cfg.model.backbone).init_cfg = None
    torch.save(
        {'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {'dataset_meta': meta}}, folder / 'fresh.pth'
    )
    return Inferencer(cfg, str(folder / 'fresh.pth'))


@pytest.fixture(scope='module')
def motions(tmp_path_factory):
    return fresh('tsm/tsm_effnet-lite0_digit-motions.py', tmp_path_factory.mktemp('infer'), classes=MOTIONS)


@pytest.mark.parametrize(
    ('config', 'file', 'shape'),
    [
        ('retinanet/retinanet_effnet-lite0_bccd.py', 'bccd/images/10.jpg', (96, 128, 3)),
        ('segformer_head/segformer-head_effnet-lite0_camvid.py', 'camvid/val/images/0.jpg', (120, 160, 3)),
        ('tsm/tsm_effnet-lite0_fight-clips.py', 'fight_clips/val/0.mp4', (256, 256, 3)),
        ('pointpillars/pointpillars_invres_kitti-frames.py', 'kitti_frames/**/*.bin', (672, 1040, 3)),
    ],
)
def test_each_framework_draws_a_file(config, file, shape, tiny_root, tmp_path):
    run = fresh(config, tmp_path, classes=[str(i) for i in range(11)], palette=[(i, 9, 9) for i in range(11)])
    path = str(next(tiny_root.glob(file)))
    run.draw(path, run(path), tmp_path / 'out.png')
    assert cv2.imread(str(tmp_path / 'out.png')).shape == shape


def test_npz_clip_is_drawn_by_its_middle_frame(motions, tmp_path):
    frames = np.zeros((16, 96, 96, 3), np.uint8)
    frames[8] = (200, 120, 40)
    np.savez(tmp_path / 'clip.npz', frames=frames)
    sample = motions(str(tmp_path / 'clip.npz'))
    assert sample.pred_score.shape == (8,)
    motions.draw(str(tmp_path / 'clip.npz'), sample, tmp_path / 'out' / 'clip.png')
    picture = cv2.imread(str(tmp_path / 'out' / 'clip.png'))
    assert picture.shape == (288, 288, 3)
    assert picture[-1, -1].tolist() == [40, 120, 200]  # OpenCV reads BGR
    assert (picture[:90] != picture[-1, -1]).any()  # the text


@pytest.mark.parametrize('content', ['no npz', 'other array', 'flat frames'])
def test_foreign_file_is_named(motions, tmp_path, content):
    path = tmp_path / 'bad.npz'
    if content == 'no npz':
        path.write_text('text')
    elif content == 'other array':
        np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8))
    else:
        np.savez(path, frames=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"bad\.npz is not an npz file with 'frames'"):
        motions(str(path))


def test_bare_array_and_pickles_are_refused(tmp_path):
    np.save(tmp_path / 'bare.npy', np.zeros((2, 8, 8, 3), np.uint8))
    np.savez(tmp_path / 'pickle.npz', frames=np.array([object()], dtype=object))
    for name in ('bare.npy', 'pickle.npz'):
        with pytest.raises(ValueError, match=name):
            read_clip(tmp_path / name)
