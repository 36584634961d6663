"""Scores of policies: the native kernels against pooling and convolution."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from eff_plugins.ops.native import levels_of
from eff_plugins.ops.scores import conv_scores, patch_scores
from eff_plugins.profiling.latency import threads
from eff_plugins.profiling.macs import count_macs


def maps(batch, channels, height, width):
    torch.manual_seed(0)
    return torch.randn(batch, channels, height, width).contiguous(memory_format=torch.channels_last)


every_instruction_set = pytest.mark.parametrize('instruction_set', levels_of(torch.float32), indirect=True)


@every_instruction_set
@pytest.mark.parametrize('channels', [3, 16, 70, 256])
@pytest.mark.parametrize('patch', [1, 3, 8, 19])
def test_patch_scores(channels, patch, instruction_set):
    x, weight, bias = maps(2, channels, 19, 13), torch.randn(1, channels, 1, 1), torch.randn(1)
    want = F.conv2d(F.avg_pool2d(x, patch, ceil_mode=True, count_include_pad=False), weight, bias)
    torch.testing.assert_close(patch_scores(x, weight, bias, patch), want, rtol=1e-4, atol=1e-4)
    plain = patch_scores(x.double(), weight.double(), bias.double(), patch)
    torch.testing.assert_close(plain.float(), want, rtol=1e-4, atol=1e-4)


def test_the_default_type_of_new_tensors_does_not_matter():
    x, weight, bias = maps(2, 16, 19, 13), torch.randn(1, 16, 1, 1), torch.randn(1)
    want = [patch_scores(x, weight, bias, 8), conv_scores(x, weight, None, bias, 1)]
    torch.set_default_dtype(torch.float64)
    try:
        found = [patch_scores(x, weight, bias, 8), conv_scores(x, weight, None, bias, 1)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, want))


@every_instruction_set
@pytest.mark.parametrize('channels', [3, 16, 70, 256])
@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (1, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize('size', [(19, 13), (8, 3), (2, 1)])
def test_conv_scores(channels, kernel, stride, size, instruction_set):
    x, weight = maps(2, channels, *size), torch.randn(1, channels, kernel, kernel)
    pooled, bias = torch.randn(1, channels), torch.randn(1)
    want = F.conv2d(x, weight, None, stride, kernel // 2) + F.linear(x.mean((2, 3)), pooled, bias)[:, :, None, None]
    torch.testing.assert_close(conv_scores(x, weight, pooled, bias, stride), want, rtol=1e-4, atol=1e-4)
    plain = conv_scores(x.double(), weight.double(), pooled.double(), bias.double(), stride)
    torch.testing.assert_close(plain.float(), want, rtol=1e-4, atol=1e-4)
    alone = F.conv2d(x, weight, bias, stride, kernel // 2)
    torch.testing.assert_close(conv_scores(x, weight, None, bias, stride), alone, rtol=1e-4, atol=1e-4)
    plain = conv_scores(x.double(), weight.double(), None, bias.double(), stride)
    torch.testing.assert_close(plain.float(), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize('size', [(19, 13), (2, 1)])
def test_threads_share_the_lines(kernel, stride, size):
    x, weight = maps(2, 16, *size), torch.randn(1, 16, kernel, kernel)
    run = partial(conv_scores, x, weight, torch.randn(1, 16), torch.randn(1), stride)
    patches = partial(patch_scores, x, weight[:, :, :1, :1].contiguous(), torch.zeros(1), 3)
    want = run(), patches()
    with threads(3):
        got = run(), patches()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)  # the means are added up in parts


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2)])
def test_neither_batch_nor_threads_change_a_score(kernel, stride):
    x, weight, bias = maps(3, 16, 19, 13), torch.randn(1, 16, kernel, kernel), torch.randn(1)
    want = conv_scores(x, weight, None, bias, stride)
    assert torch.equal(conv_scores(x[1:2], weight, None, bias, stride), want[1:2])
    with threads(3):
        assert torch.equal(conv_scores(x, weight, None, bias, stride), want)


def test_fake_tensors_have_shapes_and_no_memory():
    with FakeTensorMode():
        x, weight, bias = torch.randn(1, 16, 9, 9), torch.randn(1, 16, 3, 3), torch.zeros(1)
        x = x.contiguous(memory_format=torch.channels_last)
        assert conv_scores(x, weight, torch.zeros(1, 16), bias, 2).shape == (1, 1, 5, 5)
        assert patch_scores(x, weight[:, :, :1, :1], bias, 4).shape == (1, 1, 3, 3)


def test_scores_are_differentiable_and_counted():
    x, weight, bias = maps(1, 16, 9, 9), torch.randn(1, 16, 3, 3, requires_grad=True), torch.zeros(1)
    conv_scores(x, weight, torch.zeros(1, 16), bias, 1).sum().backward()
    assert weight.grad is not None
    module = torch.nn.Identity()
    for size in (x, x.double()):  # native, plain
        w, b = weight.detach().to(size), bias.to(size)
        one = w[:, :, :1, :1]
        run = partial(conv_scores, size, w, one[:, :, 0, 0], b, 2)
        assert count_macs(module, run)[''] == 25 * 9 * 16 + 16
        assert count_macs(module, lambda size=size, one=one, b=b: patch_scores(size, one, b, 4))[''] == 9 * 16
