"""Prepacked convolutions equal torch's, count alike, and survive copies."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from eff_plugins.models.layers.conv import SamePadConv2d
from eff_plugins.ops import dense
from eff_plugins.ops.dense import ACTIVATIONS, PackedConv2d, PackedSamePadConv2d
from eff_plugins.profiling.macs import count_macs


@pytest.mark.parametrize(('groups', 'stride', 'kernel'), [(1, 1, 3), (32, 2, 3), (1, 1, 1), (1, 2, 1), (4, 1, 3)])
@pytest.mark.parametrize('act', ACTIVATIONS)
@pytest.mark.parametrize('small_is_plain', [True, False])
def test_equals_the_plain_convolution(groups, stride, kernel, act, small_is_plain, monkeypatch):
    monkeypatch.setattr(PackedConv2d, '_plain_is_faster', lambda *_: small_is_plain)
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 32, kernel, stride, kernel // 2, groups=groups).requires_grad_(False)
    packed, x = PackedConv2d(conv, act), torch.randn(2, 32, 17, 15).contiguous(memory_format=torch.channels_last)
    y = conv(x)
    residual = torch.randn_like(y)
    torch.testing.assert_close(packed(x), ACTIVATIONS[act](y), rtol=1e-5, atol=1e-5)
    wanted = ACTIVATIONS[act](y + residual)
    torch.testing.assert_close(packed.fused(x, act, residual.clone()), wanted, rtol=1e-5, atol=1e-5)
    macs = count_macs(conv, lambda: conv(x))['']
    assert count_macs(packed, lambda: packed(x))[''] == macs
    assert count_macs(packed, lambda: packed.fused(x, act, residual.clone()))[''] == macs
    low = copy.deepcopy(packed).bfloat16()(x.bfloat16())
    assert (low.float() - packed(x)).abs().max() < 0.1


def test_a_small_convolution_runs_the_faster_way_and_a_large_one_packed(monkeypatch):
    x, y = torch.randn(1, 4, 9, 9).contiguous(memory_format=torch.channels_last), torch.zeros(1, 4, 7, 7)
    for seconds, wanted in (((1.0, 2.0), True), ((2.0, 1.0), False)):
        monkeypatch.setattr(dense, '_small_is_plain', {})
        left = [seconds]
        monkeypatch.setattr(dense, 'shortest', lambda *_, left=left: left.pop(0))
        packed = PackedConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False).to(memory_format=torch.channels_last))
        # counted once, though timing it took several runs, and not timed again
        assert count_macs(packed, lambda packed=packed: packed(x))[''] == y.numel() * 36
        assert copy.deepcopy(packed)(x).shape == y.shape
        assert (len(packed._plain_at), len(packed._packed)) == (wanted, not wanted)
    large = PackedConv2d(nn.Conv2d(64, 64, 3).requires_grad_(False))
    large(torch.zeros(1, 64, 40, 40))
    assert large._packed and not large._plain_at


@pytest.mark.parametrize('size', [(16, 16), (17, 17), (15, 18), (2, 5), (1, 1)])
@pytest.mark.parametrize(('kernel', 'dilation', 'groups'), [(3, 1, 1), (5, 1, 8), (3, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_same_padding_is_packed_too(size, kernel, dilation, groups, memory_format):
    conv = SamePadConv2d(8, 16, kernel, 2, dilation=dilation, groups=groups).requires_grad_(False)
    packed = PackedSamePadConv2d(conv, 'relu')
    other = PackedSamePadConv2d(SamePadConv2d(8, 8, 3, 2).requires_grad_(False))  # shares the buffer
    x = torch.randn(2, 8, *size).contiguous(memory_format=memory_format)
    before, wanted = x.clone(), conv(x).relu()
    other(torch.ones(1, 8, 23, 29))
    for _ in range(2):
        torch.testing.assert_close(packed(x), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before) and packed(x[:0]).shape == wanted[:0].shape
    with torch.device('cpu'):  # a function mode
        torch.testing.assert_close(packed(x), wanted, rtol=1e-5, atol=1e-5)
    low = copy.deepcopy(packed).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16 and (low.float() - wanted).abs().max() < 0.1
    packed.weight.requires_grad_(True)
    packed(x).sum().backward()
    assert packed.weight.grad is not None


def test_same_padding_of_tensor_subclasses():
    class Labelled(torch.Tensor):
        pass

    conv = SamePadConv2d(3, 8, 3, 2).requires_grad_(False)
    x = torch.randn(1, 3, 16, 16)
    assert PackedSamePadConv2d(conv)(x.as_subclass(Labelled)).shape == conv(x).shape == (1, 8, 8, 8)


def test_plain_choices_take_no_room_from_packed_weights(monkeypatch):
    monkeypatch.setattr(dense, '_small_is_plain', {})
    monkeypatch.setattr(PackedConv2d, '_plain_is_faster', lambda self, x, *_: x.shape[3] < 30)
    packed = PackedConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    packed(torch.zeros(1, 4, 5, 60))
    (kept,) = packed._packed
    for side in range(5, 15):
        packed(torch.zeros(1, 4, 5, side))
    assert list(packed._packed) == [kept] and len(packed._plain_at) == 10


def test_autocast_has_its_type():
    conv = nn.Conv2d(4, 4, 3).requires_grad_(False)
    packed, x = PackedConv2d(conv, 'relu'), torch.randn(1, 4, 9, 9)
    with torch.autocast('cpu', torch.bfloat16):
        assert packed(x).dtype == conv(x).dtype == torch.bfloat16
        torch.testing.assert_close(packed(x), conv(x).relu(), rtol=1e-2, atol=1e-2)


def test_threads_with_more_sizes_than_are_kept():
    packed = PackedConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    pictures = [torch.randn(1, 4, side, side) for side in range(5, 12)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            outs = list(pool.map(packed, pictures * 30))
    finally:
        sys.setswitchinterval(interval)
    assert all(torch.equal(out, packed(x)) for out, x in zip(outs, pictures * 30, strict=True))


def test_copies_changed_weights_and_gradients():
    packed = PackedConv2d(nn.Conv2d(4, 4, 3))
    x = torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        y = packed(x)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(packed)))
        assert torch.equal(twin(x), y) and set(packed.state_dict()) == {'weight', 'bias'}
        packed.weight.mul_(2)
        packed.bias.mul_(2)
        torch.testing.assert_close(packed(x), 2 * y)
    packed(x).sum().backward()
    assert packed.weight.grad is not None


def test_packed_weights_of_few_sizes_are_kept_and_inference_tensors_work():
    packed = PackedConv2d(nn.Conv2d(4, 4, 3).requires_grad_(False))
    for side in range(5, 15):
        packed(torch.zeros(1, 4, side, side))
    assert len(packed._packed) <= 3
    with torch.inference_mode():
        fresh = PackedConv2d(nn.Conv2d(4, 4, 3))
        assert fresh(torch.zeros(1, 4, 9, 9)).shape == (1, 4, 7, 7)
