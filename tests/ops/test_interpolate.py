"""Interpolation between samples: the native kernel against two convolutions."""

import pytest
import torch
import torch.nn.functional as F

from eff_plugins.ops.interpolate import add_interpolated
from eff_plugins.ops.rows import ACTIVATIONS
from eff_plugins.profiling.latency import threads
from eff_plugins.profiling.macs import count_macs


def case(channels=19, window=5, density=0.2, size=(13, 9)):
    maps = torch.randn(2, 2, channels, *size)
    sampled, residual = (m.contiguous(memory_format=torch.channels_last) for m in maps)
    on = (torch.rand(2, 1, *size) < density).float()
    kernel = torch.rand(1, 1, window, window)
    kernel[0, 0, window // 2, window // 2] = 0
    return sampled, on, kernel, residual


def wanted(sampled, on, kernel, residual, act):
    half = kernel.shape[-1] // 2
    there = sampled * on
    sums = F.conv2d(there.flatten(0, 1)[:, None], kernel, padding=half).view_as(there)
    weights = F.conv2d(on, kernel, padding=half)
    filled = torch.where(on > 0, sampled, torch.where(weights > 0, sums / weights, 0.0))
    return ACTIVATIONS[act](residual + filled)


@pytest.mark.parametrize('act', [*ACTIVATIONS])
@pytest.mark.parametrize('channels', [1, 8, 19, 64, 70])
@pytest.mark.parametrize(('window', 'density', 'size'), [(3, 0.1, (13, 9)), (7, 0.3, (13, 9)), (7, 0.5, (2, 1))])
def test_native_and_plain(act, channels, window, density, size):
    inputs = case(channels, window, density, size)
    before = [x.clone() for x in inputs]
    want = wanted(*inputs, act)
    torch.testing.assert_close(add_interpolated(*inputs, act), want)
    torch.testing.assert_close(add_interpolated(*(x.double() for x in inputs), act).float(), want)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    torch.testing.assert_close(add_interpolated(*inputs, act, in_place=True), want)
    assert all(torch.equal(a, b) for a, b in zip(inputs[:3], before[:3], strict=True))


def test_without_samples_around_nothing_is_added_and_garbage_is_not_read():
    sampled, on, kernel, residual = case(density=0.02)
    on[1] = 0
    sampled = torch.where(on > 0, sampled, torch.nan).contiguous(memory_format=torch.channels_last)
    for kind in (torch.float32, torch.float64):
        out = add_interpolated(sampled.to(kind), on.to(kind), kernel.to(kind), residual.to(kind), None)
        assert out.isfinite().all() and torch.equal(out[1], residual[1].to(kind))


def test_half_precision_stays_finite_without_samples():
    sampled, on, kernel, residual = (x.half() for x in case(density=0.02))
    assert add_interpolated(sampled, on, kernel, residual, None).isfinite().all()


def test_shapes_that_do_not_fit_are_refused():
    sampled, on, kernel, residual = case()
    for wrong in (
        (sampled, on[:, :, :1], kernel, residual),
        (sampled, on, kernel[..., :4, :4], residual),
        (sampled, on, kernel, residual[:, :1]),
    ):
        with pytest.raises(ValueError, match='do not fit each other'):
            add_interpolated(*wrong, None)


def test_threads_share_the_lines():
    inputs = case(32)
    want = add_interpolated(*inputs, 'relu')
    with threads(3):
        assert torch.equal(add_interpolated(*inputs, 'relu'), want)


def test_multiply_adds_are_those_at_the_missing_positions():
    sampled, on, kernel, residual = case()
    missing = int((on == 0).sum())
    counted = count_macs(torch.nn.Identity(), lambda: add_interpolated(sampled, on, kernel, residual, None))['']
    assert counted == 25 * (missing * 19 + on.numel())
