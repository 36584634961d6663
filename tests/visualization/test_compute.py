"""The compute heat map: its values, its way back to the picture, and its place in the drawings of the tools."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from eff_plugins import dynamic
from eff_plugins.dynamic.module import decisions
from eff_plugins.dynamic.recorder import Stats, emit, record
from eff_plugins.dynamic.watch import Pass, Watch
from eff_plugins.engine.execution import ExecutionHook, Operation
from eff_plugins.engine.infer import Inferencer
from eff_plugins.engine.runs import build_runner, load_config, show_predictions
from eff_plugins.registry import MODELS
from eff_plugins.visualization.compute import (
    compute_map,
    compute_panel,
    executed_share,
    legend_lines,
    paint,
    stage_masks,
    stage_tiles,
    undo,
    with_legend,
)
from tests.configs.test_configs import HOSTS, ROOT, shrink
from tests.toy_spatial import toy


class Module(nn.Module):
    """Two calls of dynamic modules: one with a mask over the left half for sample 0, one that skips for sample 1."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Identity(), nn.Identity()

    def forward(self):
        left = torch.zeros(2, 1, 2, 2)
        left[0, :, :, 0] = 1
        emit(
            self.a,
            dense_macs=60.0,
            macs=torch.tensor([31.0, 1.0]),
            policy_macs=1.0,
            density=left.mean((1, 2, 3)),
            mask=left,
        )
        emit(self.b, dense_macs=20.0, macs=torch.tensor([20.0, 4.0]), policy_macs=0.0, density=torch.tensor([1.0, 0.2]))


@pytest.fixture
def stats() -> Stats:
    model = Module()
    with record(model) as found:
        model()
    return found


def test_the_map_is_the_share_of_the_dense_network_at_each_place(stats):
    heat = compute_map(stats, (4, 6), 0, network_macs=100.0)
    # static layers 20, a policy 1, the module without a mask 20, the masked one 60 on the left
    assert np.allclose(heat[:, :3], 1.01) and np.allclose(heat[:, 3:], 0.41)
    assert np.allclose(compute_map(stats, (4, 6), 1, network_macs=100.0), 0.25)
    assert np.allclose(compute_map(stats, (2, 2), 1), 5 / 80)  # without a static part
    # the mean over the places is what was executed
    assert executed_share(stats, 0, 100.0) == pytest.approx(heat.mean())
    assert executed_share(stats, 1, 100.0) == pytest.approx(0.25)
    with pytest.raises(ValueError, match='sample=2: 2 samples were recorded'):
        compute_map(stats, (4, 4), 2)
    with pytest.raises(ValueError, match='sample=0: 0 samples'):
        compute_map(Stats(Module()), (4, 4))


def test_samples_that_did_not_come_to_a_module_share_its_mean():
    model = Module()
    with record(model) as stats:
        emit(model.a, dense_macs=10.0, macs=torch.tensor([10.0, 10.0]), policy_macs=0.0, density=torch.ones(2))
        emit(model.b, dense_macs=10.0, macs=torch.tensor([10.0]), policy_macs=0.0, density=torch.ones(1))
    assert np.allclose(compute_map(stats, (1, 1), 1), 0.75)


def test_what_is_off_costs_its_least():
    model = Module()
    left = torch.tensor([[[[1.0, 0.0]]]])
    with record(model) as stats:
        emit(
            model.a,
            dense_macs=80.0,
            macs=torch.tensor([54.0]),
            policy_macs=4.0,
            least_macs=24.0,  # a quarter, as in half the resolution
            density=torch.tensor([0.5]),
            mask=left,
        )
    heat = compute_map(stats, (1, 2), 0, network_macs=100.0)
    assert np.allclose(heat, [[1.04, 0.44]])
    assert legend_lines(Pass(stats, (1, 2), 100.0, 1), 0) == ['spent 74 % of dense, floor 44 %']


def test_pictures_that_are_reported_one_by_one():
    model = Module()
    with record(model) as stats:
        for dense, spent in ((100.0, 40.0), (200.0, 150.0)):
            emit(model.a, dense_macs=dense, macs=torch.tensor([spent]), policy_macs=1.0, density=torch.ones(1))
    assert executed_share(stats, 0, 100.0) == pytest.approx(0.4) and executed_share(stats, 1, 200.0) == pytest.approx(
        0.75
    )
    assert compute_map(stats, (1, 1), 1, 200.0).item() == pytest.approx(0.75)


def test_a_choice_is_written_in_the_legend(stats):
    for labels, wanted in (((), 'a: choice 2'), (('exit 0', 'exit 1', 'exit 2'), 'a: exit 2')):
        entries = [replace(stats.entries[0], choice=torch.tensor([2, 0]), labels=labels)]
        done = Pass(SimpleNamespace(entries=entries, samples=2), (4, 4), 60.0, 2)
        assert legend_lines(done, 0) == ['spent 52 % of dense, floor 2 %', wanted]


def decide(model, mask_of):
    """Let every decision of a dynamic network be ``mask_of(scores)``."""
    for step in decisions(model):
        step.forward = mask_of
        step.cut = lambda scores: (mask_of(scores), 0.5)
    return dynamic.set_execution(model.eval(), 'sparse')


