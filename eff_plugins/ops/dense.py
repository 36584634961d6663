"""Whole convolutions on a CPU, weights packed once, bias, residual and activation fused: the dense side of comparisons.

Eager torch packs a convolution's weights anew at every call and passes over the map again for each activation and sum.
oneDNN can do without; torch.compile uses the same operators when it freezes a model. To set such a call up takes some
50 microseconds, though, so that small convolutions are timed both ways at their first call and run the faster one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import register_flop_formula

from eff_plugins.ops.scratch import scratch
from eff_plugins.profiling.latency import shortest

# activation -> (oneDNN's name, scalars, algorithm)
_POINTWISE: dict[str | None, tuple[str, list[float], str]] = {
    None: ('none', [], ''),
    'relu': ('relu', [], ''),
    'relu6': ('hardtanh', [0.0, 6.0], ''),
    'hswish': ('hardswish', [], ''),
    'swish': ('swish', [], ''),
}
ACTIVATIONS: dict[str | None, Any] = {
    None: lambda x: x,
    'relu': F.relu,
    'relu6': F.relu6,
    'hswish': F.hardswish,
    'swish': F.silu,
}


# Input sizes for which a convolution keeps packed weights
_KEPT = 3
_PLAIN_KEPT = 256
# Multiply-adds of a call from which on packed weights always pay
_LARGE = 30e6
# Kind of layer -> whether torch's own convolution has been found faster here
_small_is_plain: dict[tuple | None, bool] = {}
# What oneDNN has packed convolutions of on this processor
_PACKED_TYPES = [torch.float32] if torch.backends.mkldnn.is_available() else []
if _PACKED_TYPES and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _PACKED_TYPES.append(torch.bfloat16)


class PackedConv2d(nn.Conv2d):
    """A convolution for inference whose weights oneDNN has packed: (B, C, H, W) -> (B, C', H', W').

    It takes over weight and bias of ``conv`` and keeps their names. Packing depends on the input's size and happens at the
    first call with each. Where oneDNN cannot be used (another device or type, gradients), or is slower, it computes
    what torch computes; as that is measured, results may differ by rounding from one process to the next.

    Args:
        conv: The convolution, BatchNorm folded in.
        act: A key of ``ACTIVATIONS`` that ``forward`` applies.
    """

    def __init__(self, conv: nn.Conv2d, act: str | None = None) -> None:
        with torch.device('meta'):
            super().__init__(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                bias=conv.bias is not None,
            )
        self.weight, self.bias = conv.weight, conv.bias
        self.act = act
        self._packed: dict[tuple, Tensor] = {}
        self._plain_at: set[tuple] = set()  # what is not packed, because torch's own convolution is faster

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.act)

    def fused(self, x: Tensor, act: str | None = None, residual: Tensor | None = None) -> Tensor:
        """``act(conv(x) + residual)``; the residual may be overwritten where no gradient is recorded.

        Like torch's functions it can be overridden by a function mode.
        """
        if has_torch_function_unary(x):
            return handle_torch_function(PackedConv2d.fused, (x,), self, x, act, residual)
        weight = self.weight  # each look-up takes a while
        kind = self._type(x, weight)
        if kind is None or (residual is not None and residual.dtype is not kind):
            y = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return ACTIVATIONS[act](y if residual is None else y + residual)
        if x.dtype is not kind:
            x = x.to(kind)
        packed = self._pack(x, weight, act, residual)
        return self._plain(x, weight, act, residual) if packed is None else self._onednn(x, packed, act, residual)

    def _plain(self, x: Tensor, weight: Tensor, act: str | None, residual: Tensor | None) -> Tensor:
        y = F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if residual is not None:
            y.add_(residual)
        return y if act is None else ACTIVATIONS[act](y, inplace=True)

    def _onednn(self, x: Tensor, weight: Tensor, act: str | None, residual: Tensor | None) -> Tensor:
        pads, strides, dilations = list(self.padding), list(self.stride), list(self.dilation)
        name, scalars, algorithm = _POINTWISE[act]
        bias = self.bias if self.bias is None or self.bias.dtype is x.dtype else self.bias.to(x.dtype)  # autocast
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise.default(
                x, weight, bias, pads, strides, dilations, self.groups, name, scalars, algorithm
            )
        unary = 'relu' if act == 'relu' else None  # the only one that is fused after a sum
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, bias, pads, strides, dilations, self.groups, 'add', 1.0, unary, [], ''
        )
        return y if unary == act or act is None else ACTIVATIONS[act](y, inplace=True)

    def _type(self, x: Tensor, weight: Tensor) -> torch.dtype | None:
        """In which type oneDNN multiplies; None where it does not."""
        cast = torch.is_autocast_enabled('cpu')
        kind = torch.get_autocast_dtype('cpu') if cast else x.dtype
        serves = (
            kind in _PACKED_TYPES
            and (cast or kind is weight.dtype)
            and x.is_cpu
            and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
            and self.padding.__class__ is tuple
        )
        return kind if serves else None

    def _pack(self, x: Tensor, weight: Tensor, act: str | None, residual: Tensor | None) -> Tensor | None:
        """The weights as oneDNN wants them for this input; None where torch's own convolution is faster."""
        order, threads = x.is_contiguous(memory_format=torch.channels_last), torch.get_num_threads()
        key = (x.shape, x.dtype, order, threads, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        packed = self._packed.get(key)
        if packed is not None or key in self._plain_at:
            return packed
        kind = self._kind(x, weight, act, residual)
        plain = _small_is_plain.get(kind)
        if not plain:
            opaque = weight.detach().to(x.dtype).contiguous(memory_format=torch.channels_last).to_mkldnn()
            packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                opaque, list(self.padding), list(self.stride), list(self.dilation), self.groups, list(x.shape)
            )
            if kind is not None and plain is None:
                faster = self._plain_is_faster(x, weight, packed, act, residual)
                plain = _small_is_plain.setdefault(kind, faster)  # the same for another thread that measured, too
        if plain:
            if len(self._plain_at) > _PLAIN_KEPT:
                self._plain_at.clear()
            self._plain_at.add(key)
            return None
        for old in list(self._packed)[: 1 - _KEPT]:  # another thread may be at it, too
            self._packed.pop(old, None)
        self._packed[key] = packed  # type: ignore[assignment]
        return packed

    def _kind(self, x: Tensor, weight: Tensor, act: str | None, residual: Tensor | None) -> tuple | None:
        """What is measured once: the layer's geometry, what is fused, threads and, within a factor of 1.4, the map's size.

        None for a call so large that packed weights pay.
        """
        places = x.shape[0] * x.shape[2] * x.shape[3]
        if places / (self.stride[0] * self.stride[1]) * weight.numel() > _LARGE:
            return None
        how = (self.stride, self.padding, self.dilation, self.groups, act, residual is None, torch.get_num_threads())
        order = x.is_contiguous(memory_format=torch.channels_last)
        return round(2 * log2(max(places, 1))), len(x) == 1, order, x.dtype, weight.shape, *how

    def _plain_is_faster(
        self, x: Tensor, weight: Tensor, packed: Tensor, act: str | None, residual: Tensor | None
    ) -> bool:
        """Whether torch's own convolution is, by a measurement."""

        def call(run: Callable[..., Tensor], weights: Tensor) -> Tensor:
            return run(x, weights, act, None if residual is None else residual.clone())

        plain, fast = partial(call, self._plain, weight), partial(call, self._onednn, packed)
        with _disable_current_modes():  # a counter of operators may be watching
            if plain().stride() != fast().stride():
                return False
            own, other = shortest([plain, fast], 7)
        return own < 0.97 * other

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_packed': {}, '_plain_at': set()}  # opaque to a copy, which packs its own


def same_padding(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) of each dimension of a map, as TensorFlow's ``SAME`` pads it: to ceil(size / stride) outputs."""
    pads = []
    for n, k, step, spacing in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // step) - 1) * step + (k - 1) * spacing + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return pads


class PackedSamePadConv2d(PackedConv2d):
    """As :class:`PackedConv2d`, of a convolution that is padded as TensorFlow's ``SAME`` does."""

    def __init__(self, conv: nn.Conv2d, act: str | None = None) -> None:
        super().__init__(conv, act)
        self.padding = (0, 0)  # it pads by itself

    def fused(self, x: Tensor, act: str | None = None, residual: Tensor | None = None) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(PackedSamePadConv2d.fused, (x,), self, x, act, residual)
        return super().fused(self._padded(x), act, residual)

    def _padded(self, x: Tensor) -> Tensor:
        (batch, channels, *size), weight = x.shape, self.weight
        (top, bottom), (left, right) = same_padding(size, weight.shape[2:], self.stride, self.dilation)
        if not (top or bottom or left or right):
            return x
        if self._type(x, weight) is None:
            return F.pad(x, (left, right, top, bottom))
        height, width = size
        out = scratch('padded', (batch, channels, top + height + bottom, left + width + right), x)
        for edge in (out[:, :, :top], out[:, :, top + height :], out[..., :left], out[..., left + width :]):
            edge.zero_()
        out[:, :, top : top + height, left : left + width].copy_(x)
        return out


if hasattr(torch.ops.mkldnn, '_convolution_pointwise'):

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(*shapes: Any, out_shape: torch.Size, **_: object) -> int:
        """Two a multiply-add; the overload with a residual has it between input and weight."""
        with_residual = isinstance(shapes[2], torch.Size) and len(shapes[2]) == 4
        return 2 * out_shape.numel() * shapes[2 if with_residual else 1][1:].numel()
