"""Convolution at listed output positions: what is not listed is neither computed nor touched.

``conv2d_rows`` is the operator under spatially sparse networks. The reference is plain torch and differentiable; on a CPU
without gradients a native kernel does the same in place, with bias, scale, residual and activation fused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from eff_plugins.ops.blocks import pair
from eff_plugins.ops.library import register_in_place
from eff_plugins.ops.native import Kernels, kernels, kernels_for

# The order is that of the enum in native/vectors.h.
ACTIVATIONS = {None: lambda x: x, 'relu': F.relu, 'relu6': F.relu6, 'hswish': F.hardswish}


Pair = tuple[int, int]


def out_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(height, width) of a convolution's output for an input of ``size``; every pair is (vertical, horizontal)."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    high, wide = ((n + 2 * pad - d * (k - 1) - 1) // step + 1 for n, k, step, pad, d in axes)
    return high, wide


@dataclass(eq=False)
class RowConv:
    """A convolution prepared for :func:`conv2d_rows`: either one group or one filter a channel (depthwise).

    Attributes:
        weight: (N, C / groups, kh, kw).
        bias: (N,).
        stride: (vertical, horizontal); likewise ``padding`` and ``dilation``.
        groups: 1 or C.
        act: A key of ``ACTIVATIONS``, applied after the residual.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    act: str | None = None
    _packed: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _shapes: dict[tuple[int, int], ctypes.Array] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.weight.ndim != 4 or self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f'weight {tuple(self.weight.shape)} must be (N, C / groups, kh, kw) and bias {tuple(self.bias.shape)} (N,)'
            )
        if self.groups not in (1, self.weight.shape[0]) or (self.groups > 1 and self.weight.shape[1] != 1):
            raise ValueError(f'groups={self.groups} must be 1, or one filter a channel ({self.weight.shape[0]} here)')
        if self.act not in ACTIVATIONS:
            raise ValueError(f'act={self.act!r} must be one of {", ".join(map(str, ACTIVATIONS))}')

    @property
    def filters(self) -> int:
        """N, the channels of the output."""
        return self.weight.shape[0]

    @property
    def channels(self) -> int:
        """C, the channels of the input."""
        return self.weight.shape[1] * self.groups

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """(H', W') of the whole output for an input of (H, W)."""
        return out_size((height, width), pair(self.weight.shape[2:]), self.stride, self.padding, self.dilation)

    def shape(self, height: int, width: int) -> ctypes.Array:
        """The ``Shape`` of native/shape.h for an input of (H, W)."""
        if (height, width) not in self._shapes:
            count, kernel = self.weight.shape[0], self.weight.shape[2:]
            sizes = (height, width, self.channels, *self.out_size(height, width), count, *kernel)
            spacing = (*self.stride, *self.padding, *self.dilation)
            self._shapes[height, width] = (ctypes.c_int64 * 15)(*sizes, *spacing, list(ACTIVATIONS).index(self.act))
        return self._shapes[height, width]

    def activated(self, act: str | None) -> RowConv:
        """The same convolution with another activation; they share their weights, packed ones included."""
        return replace(self, act=act, _shapes={})

    @property
    def pointwise(self) -> bool:
        """Whether an output position reads the input at that position alone."""
        return self.weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def packed(self, native: Kernels) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias and zeros in the layout of the native kernel, made once."""
        if native.name not in self._packed:
            given = self.weight.detach()
            columns, (step, together) = native.columns(given[0].numel()), native.depth_step
            padding = -len(given) % columns
            bias = F.pad(self.bias.detach().float(), (0, padding)).contiguous()
            if self.groups > 1:
                weight = given.float()[:, 0].flatten(1).t().contiguous()
            else:
                flat = given.to(native.dtype).permute(0, 2, 3, 1).flatten(1)  # (N, taps * C)
                flat = F.pad(flat, (0, -flat.shape[1] % step, 0, padding))
                panels = flat.view(-1, columns, flat.shape[1] // together, together)
                weight = panels.transpose(1, 2).contiguous()
            self._packed[native.name] = (weight, bias, torch.zeros(self.channels, dtype=native.dtype))
        return self._packed[native.name]


def _check(x: Tensor, conv: RowConv, rows: Tensor, out: Tensor, residual: Tensor | None, scale: Tensor | None) -> None:
    if x.ndim != 4 or x.shape[1] != conv.channels:
        raise ValueError(f'x is {tuple(x.shape)}; it must be (B, {conv.channels}, H, W)')
    want = (x.shape[0], conv.weight.shape[0], *conv.out_size(*x.shape[2:]))
    if tuple(out.shape) != want:
        raise ValueError(f'out is {tuple(out.shape)}; for this x it must be {want}')
    if residual is not None and residual.shape != out.shape:
        raise ValueError(f'residual is {tuple(residual.shape)}; it must be {want} like out')
    if scale is not None and scale.shape != (want[0], 1, *want[2:]):
        raise ValueError(f'scale is {tuple(scale.shape)}; for this out it must be {(want[0], 1, *want[2:])}')
    if rows.ndim != 1 or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f'rows is {tuple(rows.shape)} {rows.dtype}; it must be a list (R,) of int32 or int64 positions'
        )
    if any(t is not None and t.dtype != out.dtype for t in (x, residual, scale)):
        kinds = ', '.join(str(t.dtype) for t in (x, residual, scale, out) if t is not None)
        raise ValueError(f'x, residual, scale and out must have one type; those given have {kinds}')


def conv2d_rows(
    x: Tensor,
    conv: RowConv,
    rows: Tensor,
    out: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``act(scale * conv(x) + residual)`` at the listed positions of ``out``; its other positions stay as they are.

    Where nothing needs a gradient ``out`` is written in place and returned (it may be ``residual`` itself); otherwise a new
    tensor is returned and gradients reach x, weight, bias, residual, scale and out.

    Args:
        x: (B, C, H, W); channels-last is fast.
        conv: The convolution.
        rows: (R,) positions ``(b * H' + y) * W' + x`` of the output, each at most once.
        out: (B, N, H', W').
        residual: (B, N, H', W') or None.
        scale: (B, 1, H', W') or None.

    Raises:
        ValueError: A shape or type does not fit; the message names the argument.
        IndexError: A position outside the output.
    """
    _check(x, conv, rows, out, residual, scale)
    tensors = (x, conv.weight, conv.bias, out, residual, scale)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _reference(x, conv, rows, out, residual, scale)
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < out[:, 0].numel():
        raise IndexError(f'rows run from {int(rows.min())} to {int(rows.max())}; out has {out[:, 0].numel()} positions')
    return run_rows(x, conv, rows, out, residual, scale)