def last_rows(scores):
    on = torch.zeros_like(scores)
    on[..., -1, :] = 1
    return on


@pytest.mark.parametrize('side', [96, 93])
def test_patches_that_stand_out_of_a_map_are_painted_where_they_are(side):
    net = decide(
        MODELS.build(dict(type='eff_plugins.LASNet', depth=18, base_channels=4, granularity=(7, 7, 4, 2))), last_rows
    )
    with record(net) as stats, torch.no_grad():
        net(torch.randn(1, 3, side, side))
    masks = stage_masks(stats, (side, side))
    densities = {entry.name.split('.')[0]: float(entry.density) for entry in stats.entries}
    # maps of 24, 12, 6 and 3 positions: what is left for the last row of patches, in pixels
    for stage, first in dict(layer1=21 * 4, layer2=7 * 8, layer3=4 * 16, layer4=2 * 32).items():
        assert (masks[stage][:first] == 0).all() and (masks[stage][first:] == 1).all(), stage
        if side == 96:
            assert masks[stage].mean() == pytest.approx(densities[stage])


@pytest.mark.parametrize('kind', ['SegBlocks', 'SBNet'])
def test_blocks_that_stand_out_of_a_picture_are_painted_where_they_are(kind):
    backbone = dict(type='eff_plugins.ResNet', depth=18, base_channels=8)
    net = decide(
        MODELS.build(dict(type=f'eff_plugins.{kind}', backbone=backbone, block_size=64, policy=dict(width=4))),
        last_rows,
    )
    x = torch.randn(1, 3, 160, 192)
    total = dynamic.network_macs(net, lambda: net(x), 1)
    with record(net) as stats, torch.no_grad():
        net(x)
    heat = compute_map(stats, (160, 192), 0, total)
    assert np.ptp(heat[:128]) < 1e-6 and np.ptp(heat[128:]) < 1e-6 and heat[-1, 0] > heat[0, 0] + 0.3
    # borders and halos apart, which are computed beside the blocks
    assert heat.mean() == pytest.approx(executed_share(stats, 0, total), rel=0.05)
    assert all(masks[:128].max() == 0 and masks[128:].min() == 1 for masks in stage_masks(stats, (160, 192)).values())


def test_windows_of_a_picture_have_no_map():
    net, pictures = toy(), torch.randn(2, 3, 32, 64)
    slide = nn.Sequential(dynamic.set_execution(net, 'sparse'))
    slide.forward = lambda x: [net(part) for part in x.split(32, 3)]
    watch = Watch(slide)
    with torch.no_grad():
        slide(pictures)
        assert (watch.last.batch, watch.last.stats.samples) == (2, 4)
        assert compute_panel(np.zeros((32, 64, 3), np.uint8), watch.last, 0, {}) is None
        slide(pictures[..., :32])
    assert compute_panel(np.zeros((32, 32, 3), np.uint8), watch.last, 0, {}) is not None


