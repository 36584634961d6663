"""Convolution + normalisation + activation, with the two padding rules that published networks use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.ops.dense import same_padding
from eff_plugins.registry import MODELS

ACTIVATIONS: dict[str, type[nn.Module]] = {
    'relu': nn.ReLU,
    'relu6': nn.ReLU6,
    'swish': nn.SiLU,
    'hswish': nn.Hardswish,
}
GATES: dict[str, type[nn.Module]] = {'sigmoid': nn.Sigmoid, 'hsigmoid': nn.Hardsigmoid}


def build_act(name: str, inplace: bool = True) -> nn.Module:
    """The activation behind a key of ``ACTIVATIONS``.

    Raises:
        ValueError: Unknown key; the known ones are listed.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f'unknown activation {name!r}; known: {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[name](inplace=inplace)


_NORMS: dict[str, type[nn.Module]] = {'BN': nn.BatchNorm2d, 'BN2d': nn.BatchNorm2d, 'SyncBN': nn.SyncBatchNorm}


def build_norm(cfg: Mapping, channels: int) -> nn.Module:
    """Build a normalisation layer from a config such as ``dict(type='BN', eps=1e-3)``.

    Args:
        cfg: ``type`` is ``BN``, ``SyncBN``, ``GN`` (with ``num_groups``) or any registered type that takes
            ``num_features``; ``requires_grad=False`` freezes its affine terms.
        channels: Number of channels C of the (B, C, H, W) input.
    """
    args = dict(cfg)
    kind = args.pop('type')
    requires_grad = args.pop('requires_grad', True)
    if kind == 'GN':
        layer: nn.Module = nn.GroupNorm(num_channels=channels, **{k: v for k, v in args.items() if k != 'momentum'})
    elif kind in _NORMS:
        layer = _NORMS[kind](channels, **args)
    else:
        layer = MODELS.build({'type': kind, 'num_features': channels, **args})
    for parameter in layer.parameters():
        parameter.requires_grad_(requires_grad)
    return layer


class SamePadConv2d(nn.Conv2d):
    """Convolution whose output is ceil(size / stride), padded as TensorFlow's ``SAME`` does.

    The padding depends on the input's size: where it is odd in total, the larger half is at the bottom and right.
    Networks whose weights come from TensorFlow need it; at stride 1 it equals symmetric padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        return same_pad_conv2d(x, self.weight, self.bias, self.stride, self.dilation, self.groups)


def same_pad_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """``F.conv2d`` padded as TensorFlow's ``SAME``; like torch's functions it can be overridden by a function mode."""
    if has_torch_function_unary(x):
        return handle_torch_function(same_pad_conv2d, (x,), x, weight, bias, stride, dilation, groups)
    (top, bottom), (left, right) = same_padding(x.shape[-2:], weight.shape[-2:], stride, dilation)
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


class ConvNormAct(nn.Sequential):
    """Convolution without bias, normalisation and (unless ``act`` is None) activation: (B, C, H, W) -> (B, C', H', W').

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: Odd side of the kernel.
        stride: H' = ceil(H / stride).
        groups: Groups of the convolution.
        norm_cfg: See :func:`build_norm`.
        act: A key of ``ACTIVATIONS``, or None.
        padding: ``'symmetric'`` pads dilation * (kernel_size - 1) / 2 on every side; ``'same'`` as TensorFlow does.
        dilation: Spacing of the kernel's taps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        norm_cfg: Mapping,
        act: str | None,
        padding: str = 'symmetric',
        dilation: int = 1,
    ) -> None:
        super().__init__()
        pads, conv_class = dilation * (kernel_size - 1) // 2, nn.Conv2d
        if padding == 'same' and stride > 1:
            pads, conv_class = 0, SamePadConv2d
        conv = conv_class(in_channels, out_channels, kernel_size, stride, pads, dilation, groups, bias=False)
        self.conv = conv
        self.norm = build_norm(norm_cfg, out_channels)
        if act is not None:
            self.act = build_act(act)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means: (B, C, H, W) -> (B, C, H, W).

    Source: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018, section 3.

    Args:
        channels: C.
        squeezed: Channels between the two 1x1 convolutions.
        act: Activation between them, a key of ``ACTIVATIONS``.
        gate: A key of ``GATES``.
        inplace: Overwrite the input where no gradient is recorded; only where nothing else reads it.
    """

    def __init__(
        self, channels: int, squeezed: int, act: str = 'relu', gate: str = 'sigmoid', inplace: bool = False
    ) -> None:
        super().__init__()
        self.inplace = inplace
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = build_act(act)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = GATES[gate]()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))
        return x * scale if torch.is_grad_enabled() or not self.inplace else x.mul_(scale)


class ChannelShuffle(nn.Module):
    """Interleave the channels of ``groups`` groups: (B, C, H, W) -> (B, C, H, W).

    Source: Zhang et al., "ShuffleNet", CVPR 2018, section 3.1.

    Args:
        groups: Number of groups; C is a multiple of it.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shuffled = x.reshape(batch, self.groups, channels // self.groups, height, width).transpose(1, 2)
        return shuffled.reshape(batch, channels, height, width)


def freeze(module: nn.Module, training: bool = False) -> None:
    """Put ``module`` into eval mode and stop its parameters' gradients.

    Policies in it go on learning, as they are no part of what was trained before.

    Args:
        module: What is frozen.
        training: Mode of the dynamic modules in it.
    """
    policies = [part for part in module.modules() if isinstance(part, DynamicModule)]
    learning = {id(parameter) for part in policies for parameter in part.parameters()}
    module.eval()
    for part in policies:
        part.train(training)
    for parameter in module.parameters():
        if id(parameter) not in learning:
            parameter.requires_grad_(False)


def init_conv_norm(module: nn.Module) -> None:
    """He-normal (fan out, per group) convolutions, unit normalisation, small normal linear layers.

    Policies of dynamic networks (``is_policy``) have their own initialisation and are left alone.

    Source: He et al. 2015, as in the reference initialisation of the MobileNet and EfficientNet families.
    """
    own = policy_layers(module)
    for layer in module.modules():
        if layer in own:
            continue
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, 0.0, (2.0 / fan_out) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def policy_layers(module: nn.Module) -> set[nn.Module]:
    """Every module inside a policy of a dynamic network (``is_policy``) within ``module``."""
    return {layer for part in module.modules() if getattr(part, 'is_policy', False) for layer in part.modules()}


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` keeps running statistics that ``norm_eval`` has to freeze."""
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
