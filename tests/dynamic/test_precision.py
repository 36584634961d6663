"""Half precision: what is counted and drawn stays exact, and autocast runs in every execution."""

import pytest
import torch
from torch import nn

from eff_plugins import dynamic
from eff_plugins.dynamic.module import decisions
from eff_plugins.dynamic.sampling import gumbel_sigmoid
from eff_plugins.dynamic.skip import LayerGate
from eff_plugins.models.spatial.layer_skip import LayerSkip
from eff_plugins.testing.conformance import difference, tensors, varied
from eff_plugins.testing.dynamic_types import DYNAMIC

SPATIAL = ['LASNet', 'DynConv on InvertedResidualNet', 'SACT', 'SFSI', 'LCCL', 'SBNet', 'SegBlocks']


@pytest.mark.parametrize('label', SPATIAL)
def test_costs_are_counted_in_single_precision(label):
    net, x = varied(DYNAMIC[label])
    dynamic.set_execution(net, 'masked').bfloat16()
    with dynamic.record(net) as stats, torch.no_grad():
        net(x.bfloat16())
    assert all(entry.macs.dtype == torch.float32 for entry in stats.entries)
    assert stats.saved_macs().isfinite()


@pytest.mark.parametrize('label', [*SPATIAL, 'LayerSkip on InvertedResidualNet', 'DRNet', 'RANet'])
def test_sparse_execution_runs_under_autocast(label):
    net, x = varied(DYNAMIC[label])
    dynamic.set_policy(dynamic.set_execution(net, 'sparse'), 'all')
    with torch.no_grad():
        want = [tensor.clone() for tensor in tensors(net(x))]
        with torch.autocast('cpu', torch.bfloat16):
            plain = [tensor.float() for tensor in tensors(net(x))]
            with dynamic.record(net):
                got = [tensor.float() for tensor in tensors(net(x))]
    assert difference(got, want) < 0.1 and difference(plain, want) < 0.1


@pytest.mark.parametrize('label', ['LASNet', 'SBNet', 'SegBlocks'])
def test_autocast_has_its_type_in_each_execution(label):
    net, x = varied(DYNAMIC[label])
    types = set()
    for mode in ('dense', 'masked', 'sparse'):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            types.add(tuple(tensor.dtype for tensor in tensors(dynamic.set_execution(net, mode)(x))))
    assert types == {(torch.bfloat16,) * len(next(iter(types)))}


@pytest.mark.parametrize('autocast', [True, False])
@pytest.mark.parametrize(
    'label', ['LASNet', 'DynConv on InvertedResidualNet', 'LayerSkip', 'SFSI', 'LCCL', 'LCCL on CifarResNet']
)
def test_what_is_left_out_is_alike_in_half_precision(label, autocast):
    net, x = varied(DYNAMIC[label])
    if not autocast:
        net, x = net.bfloat16(), x.bfloat16()
    for step in decisions(dynamic.set_policy(net, 'random')):  # rounding moves no decision
        step.density = 0.4
    found = []
    for mode in ('masked', 'sparse'):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            found.append([tensor.float() for tensor in tensors(dynamic.set_execution(net, mode)(x))])
    assert difference(*found) < 0.1


def test_half_precision_decides_alike_in_each_execution():
    torch.manual_seed(0)
    net, x = LayerSkip(depth=18, base_channels=8).eval().bfloat16(), torch.randn(2, 3, 64, 64).bfloat16()
    for gate in (m for m in net.modules() if isinstance(m, LayerGate)):
        nn.init.constant_(gate.gate.fc.bias, 0.3)  # bf16 has 0.30078
        gate.decide.threshold = 0.3
    with torch.no_grad():
        masked, sparse = (tensors(dynamic.set_execution(net, mode)(x)) for mode in ('masked', 'sparse'))
    assert difference([t.float() for t in sparse], [t.float() for t in masked]) < 0.05


def test_gumbel_samples_of_half_precision_have_tails():
    torch.manual_seed(0)
    logits = torch.full((200_000,), 8.0, dtype=torch.bfloat16)
    on = gumbel_sigmoid(logits)
    assert on.dtype == torch.bfloat16
    off = float((on == 0).float().mean())
    assert off == pytest.approx(1 / (1 + 2.718281828**8), abs=1.5e-4)
