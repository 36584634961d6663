"""SegBlocks and SBNet on small backbones of several families."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from mmengine.runner import load_state_dict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins import dynamic
from eff_plugins.dynamic.module import EXECUTIONS
from eff_plugins.engine.reinforce import block_means, pixel_loss
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.resnext import ResNeXt
from eff_plugins.models.image.shufflenet import ShuffleNetV1, ShuffleNetV2
from eff_plugins.models.spatial.sbnet import SBNet
from eff_plugins.models.spatial.segblocks import SegBlocks
from eff_plugins.ops.dual import DualGrid, halve

STAGES = [
    dict(channels=8, repeats=2, expand=2, stride=2),
    dict(channels=12, repeats=3, stride=2, expand=2, kernel=5),
    dict(channels=16, repeats=2, stride=2, expand=2),
]
BACKBONES = {
    'resnet': lambda: ResNeXt(dict(depths=[2, 1, 2, 1], cardinality=1, width=16), out_indices=(0, 1, 2)),
    'groups': lambda: ResNeXt(dict(depths=[2, 1, 2, 1], cardinality=2, width=8), out_indices=(0, 1, 2)),
    'symmetric': lambda: InvertedResidualNet(dict(stages=STAGES, stem_channels=8), out_indices=(1, 2, 3)),
    'same padding': lambda: InvertedResidualNet(dict(stages=STAGES, stem_channels=8, padding='same'), (1, 2, 3)),
    'squeeze-excite': lambda: InvertedResidualNet(
        dict(stages=[{**stage, 'se': 0.25} for stage in STAGES], stem_channels=8), out_indices=(0, 2, 3)
    ),
    'channel shuffle': lambda: ShuffleNetV2(out_indices=(1, 2)),
    'average pooling': lambda: ShuffleNetV1(out_indices=(1, 2)),
}
PLAIN = ('resnet', 'groups', 'symmetric')


def randomised(net, seed=0):
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    return net.eval()


def network(name, kind=SegBlocks, **kwargs):
    torch.manual_seed(0)
    static = randomised(BACKBONES[name]())
    net = randomised(kind(copy.deepcopy(static), **dict(dict(block_size=32, policy=dict(width=4)), **kwargs)))
    net.backbone.load_state_dict(static.state_dict())
    return net, static


def pictures(batch=3, size=(97, 120), seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 3, 4, generator=generator)  # so that blocks differ
    return torch.nn.functional.interpolate(4 * coarse, size) + torch.randn(batch, 3, *size, generator=generator)


def difference(ours, wanted):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, wanted, strict=True))


@torch.no_grad()
def run(net, execution, x):
    with dynamic.record(net) as stats:
        out = dynamic.set_execution(net, execution)(x)
    return out, stats


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('size', [(96, 128), (97, 75)])
def test_blocks_of_one_resolution_are_the_plain_network(name, size):
    net, static = network(name)
    x = pictures(2, size)
    with torch.no_grad():
        full, half = static(x), static(halve(x))
    assert difference(run(dynamic.set_policy(net, 'all'), 'dense', x)[0], full) == 0
    for execution in ('masked', 'sparse'):
        assert difference(run(dynamic.set_policy(net, 'all'), execution, x)[0], full) <= 1e-5
        outs, _ = run(dynamic.set_policy(net, 'none'), execution, x)
        doubled = [y.repeat_interleave(2, 2).repeat_interleave(2, 3) for y in half]
        doubled = [y[:, :, : out.shape[2], : out.shape[3]] for y, out in zip(doubled, outs, strict=True)]
        assert difference(outs, doubled) <= 1e-5


@pytest.mark.parametrize('name', BACKBONES)
def test_masked_equals_sparse_and_samples_decide_for_themselves(name):
    net, _ = network(name)
    x = pictures()
    dynamic.set_policy(net, 'learned')
    with torch.no_grad():
        net.decide.threshold = float(net.policy(x).median())
    (masked, stats), (sparse, _) = run(net, 'masked', x), run(net, 'sparse', x)
    assert difference(sparse, masked) <= 1e-4
    mask = stats.entries[0].mask
    assert mask.shape == (3, 1, 4, 4) and len(mask.flatten(1).unique(dim=0)) > 1
    for i in range(3):  # neighbours in a batch do not matter
        alone, _ = run(net, 'sparse', x[i : i + 1])
        assert difference(alone, [y[i : i + 1] for y in sparse]) <= 1e-5


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('execution', ['masked', 'sparse'])
@pytest.mark.parametrize('kind', ['all', 'random', 'none'])
def test_reported_multiply_adds_are_what_is_executed(name, execution, kind):
    net, _ = network(name)
    dynamic.set_policy(net, kind)
    net.decide.density = 0.4
    x = pictures()
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    with FlopCounterMode(display=False) as counter:
        _, stats = run(net, execution, x)
    (entry,) = stats.entries
    assert float(entry.macs.sum()) == pytest.approx(counter.get_total_flops() / 2, rel=1e-4)
    share = float(stats.share(total))
    low, high = dict(all=(1.0, 1.4), random=(0.4, 0.95), none=(0.25, 0.6))[kind]
    assert low < share < high


def test_training_gives_every_parameter_a_gradient():
    net, _ = network('symmetric')
    net.train()
    x = pictures()
    with dynamic.record(net) as stats:
        outs = net(x)
    (entry,) = stats.entries
    assert entry.mask.unique().tolist() == [0.0, 1.0]  # samples, not probabilities
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    loss = sum(y.square().mean() for y in outs) + (stats.share(total) - 0.4) ** 2
    loss.backward(retain_graph=True)
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert float(net.policy.score.bias.grad) > 0  # towards fewer blocks in full resolution
    net.zero_grad()
    entry.log_prob.sum().backward()
    on = float(entry.mask.mean())
    probability = float(entry.scores.sigmoid().mean())
    assert float(net.policy.score.bias.grad) == pytest.approx((on - probability) * entry.mask.numel(), rel=1e-3)


@pytest.mark.parametrize('kind', ['learned', 'random'])
def test_the_knob_meets_a_budget(kind):
    net, _ = network('same padding')
    data = [pictures(6, (64, 160), seed=2), pictures(4, (64, 96), seed=3)]
    dynamic.set_policy(net, kind)
    torch.manual_seed(0)
    dynamic.calibrate(net, data)
    dynamic.set_execution(net, 'sparse')
    shares = []
    for budget in (0.95, 0.8, 0.65):
        dynamic.set_budget(net, budget)
        spent = total = 0.0
        for x in data:
            macs = dynamic.network_macs(net, lambda x=x: net(x), len(x)) * len(x)
            spent += macs * float(run(net, 'sparse', x)[1].share(macs / len(x)))
            total += macs
        shares.append(spent / total)
        assert shares[-1] == pytest.approx(budget, abs=0.08)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize('kind', [SegBlocks, SBNet])
def test_copies_pickles_keys_and_bfloat16(kind):
    net, static = network('symmetric', kind)
    x = pictures(2)
    net.decide.threshold = 0.0
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert difference(run(twin, 'sparse', x)[0], run(net, 'sparse', x)[0]) == 0
    keys = {k.removeprefix('backbone.'): v.shape for k, v in net.state_dict().items() if not k.startswith('policy.')}
    assert keys == {k: v.shape for k, v in static.state_dict().items()}
    low = copy.deepcopy(net).bfloat16()
    dynamic.set_policy(low, 'none')
    dynamic.set_policy(net, 'none')
    ours = [y.float() for y in run(low, 'sparse', x.bfloat16())[0]]
    assert difference(ours, run(net, 'sparse', x)[0]) < 0.1


@pytest.mark.parametrize('name', PLAIN)
@pytest.mark.parametrize('block', [32, 64])
@pytest.mark.parametrize('instruction_set', [None, 'avx2'], indirect=True)
def test_sbnet_computes_residual_branches_in_active_blocks(name, block, instruction_set):
    net, static = network(name, SBNet, block_size=block)
    x = pictures(3, (129, 140))
    with torch.no_grad():
        wanted = static(x)
    for execution in EXECUTIONS:
        assert difference(run(dynamic.set_policy(net, 'all'), execution, x)[0], wanted) <= 1e-5
    dynamic.set_policy(net, 'random')
    for net.decide.density in (0.0, 0.15, 0.6):
        outs = {}
        for execution in ('masked', 'sparse'):
            torch.manual_seed(2)
            with FlopCounterMode(display=False) as counter:
                outs[execution], stats = run(net, execution, x)
        assert difference(outs['sparse'], outs['masked']) <= 1e-4
        assert difference(outs['sparse'], wanted) > 0.01
        total = dynamic.network_macs(net, lambda: net(x), len(x))
        assert float(total - stats.saved_macs()) * 3 == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    assert stats.entries[0].mask.shape == (3, 1, -(-129 // block), -(-140 // block))


def test_sbnet_takes_a_mask_and_trains():
    net, _ = network('symmetric', SBNet)
    x = pictures(2, (64, 96))
    mask = torch.zeros(2, 1, 64, 96)
    mask[0, 0, 40, 5] = mask[1, 0, 0, 95] = 1
    net.use_mask(mask)
    _, stats = run(net, 'sparse', x)
    assert stats.entries[0].mask[:, 0].nonzero().tolist() == [[0, 1, 0], [1, 0, 2]]
    with pytest.raises(ValueError, match='the mask is'):
        net(pictures(2, (64, 64)))
    with pytest.raises(ValueError, match='decides nothing here'):
        dynamic.calibrate(net, [x])
    net.use_mask(None)
    net.train()
    dynamic.set_execution(net, 'masked')
    with dynamic.record(net) as stats:
        outs = net(x)
    total = dynamic.network_macs(net, lambda: net(x), len(x))
    (sum(y.square().mean() for y in outs) + stats.share(total)).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_bad_arguments_are_named():
    backbone = BACKBONES['resnet']
    with pytest.raises(ValueError, match='block_size=48 must be a multiple of 32'):
        SegBlocks(backbone(), block_size=48)
    with pytest.raises(ValueError, match='multiple of 64, twice'):
        SBNet(ResNeXt(dict(depths=[1, 1, 1, 1], cardinality=1, width=4)), block_size=32)
    with pytest.raises(ValueError, match='with_cp=True'):
        SegBlocks(ResNeXt(dict(depths=[1, 1, 1, 1], cardinality=1, width=4), with_cp=True))
    with pytest.raises(ValueError, match='ShuffleNetV2 has no residual block'):
        SBNet(ShuffleNetV2(out_indices=(1, 2)))
    net, static = network('resnet')
    with pytest.raises(ValueError, match='a picture of 8x8 is too small for blocks of two resolutions'):
        dynamic.set_execution(net, 'masked')(pictures()[:, :, :8, :8])
    assert [len(y) for y in net(pictures()[:0])] == [0] * len(static.out_channels)
    with pytest.raises(RuntimeError, match='training mode'):
        dynamic.set_execution(net, 'sparse').train()(pictures())
    with pytest.raises(TypeError, match='SqueezeExcite in a residual branch'):
        network('squeeze-excite', SBNet)


class Wrapper(dynamic.module.WrapsStatic, nn.Module):
    """Around a network that is a wrapper itself."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def test_tables_are_freed_with_their_grid():
    grid = DualGrid(torch.tensor([[[True, False], [False, True]]]), (96, 128), 64)
    assert grid.combine(grid.split(torch.randn(1, 3, 96, 128)), 0).shape == (1, 3, 96, 128)
    seen = weakref.ref(grid)
    gc.disable()
    try:
        del grid
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('size', [(6, 8), (7, 8), (5, 3), (1, 2)])
def test_halves_are_means(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    wanted = torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(halve(x), wanted)
    torch.testing.assert_close(
        torch.autograd.grad(halve(x).square().sum(), x), torch.autograd.grad(wanted.square().sum(), x)
    )


@pytest.mark.parametrize('kind', [SegBlocks, SBNet])
def test_a_checkpoint_of_the_static_network_is_loaded_too(kind):
    static = nn.ModuleDict(dict(backbone=randomised(InvertedResidualNet('mobilenetv2_050'), seed=3)))
    net = nn.ModuleDict(dict(backbone=kind(InvertedResidualNet('mobilenetv2_050'), block_size=64)))
    missing, unexpected = net.load_state_dict(static.state_dict(), strict=False)
    assert not unexpected and missing and all(key.startswith('backbone.policy.') for key in missing)
    loaded = net['backbone'].backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in static['backbone'].state_dict().items())
    with pytest.raises(RuntimeError, match=r'Missing key.*backbone\.policy'):
        net.load_state_dict(static.state_dict())
    twice = nn.ModuleDict(dict(backbone=kind(InvertedResidualNet('mobilenetv2_050'), block_size=64)))
    outer = Wrapper(twice['backbone'])
    assert not outer.load_state_dict(
        static['backbone'].state_dict(), strict=False
    ).unexpected_keys  # through two wrappers
    assert torch.equal(outer.backbone.backbone.stem.conv.weight, static['backbone'].stem.conv.weight)
    net['backbone'].backbone.stem.conv.weight.data.zero_()  # its own checkpoints as ever
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    load_state_dict(net, static.state_dict(), strict=False)  # mmengine's
    assert torch.equal(net['backbone'].backbone.stem.conv.weight, static['backbone'].stem.conv.weight)


def test_rewards_are_means_of_the_pixels_that_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 10, 13), torch.randint(4, (2, 10, 13))
    labels[0, :8, :8] = 255
    values, valid = pixel_loss(logits, labels, 255)
    means = block_means(values, valid, (10, 13), 8)
    assert means.shape == (2, 1, 2, 2)
    wanted = torch.nn.functional.cross_entropy(logits[1:, :, 8:, 8:], labels[1:, 8:, 8:])
    assert float(means[1, 0, 1, 1]) == pytest.approx(float(wanted), rel=1e-5)
    assert torch.isfinite(means).all() and float(means[0, 0, 0, 0]) > 0  # nothing counts there: about the mean of all