def test_a_picture_a_stage_shows_the_share_of_its_blocks():
    model = nn.Sequential()
    model.backbone = nn.ModuleDict(dict(layer1=nn.ModuleList([nn.Identity(), nn.Identity()]), layer2=nn.ModuleList()))
    model.backbone['layer2'].append(nn.Identity())
    left, all_on = torch.tensor([[[[1.0, 0.0]]]]), torch.ones(1, 1, 1, 1)
    fields = dict(dense_macs=50.0, macs=torch.tensor([25.0]), policy_macs=0.0, density=torch.tensor([0.5]))
    with record(model) as stats:
        for block, mask in zip(
            [*model.backbone['layer1'], *model.backbone['layer2']], (left, all_on, left), strict=True
        ):
            emit(block, **fields, mask=mask)
    masks = stage_masks(stats, (2, 4))
    assert list(masks) == ['layer1', 'layer2']
    assert np.array_equal(masks['layer1'], [[1, 1, 0.5, 0.5]] * 2) and np.array_equal(
        masks['layer2'], [[1, 1, 0, 0]] * 2
    )
    picture = np.full((20, 300, 3), 100, np.uint8)
    panel = compute_panel(picture, Pass(stats, (2, 4), 150.0, 1), 0, {})
    tiles = {name: undo(mask, {}, (20, 300)) for name, mask in masks.items()}
    below = stage_tiles(picture, tiles, 300)
    assert np.array_equal(panel[-len(below) :], below) and below.shape[1] == 300
    middle = below[2 + 20 * 148 // 300 // 2].astype(int)  # red minus blue: half on is cooler than on, warmer than off
    assert middle[40, 0] > middle[40, 2] and middle[260, 2] > middle[260, 0]
    stacked = stage_tiles(picture[:, :100], {name: tile[:, :100] for name, tile in tiles.items()}, 100)
    assert stacked.shape[1] == 100 and len(stacked) > 40  # one below the other where there is no room
    one = Pass(SimpleNamespace(entries=stats.entries[:2], samples=1), (2, 4), 150.0, 1)
    assert len(compute_panel(picture, one, 0, {})) < len(panel)  # of a single stage the map shows all


@pytest.mark.parametrize(
    ('metainfo', 'height', 'width'),
    [
        (dict(ori_shape=(30, 20), scale_factor=(2.0, 2.0), img_shape=(64, 64)), 60, 40),  # a padding step set img_shape
        (dict(img_shape=(48, 64)), 48, 64),
        ({}, 64, 64),
    ],
)
def test_padding_and_resizing_are_undone(metainfo, height, width):
    heat = np.zeros((64, 64), np.float32)
    heat[: height // 2, : width // 4] = 1
    back = undo(heat, metainfo, (30, 20))
    assert back.shape == (30, 20)
    assert back[:14, :4].min() == 1 and back[16:].max() == 0 and back[:, 6:].max() == 0


def test_painting():
    picture = np.full((8, 300, 3), 100, np.uint8)
    heat = np.zeros((8, 300), np.float32)
    heat[:, 150:] = 1
    painted = paint(picture, heat)
    cold, hot = painted[0, 0].astype(int), painted[0, -1].astype(int)
    assert cold[2] > cold[0] and hot[0] > hot[2] and painted.shape == picture.shape
    assert np.array_equal(paint(picture, heat, 0.0), picture)
    whole = with_legend(painted, ['60 %'])
    assert whole.shape[0] > 8 + 30 and whole.shape[1] == 300 and np.array_equal(whole[:8], painted)
    assert with_legend(painted[:, :20], []).shape[1] >= 200  # the scale needs room
    with pytest.raises(ValueError, match='does not cover'):
        paint(picture, heat[:4])


def test_a_watch_counts_the_dense_network_once_for_each_size():
    net = dynamic.set_execution(toy(), 'sparse')
    for level in net.levels:
        level.decide.threshold = 0.3
    calls, seen = [], []
    net.stem.register_forward_hook(lambda *_: calls.append(1))
    watch = Watch(net, seen.append)
    with torch.no_grad():
        for size in (32, 64, 32):
            x = torch.randn(2, 3, size, size)
            out = net(x)[0]
            assert watch.last.size == (size, size) and watch.last.stats.samples == 2
            assert watch.last.network_macs == dynamic.network_macs(net, lambda x=x: net.forward(x), 2)
    assert len(calls) == 3 + 2 + 3 and len(seen) == 3
    watch.remove()
    assert torch.equal(net(x)[0], out) and len(seen) == 3
    assert all(module.execution == 'sparse' for _, module in dynamic.module.dynamic_modules(net))


# scope -> (height, width) of a picture of the tiny data, drawings side by side without the map
PICTURES = {'mmdet': (96, 128), 'mmseg': (120, 160), 'eff_plugins': (288, 288)}
CONFIGS = {'mmdet': 'toy_det', 'mmseg': 'toy_seg', 'eff_plugins': 'toy_cls'}


@pytest.mark.parametrize('scope', CONFIGS)
def test_the_map_stands_beside_the_predictions(scope, tiny_root, tmp_path):
    if scope in HOSTS:
        pytest.importorskip(scope)
    config = str(ROOT.parent / 'tests/data' / f'{CONFIGS[scope]}.py')
    cfg = shrink(load_config(config), tmp_path / 'work')
    cfg.experiment_name = f'compute_{scope}'
    show_predictions(cfg, str(tmp_path / 'shown'))
    runner = build_runner(cfg)
    runner.model.init_weights()
    torch.save({'state_dict': runner.model.state_dict()}, tmp_path / 'fresh.pth')
    runner._load_from = str(tmp_path / 'fresh.pth')
    hook = ExecutionHook(Operation('sparse'))
    runner.register_hook(hook)
    runner.test()
    assert 0 < hook.spent.share < 1 and 0 < hook.spent.density < 1 and hook.watch is None
    height, width = PICTURES[scope]
    panels = 1 if scope == 'eff_plugins' else 2  # labels beside predictions
    shown = [cv2.imread(str(path)) for path in sorted((tmp_path / 'shown').iterdir())]
    assert len(shown) == 2
    for picture in shown:
        assert picture.shape[0] > height and picture.shape[1] > (panels + 0.9) * width
        panel = picture[:height, panels * width : panels * width + width].astype(int)
        assert np.abs(panel[..., 0] - panel[..., 2]).mean() > 20  # coloured, not grey
        assert (picture[height:, : panels * width] == 255).all() and (picture[height:] < 250).any()

    run = Inferencer(shrink(load_config(config), tmp_path / 'work'), str(tmp_path / 'fresh.pth'))
    source = sorted((tiny_root / 'camvid/val/images').glob('*.jpg'))[0]
    run.draw(str(source), run(str(source)), tmp_path / 'own.png')
    drawn = cv2.imread(str(tmp_path / 'own.png'))
    scale = 2 if scope == 'eff_plugins' else 1  # a small picture is enlarged for the text
    assert drawn.shape[0] > 120 * scale and drawn.shape[1] > 1.9 * 160 * scale
