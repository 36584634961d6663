"""LCCL against the product of the two layers."""

import pytest
import torch

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.losses import Situation, budget_loss
from eff_plugins.dynamic.residual import residual_blocks
from eff_plugins.dynamic.rows import PreparedBranch
from eff_plugins.models.image.cifar_resnet import CifarResNet
from eff_plugins.models.spatial.lccl import LCCL
from eff_plugins.ops.dense import PackedConv2d
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.conformance import build, varied
from eff_plugins.testing.dynamic_types import DYNAMIC, MOBILE


@pytest.mark.parametrize('kernel', ['shared', 'pointwise'])
@pytest.mark.parametrize('execution', ['masked', 'sparse'])
def test_a_block_is_the_product_of_both_layers(kernel, execution):
    block = build(lambda: LCCL(CifarResNet(8), kernel=kernel)).stages[1][0]
    x = torch.randn(2, 16, 9, 7).relu()
    first, second = block.dynamic.layers['0'], block.dynamic.layers['1']
    with torch.no_grad(), dynamic.record(dynamic.set_execution(block, execution)) as stats:
        out = block(x.clone())
        low = torch.relu(first.norm(first.conv(x)))
        y = torch.relu(block.units()[0].norm(block.units()[0].conv(x))) * low
        low_2 = torch.relu(second.norm(second.conv(y)))
        y = block.units()[1].norm(block.units()[1].conv(y)) * low_2
        want = torch.relu(block.run_shortcut(x) + y)
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    zero = torch.stack([(m.amax(1) == 0).flatten(1).float().mean(1) for m in (low, low_2)]).mean(0)
    torch.testing.assert_close(stats.entries[0].density, 1 - zero)
    assert low.shape[1] == (1 if kernel == 'shared' else 32)
    assert kernel == 'pointwise' or 0.05 < float(zero.mean()) < 0.95


def test_a_budget_loss_reaches_the_sparsity():
    net = dynamic.set_execution(LCCL(CifarResNet(8)), 'masked').train()
    with dynamic.record(net) as stats:
        net(torch.randn(2, 3, 32, 32))
    situation = Situation(stats.share(1e7), 0.1, list(stats.densities().values()), 0.2)
    budget_loss(dict(ratios=1.0), situation)['loss_budget_ratios'].backward()
    shifts = [m.norm.bias.grad for block in net.modules() if hasattr(block, 'layers') for m in block.layers.values()]
    assert len(shifts) == 6 and all(float(grad) > 0 for grad in shifts)


def test_it_begins_near_the_plain_network_and_learns_its_statistics_beside_frozen_ones():
    torch.manual_seed(0)
    net, x = LCCL(CifarResNet(32, norm_eval=True)).train(), torch.randn(4, 3, 32, 32)
    own = [m.norm for block in net.modules() if hasattr(block, 'layers') for m in block.layers.values()]
    assert all(norm.training for norm in own)
    assert not any(m.training for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d) and m not in set(own))
    with dynamic.record(dynamic.set_execution(net, 'masked')) as stats:
        got = net(x)[-1]
    want = dynamic.set_execution(net, 'dense')(x)[-1]
    assert float(torch.stack(list(stats.densities().values())).min()) > 0.99
    assert 0.3 < float(got.norm() / want.norm()) < 3


@pytest.mark.parametrize('label', ['LCCL', 'SFSI', 'LASNet'])
def test_an_empty_batch_gives_an_empty_map(label):
    net, x = varied(DYNAMIC[label])
    for execution in ('masked', 'sparse'):
        with dynamic.record(net):
            assert len(dynamic.set_execution(net, execution)(x[:0])[-1]) == 0


def test_layers_above_their_break_even_are_computed_whole_and_counted_so(monkeypatch):
    net, x = varied(DYNAMIC['LCCL'])
    masked = [y.clone() for y in dynamic.set_execution(net, 'masked')(x)]
    some = spent(net, x)
    monkeypatch.setattr(PreparedBranch, 'limit', lambda self, layer, size: 0.5 if layer == 1 else 1.1)
    dynamic.set_execution(net, 'sparse')
    with torch.no_grad():
        for got, want in zip(net(x), masked, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
        counted = count_macs(net, lambda: net(x))[''] / len(x)
    assert spent(net, x) > some
    network = dynamic.network_macs(net, lambda: net(x), len(x))
    assert network * spent(net, x) == pytest.approx(counted, rel=0.01)


def test_layers_computed_whole_fuse_their_activation(monkeypatch):
    net, x = varied(DYNAMIC['LCCL'])
    net = dynamic.set_execution(prepare(net, Preparation(prepack=True)), 'sparse')
    monkeypatch.setattr(PreparedBranch, 'limit', lambda *_: 0.0)
    inner = [id(unit.conv.weight) for _, block in residual_blocks(net) for unit in block.units()[:-1]]
    acts, fused = {}, PackedConv2d.fused

    def seen(self, x, act=None, residual=None):
        acts[id(self.weight)] = act
        return fused(self, x, act, residual)

    monkeypatch.setattr(PackedConv2d, 'fused', seen)
    with torch.no_grad():
        net(x)
    assert {act for weight, act in acts.items() if weight in inner} == {'relu'}


@pytest.mark.parametrize('act', ['relu6', 'hswish'])
def test_a_factor_multiplies_what_an_activation_has_limited(act):
    torch.manual_seed(0)
    host = dict(MOBILE['backbone'], arch=dict(MOBILE['backbone']['arch'], act=act))
    block = next(b for _, b in residual_blocks(build(dict(type='eff_plugins.LCCL', backbone=host)).eval()))
    with torch.no_grad():
        for layer in block.dynamic.layers.values():
            layer.norm.bias.fill_(0.5)
            layer.norm.weight.fill_(8.0)
        x = 4 * torch.randn(2, 8, 11, 9)
        unit, factor = block.units()[0], block.dynamic.layers['0'](x)
        assert float(unit.run(x).max()) > 5 and float(factor.max()) > 2 and float((factor == 0).float().mean()) > 0.1
        want = dynamic.set_execution(block, 'masked')(x.clone())
        got = dynamic.set_execution(block, 'sparse')(x.clone())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@torch.no_grad()
def spent(net, x):
    with dynamic.record(net) as stats:
        net(x)
    return float(stats.share(dynamic.network_macs(net, lambda: net(x), len(x))))


def test_a_budget_moves_the_threshold_of_evaluation_alone():
    net, x = varied(DYNAMIC['LCCL'])

    def density(training):
        with dynamic.record(dynamic.set_execution(net.train(training), 'masked')) as stats:
            net(x)
        return float(torch.stack(list(stats.densities().values())).mean())

    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    before = density(True)
    dynamic.calibrate(net, [x], budgets=[0.6])
    dynamic.set_budget(net, 0.6)
    assert density(True) == pytest.approx(before, abs=1e-3) and density(False) < before - 0.05


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="kernel='tiny' must be one of shared, pointwise"):
        LCCL(CifarResNet(8), kernel='tiny')
    with pytest.raises(ValueError, match="cheaper than no convolution of these blocks; use kernel='shared'"):
        LCCL(MOBILE['backbone'], kernel='pointwise')
