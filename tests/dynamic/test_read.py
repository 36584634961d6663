"""Scores that native kernels read without torch: the same decisions as those of the policy's own forward pass."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from eff_plugins import dynamic
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.skip import LayerGate
from eff_plugins.dynamic.spatial import SpatialGate
from eff_plugins.models.spatial.dynconv import PixelMasker
from eff_plugins.models.spatial.lasnet import PatchMasker
from eff_plugins.ops.native import kernels
from eff_plugins.ops.scores import Linear, ScoreReader, conv_scores, patch_scores
from eff_plugins.testing.conformance import difference, tensors, varied
from eff_plugins.testing.dynamic_types import DYNAMIC

pytestmark = pytest.mark.skipif(kernels() is None, reason='no C++ compiler')


def maps(*shape):
    torch.manual_seed(0)
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('size', [(19, 13), (7, 7)])
def test_reads_what_the_functions_give(size):
    x, point, taps, pooled, bias = maps(2, 24, *size), *map(torch.randn, [(1, 24), (1, 24, 3, 3), (1, 24), (1,)])
    for patch in (0, 1, 4):
        read = ScoreReader(Linear(point, bias, patch)).read(kernels(), x)
        assert torch.equal(read.tensor(), patch_scores(x, point, bias, patch or max(size)))
    for stride in (1, 2):
        read = ScoreReader(Linear(taps, bias, None, pooled, stride)).read(kernels(), x)
        assert torch.equal(read.tensor(), conv_scores(x, taps, pooled, bias, stride))
        assert read.listed() == read.tensor().flatten().tolist()


@pytest.mark.parametrize(
    'change',
    [
        lambda masker: masker.conv.bias.add_(1),
        lambda masker: setattr(masker.conv.bias, 'data', torch.zeros(1)),
        lambda masker: setattr(masker.conv, 'bias', nn.Parameter(masker.conv.bias.clone())),
        lambda masker: setattr(masker, 'patch', 4),
        lambda masker: parametrize.register_parametrization(masker.conv, 'weight', nn.Identity()),
    ],
)
def test_a_changed_policy_is_seen(change):
    masker = PatchMasker(8, 2)
    reader = ScoreReader(masker.linear())
    assert reader.current(masker.linear())
    with torch.no_grad():
        change(masker)
        assert not reader.current(masker.linear())


def test_another_policy_in_its_place_is_read():
    net, x = varied(DYNAMIC['LASNet'])
    dynamic.set_execution(net, 'sparse')
    gate = next(m for m in net.modules() if isinstance(m, SpatialGate))
    with torch.no_grad():
        before = tensors(net(x))
        other = PatchMasker(gate.masker.conv.in_channels, gate.masker.patch).eval()
        other.conv.bias.fill_(-1e6)
        gate.masker = other
        assert difference(tensors(net(x)), before) > 0.01


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('label', ['LASNet', 'LASNet on InvertedResidualNet', 'DynConv', 'LayerSkip'])
def test_a_network_decides_alike(label, half, monkeypatch):
    net, x = varied(DYNAMIC[label])
    if half:
        if kernels(dtype=torch.bfloat16) is None:
            pytest.skip('this processor has no bf16')
        net, x = net.bfloat16(), x.bfloat16()
    dynamic.set_execution(net, 'sparse')
    x = x.contiguous(memory_format=torch.channels_last)
    reads = []
    monkeypatch.setattr(ScoreReader, 'read', lambda *args, own=ScoreReader.read: reads.append(1) or own(*args))
    with torch.no_grad():
        fast = tensors(net(x))
        assert reads
        count = len(reads)
        with dynamic.record(net):  # asks for tensors
            slow = tensors(net(x))
        assert len(reads) == count
    assert all(map(torch.equal, fast, slow))


def test_what_watches_a_policy_is_called():
    seen = []
    for label, kind, name in (('LASNet', SpatialGate, 'masker'), ('LayerSkip', LayerGate, 'gate')):
        net, x = varied(DYNAMIC[label])
        dynamic.set_execution(net, 'sparse')
        gates = [m for m in net.modules() if isinstance(m, kind)]
        seen.clear()
        for gate in gates:
            getattr(gate, name).register_forward_hook(lambda *_: seen.append(1))
        with torch.no_grad():
            net(x)
        assert len(seen) == len(gates)


def test_a_subclass_that_decides_otherwise_is_asked():
    class Never(PixelMasker):
        def forward(self, x):
            return super().forward(x) * 0 - 1e6

    net, x = varied(DYNAMIC['DynConv'])
    dynamic.set_execution(net, 'sparse')
    for gate in [m for m in net.modules() if isinstance(m, SpatialGate)]:
        masker = Never(gate.masker.fc.in_features, gate.masker.stride)
        masker.load_state_dict(gate.masker.state_dict())
        gate.masker = masker.eval()
    with torch.no_grad():
        none = tensors(dynamic.set_policy(copy.deepcopy(net), 'none')(x))
        assert difference(tensors(net(x)), none) == 0


def test_threads_read_into_memory_of_their_own():
    reader = ScoreReader(Linear(torch.ones(1, 8), torch.zeros(1), 1))
    found = {}

    def read(value):
        for _ in range(50):
            x = torch.full((1, 8, 6, 6), float(value)).contiguous(memory_format=torch.channels_last)
            found.setdefault(value, set()).update(reader.read(kernels(), x).listed())

    threads = [threading.Thread(target=read, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: {8.0}, 2: {16.0}}


def test_random_decisions_ignore_what_was_read():
    decide = Decide()
    decide.kind, decide.density = 'random', 0.5
    masker = PatchMasker(8, 1)
    nn.init.zeros_(masker.conv.weight)
    values, threshold = decide.cut(ScoreReader(masker.linear()).read(kernels(), maps(3, 8, 4, 4)))
    assert (values > threshold).flatten(1).sum(1).tolist() == [8, 8, 8]


@pytest.mark.parametrize('label', ['LASNet', 'LayerSkip'])
def test_scores_that_bf16_cannot_tell_from_the_threshold_are_off(label):
    if kernels(dtype=torch.bfloat16) is None:
        pytest.skip('this processor has no bf16')
    net, x = varied(DYNAMIC[label])
    net, x = net.bfloat16(), x.bfloat16().contiguous(memory_format=torch.channels_last)
    for gate in (m for m in net.modules() if isinstance(m, SpatialGate | LayerGate)):
        policy = gate.masker.conv if isinstance(gate, SpatialGate) else gate.gate.fc
        nn.init.zeros_(policy.weight)
        nn.init.constant_(policy.bias, 0.3)  # bf16 has 0.30078
        gate.decide.threshold = 0.3
    with torch.no_grad():
        none = tensors(dynamic.set_policy(dynamic.set_execution(copy.deepcopy(net), 'sparse'), 'none')(x))
        for mode in ('masked', 'sparse'):
            assert all(map(torch.equal, tensors(dynamic.set_execution(net, mode)(x)), none))