def run_rows(
    x: Tensor,
    conv: RowConv,
    rows: Tensor,
    out: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """:func:`conv2d_rows` without its checks and gradients, for rows that :func:`eff_plugins.ops.plan.plan_rows` made.

    At some tens of microseconds a call the way through torch's dispatcher would be a part of a small layer's time, so it is
    taken only where somebody watches (a counter of multiply-adds).
    """
    native = _native(x, conv, out, residual, scale)
    if native is not None and not torch._C._len_torch_dispatch_stack():
        _call_native(native, x, conv, conv.packed(native), rows, out, residual, scale)
        return out
    torch.ops.eff_plugins.conv2d_rows(
        x,
        conv.weight,
        conv.bias,
        [] if native is None else list(conv.packed(native)),
        rows,
        out,
        residual,
        scale,
        *(list(pair) for pair in (conv.stride, conv.padding, conv.dilation)),
        conv.groups,
        conv.act,
    )
    return out


def _native(x: Tensor, conv: RowConv, out: Tensor, residual: Tensor | None, scale: Tensor | None) -> Kernels | None:
    """The native kernel where it serves: a CPU, all maps channels-last; it scales no depthwise convolution."""
    if scale is not None and conv.groups > 1:
        return None
    maps = [x, out] if residual is None else [x, out, residual]
    return (
        kernels_for(*maps, weights=(scale,))
        if all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
        else None
    )


def taps(conv: RowConv, rows: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Input position of each tap of each row (R, taps), and whether it lies inside the map."""
    high, wide = conv.out_size(height, width)
    column, line = rows % wide, rows // wide
    picture = line // high
    kernel_h, kernel_w = conv.weight.shape[2:]
    ky = torch.arange(kernel_h, device=rows.device).repeat_interleave(kernel_w) * conv.dilation[0]
    kx = torch.arange(kernel_w, device=rows.device).repeat(kernel_h) * conv.dilation[1]
    y = (line % high * conv.stride[0] - conv.padding[0])[:, None] + ky
    z = (column * conv.stride[1] - conv.padding[1])[:, None] + kx
    inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
    place = (picture[:, None] * height + y.clamp(0, height - 1)) * width + z.clamp(0, width - 1)
    return place, inside


def _values(x: Tensor, conv: RowConv, rows: Tensor, residual: Tensor | None, scale: Tensor | None) -> Tensor:
    """The rows' new values (R, N) in plain torch."""
    rows = rows.long()
    flat = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    if conv.weight.shape[2:] == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        value = torch.addmm(conv.bias, flat.index_select(0, rows), conv.weight.flatten(1).t())
    else:
        place, inside = taps(conv, rows, *x.shape[2:])
        taken = flat.index_select(0, place.flatten()).view(*place.shape, x.shape[1]) * inside[..., None].to(x.dtype)
        if conv.groups == 1:
            kernel = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (taps * C, N)
            value = torch.addmm(conv.bias, taken.flatten(1), kernel)
        else:
            value = (taken * conv.weight[:, 0].flatten(1).t()).sum(1) + conv.bias
    if scale is not None:
        value = value * scale.flatten().index_select(0, rows)[:, None]
    if residual is not None:
        value = value + residual.permute(0, 2, 3, 1).reshape(-1, value.shape[1]).index_select(0, rows)
    return ACTIVATIONS[conv.act](value)


def _reference(
    x: Tensor, conv: RowConv, rows: Tensor, out: Tensor, residual: Tensor | None, scale: Tensor | None
) -> Tensor:
    """Out of place, differentiable."""
    value = _values(x, conv, rows, residual, scale).to(out.dtype)
    batch, count, height, width = out.shape
    flat = out.permute(0, 2, 3, 1).reshape(-1, count).index_copy(0, rows.long(), value)
    return flat.view(batch, height, width, count).permute(0, 3, 1, 2)


def _execute(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    packed: list[Tensor],
    rows: Tensor,
    out: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    act: str | None,
) -> None:
    """In place: the native kernel where the weights are packed for it, else plain torch."""
    conv = RowConv(weight, bias, pair(stride), pair(padding), pair(dilation), groups, act)
    native = kernels(dtype=x.dtype) if packed else None
    if native is not None:
        _call_native(native, x, conv, packed, rows, out, residual, scale)
        return
    if weight.dtype != x.dtype:  # autocast, which does not reach beneath a counter of operators
        conv = replace(conv, weight=weight.to(x.dtype), bias=bias.to(x.dtype))
    high, wide = out.shape[2:]
    column, line = rows.long() % wide, rows.long() // wide
    # autocast multiplies in another type, and a layer computed whole leaves it so
    out[line // high, :, line % high, column] = _values(x, conv, rows, residual, scale).to(out.dtype)


def _call_native(
    native: Kernels,
    x: Tensor,
    conv: RowConv,
    packed: Sequence[Tensor],
    rows: Tensor,
    out: Tensor,
    residual: Tensor | None,
    scale: Tensor | None,
) -> None:
    positions = rows.to(torch.int32).contiguous()
    factors = None if scale is None else scale.float().contiguous()  # has to live as long as the kernel reads it
    weight, bias, zeros = packed
    native.convolve(
        ctypes.addressof(conv.shape(*x.shape[2:])),
        int(conv.groups > 1),
        x.data_ptr(),
        zeros.data_ptr(),
        positions.data_ptr(),
        positions.numel(),
        weight.data_ptr(),
        bias.data_ptr(),
        None if factors is None else factors.data_ptr(),
        None if residual is None else residual.data_ptr(),
        out.data_ptr(),
    )


register_in_place(
    'conv2d_rows(Tensor x, Tensor weight, Tensor bias, Tensor[] packed, Tensor rows, Tensor(a!) out, Tensor? residual, '
    'Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups, str? act) -> ()',
    _execute,
)


@register_flop_formula(torch.ops.eff_plugins.conv2d_rows)
def _flops(
    x: torch.Size, weight: torch.Size, bias: torch.Size, packed: object, rows: torch.Size, *_: object, **__: object
) -> int:
    """Two a multiply-add, as torch's counter counts."""
    return 2 * rows[0] * weight.numel()
