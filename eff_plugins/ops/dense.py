"""Whole convolutions on a CPU, weights packed once, bias, residual and activation fused: the dense side of comparisons.

Eager torch packs a convolution's weights anew at every call and passes over the map again for each activation and sum.
oneDNN can do without; torch.compile uses the same operators when it freezes a model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary
from torch.utils.flop_counter import register_flop_formula

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


class PackedConv2d(nn.Conv2d):
    """A convolution for inference whose weights oneDNN has packed: (B, C, H, W) -> (B, C', H', W').

    It takes over weight and bias of ``conv`` and keeps their names. Packing depends on the input's size and happens at the
    first call with each. Where oneDNN cannot be used (another device or type, gradients) it computes what torch computes.

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
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x, self.act)

    def fused(self, x: Tensor, act: str | None = None, residual: Tensor | None = None) -> Tensor:
        """``act(conv(x) + residual)``; the residual may be overwritten where no gradient is recorded.

        Like torch's functions it can be overridden by a function mode.
        """
        if has_torch_function_unary(x):
            return handle_torch_function(PackedConv2d.fused, (x,), self, x, act, residual)
        if not self._packs(x):
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return ACTIVATIONS[act](y if residual is None else y + residual)
        weight = self._pack(x)
        pads, strides, dilations = list(self.padding), list(self.stride), list(self.dilation)
        name, scalars, algorithm = _POINTWISE[act]
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self.bias, pads, strides, dilations, self.groups, name, scalars, algorithm
            )
        unary = 'relu' if act == 'relu' else None  # the only one that is fused after a sum
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, self.bias, pads, strides, dilations, self.groups, 'add', 1.0, unary, [], ''
        )
        return y if unary == act else ACTIVATIONS[act](y)

    def _packs(self, x: Tensor) -> bool:
        return (
            x.device.type == 'cpu'
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled('cpu')
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and torch.backends.mkldnn.is_available()
            and isinstance(self.padding, tuple)
        )

    def _pack(self, x: Tensor) -> Tensor:
        version = 0 if self.weight.is_inference() else self.weight._version
        key = (*x.shape, self.weight.data_ptr(), version)
        packed = self._packed.get(key)
        if packed is None:
            for old in list(self._packed)[: 1 - _KEPT]:  # another thread may be at it, too
                self._packed.pop(old, None)
            weight = self.weight.detach().contiguous(memory_format=torch.channels_last).to_mkldnn()
            packed = self._packed[key] = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
                weight, list(self.padding), list(self.stride), list(self.dilation), self.groups, list(x.shape)
            )
        return packed

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_packed': {}}  # opaque to a copy, which packs its own


if hasattr(torch.ops.mkldnn, '_convolution_pointwise'):

    @register_flop_formula(torch.ops.mkldnn._convolution_pointwise)
    def _flops(*shapes: Any, out_shape: torch.Size, **_: object) -> int:
        """Two a multiply-add; the overload with a residual has it between input and weight."""
        with_residual = isinstance(shapes[2], torch.Size) and len(shapes[2]) == 4
        return 2 * out_shape.numel() * shapes[2 if with_residual else 1][1:].numel()
