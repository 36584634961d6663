"""``tools/test.py --show-dir``: one decodable picture for each tested item, for every framework and for classification."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from eff_plugins.engine.runs import build_runner, load_config, show_predictions
from eff_plugins.visualization.hooks import DrawingHook
from tests.configs.test_configs import HOSTS, ROOT, shrink

# config, names of the pictures, (height, width) of each; labels are drawn beside the predictions of mmdet and mmseg
CASES = {
    'mmdet': ('retinanet/retinanet_effnet-lite0_bccd.py', ['00000_10', '00001_11'], (96, 2 * 128)),
    'mmseg': ('segformer_head/segformer-head_effnet-lite0_camvid.py', ['00000_0', '00001_1'], (120, 2 * 160)),
    'mmaction': ('tsm/tsm_effnet-lite0_fight-clips.py', ['00000', '00001'], (224, 320)),
    'mmdet3d': ('pointpillars/pointpillars_invres_kitti-frames.py', None, (672, 1040)),
    'eff_plugins': ('image_classification/effnet-lite0_cifar10.py', ['00000', '00001'], (288, 288)),
}


@pytest.mark.parametrize('scope', CASES)
def test_every_tested_item_has_a_picture(scope, tiny_root, tmp_path):
    if scope in HOSTS:
        pytest.importorskip(scope)
    config, names, shape = CASES[scope]
    cfg = shrink(load_config(str(ROOT / config)), tmp_path / 'work')
    cfg.experiment_name = f'show_{scope}'
    folder = tmp_path / 'pictures'
    show_predictions(cfg, str(folder))
    runner = build_runner(cfg)
    torch.save({'state_dict': runner.model.state_dict()}, tmp_path / 'fresh.pth')
    runner._load_from = str(tmp_path / 'fresh.pth')
    runner.test()
    if names is None:
        rows = [runner.test_dataloader.dataset.get_data_info(i) for i in range(2)]
        names = [f'{i:05d}_{Path(row["lidar_points"]["lidar_path"]).stem}' for i, row in enumerate(rows)]
    assert sorted(path.name for path in folder.iterdir()) == [f'{name}.png' for name in names]
    for path in folder.iterdir():
        picture = cv2.imread(str(path))
        assert picture is not None and picture.shape[:2] == shape
        assert picture.std() > 1


def test_a_framework_without_drawings_is_named():
    cfg = load_config(str(ROOT / CASES['eff_plugins'][0]))
    cfg.default_scope = 'mmpose'
    with pytest.raises(ValueError, match=r"mmdet3d, eff_plugins, not for 'mmpose'"):
        show_predictions(cfg, 'out')


def test_processes_write_to_places_of_their_own_and_names_do_not_clash(tmp_path):
    """Five items on two processes: the sixth is the first again, as mmengine's sampler has it."""
    places = {}
    for rank in range(2):
        runner = SimpleNamespace(rank=rank, world_size=2, test_dataloader=SimpleNamespace(dataset=range(5)))
        hook = DrawingHook(str(tmp_path))
        for _ in range(2):  # a second test begins anew
            hook.before_test(runner)
            places[rank] = [hook.next_file(runner, f'{i}/same.jpg').name for i in range(3)]
    assert places == {
        0: ['00000_same.png', '00002_same.png', '00004_same.png'],
        1: ['00001_same.png', '00003_same.png', '00000_same.png'],
    }
