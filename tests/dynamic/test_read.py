"""Scores that native kernels read without torch: the same decisions as those of the policy's own forward pass."""

import copy
import threading

import pytest
import torch
from torch import nn

from eff_plugins import dynamic
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.skip import LayerGate
from eff_plugins.dynamic.spatial import SpatialGate
from eff_plugins.models.spatial.dynconv import PixelMasker
from eff_plugins.models.spatial.lasnet import PatchMasker
from eff_plugins.ops.native import kernels
from eff_plugins.ops.scores import ScoreReader, conv_scores, patch_scores
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
        read = ScoreReader(point, bias, patch).read(kernels(), x)
        assert torch.equal(read.tensor(), patch_scores(x, point, bias, patch or max(size)))
    for stride in (1, 2):
        read = ScoreReader(taps, bias, pooled=pooled, stride=stride).read(kernels(), x)
        assert torch.equal(read.tensor(), conv_scores(x, taps, pooled, bias, stride))
        assert read.listed() == read.tensor().flatten().tolist()


def test_a_changed_weight_is_seen():
    masker = PatchMasker(8, 2)
    reader = masker.reader()
    assert reader.current()
    with torch.no_grad():
        masker.conv.bias.add_(1)
    assert not reader.current() and masker.reader().current()
    masker.conv.bias.data = torch.zeros(1)
    assert not reader.current()


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('label', ['LASNet', 'LASNet on InvertedResidualNet', 'DynConv', 'LayerSkip'])
def test_a_network_decides_alike(label, half, monkeypatch):
    net, x = varied(DYNAMIC[label])
    net, x = (net.bfloat16(), x.bfloat16()) if half and kernels(dtype=torch.bfloat16) else (net, x)
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
    reader = ScoreReader(torch.ones(1, 8), torch.zeros(1), 1)
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
    values, threshold = decide.cut(masker.reader().read(kernels(), maps(3, 8, 4, 4)))
    assert (values > threshold).flatten(1).sum(1).tolist() == [8, 8, 8]
