"""Fill a map that was computed at some positions, and add it to a residual.

In plain torch these are two convolutions and passes over whole maps. On a CPU without gradients a native kernel reads the
samples once, and only those that there are.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from eff_plugins.ops.library import register_in_place
from eff_plugins.ops.native import kernels, kernels_for
from eff_plugins.ops.rows import ACTIVATIONS


def clamped(weight: Tensor) -> Tensor:
    """Sums of weights to divide by: at least so much that a quotient is finite where there is nothing to interpolate from."""
    return weight.clamp(min=max(1e-12, torch.finfo(weight.dtype).tiny))


def around(sampled: Tensor, on: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of the samples around each position (B, C, H, W), and of the weights (B, 1, H, W).

    Args:
        sampled: (B, C, H, W), 0 where ``on`` is 0.
        on: (B, 1, H, W) in {0, 1}.
        kernel: (1, 1, k, k) weights, k odd.
    """
    channels, half = sampled.shape[1], kernel.shape[-1] // 2
    sums = F.conv2d(sampled, kernel.expand(channels, -1, -1, -1), None, 1, half, 1, channels)
    return sums, F.conv2d(on, kernel, padding=half)


def add_interpolated(
    sampled: Tensor, on: Tensor, kernel: Tensor, residual: Tensor, act: str | None, in_place: bool = False
) -> Tensor:
    """``act(residual + filled)``; where ``on`` is 0 ``filled`` is the mean of the samples around, weighted by ``kernel``.

    Without a sample in the window it is 0 there.

    Args:
        sampled: (B, C, H, W), read where ``on`` is 1 alone.
        on: (B, 1, H, W) in {0, 1}.
        kernel: (1, 1, k, k) weights, k odd.
        residual: (B, C, H, W).
        act: A key of ``ACTIVATIONS``.
        in_place: ``residual`` may be overwritten.

    Raises:
        ValueError: Shapes that do not fit.
    """
    mask = (sampled.shape[0], 1, *sampled.shape[2:])
    if (
        residual.shape != sampled.shape
        or on.shape != mask
        or kernel.shape[-1] % 2 == 0
        or kernel.shape[2] != kernel.shape[3]
    ):
        shapes = ', '.join(str(tuple(x.shape)) for x in (sampled, on, kernel, residual))
        raise ValueError(f'sampled, on, kernel and residual of {shapes} do not fit each other')
    maps = [sampled, residual]
    native = kernels_for(*maps, weights=(on, kernel))
    if native is None or not all(m.is_contiguous(memory_format=torch.channels_last) for m in maps):
        return _reference(sampled, on, kernel, residual, act)
    out = residual if in_place else torch.empty_like(residual)
    if torch._C._len_torch_dispatch_stack():  # somebody counts
        missing = int(on.numel() - on.count_nonzero())
        torch.ops.eff_plugins.add_interpolated(sampled, on, kernel, residual, act, missing, out)
    else:
        _execute(sampled, on, kernel, residual, act, 0, out)
    return out


def _reference(sampled: Tensor, on: Tensor, kernel: Tensor, residual: Tensor, act: str | None) -> Tensor:
    there = torch.where(on > 0, sampled, 0.0)
    sums, weight = around(there, on, kernel)
    return ACTIVATIONS[act](residual + (there + sums * ((1 - on) / clamped(weight))))


def _execute(
    sampled: Tensor, on: Tensor, kernel: Tensor, residual: Tensor, act: str | None, missing: int, out: Tensor
) -> None:
    native = kernels(dtype=sampled.dtype)
    assert native is not None
    batch, channels, height, width = sampled.shape
    sizes = (ctypes.c_int64 * 6)(batch, height, width, channels, kernel.shape[-1], list(ACTIVATIONS).index(act))
    mask, weights = on.float().contiguous(), kernel.float().contiguous()
    native.interpolate(
        sampled.data_ptr(),
        mask.data_ptr(),
        weights.data_ptr(),
        ctypes.addressof(sizes),
        residual.data_ptr(),
        out.data_ptr(),
    )


register_in_place(
    'add_interpolated(Tensor sampled, Tensor on, Tensor kernel, Tensor residual, str? act, int missing, '
    'Tensor(a!) out) -> ()',
    _execute,
)


@register_flop_formula(torch.ops.eff_plugins.add_interpolated)
def _flops(
    sampled: torch.Size,
    on: torch.Size,
    kernel: torch.Size,
    residual: torch.Size,
    act: str | None,
    missing: int,
    out: torch.Size,
    **_: object,
) -> int:
    """As the two convolutions of plain torch, the one over the samples at the missing positions alone."""
    return 2 * kernel.numel() * (missing * sampled[1] + on.numel())
