"""One split-transform-merge block, ``y = x + merge_i T_i(split_i(x))``, for every published form of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.residual import add_residual
from eff_plugins.models.layers.conv import ChannelShuffle, ConvNormAct, SqueezeExcite, build_act
from eff_plugins.models.layers.stm_forms import FORMS, Block, Conv, Pool, Shuffle, Site, Step
from eff_plugins.registry import MODELS


@MODELS.register_module()
class SplitTransformMerge(nn.Module):
    """A split-transform-merge block: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    It takes the arguments of a convolution, so that it can stand in for one, for instance for the 3x3 of the bottlenecks
    of mmdet's and mmseg's ResNet::

        dcn=dict(type='eff_plugins.SplitTransformMerge', form='inception', linear_output=True),
        stage_with_dcn=(False, True, True, True)

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: Odd side of the filtering kernel.
        stride: Its stride.
        padding: None or what keeps the size at stride 1, dilation * (kernel_size - 1) / 2.
        dilation: Its dilation.
        bias: With ``linear_output``: give each path's last convolution a bias.
        form: A name in :data:`~eff_plugins.models.layers.stm_forms.FORMS`, or a description of an own block: a
            :class:`~eff_plugins.models.layers.stm_forms.Block` or plain data as ``Block.from_dict`` reads it (kernel,
            stride, dilation and options are then part of it and stay at their defaults here).
        norm_cfg: Normalisation after each convolution, BatchNorm by default.
        linear_output: Leave out normalisation and activation after each path's last convolution and after the merge,
            because the surrounding network has its own.
        **options: Options of the named form, such as ``groups=``.

    Attributes:
        branch: What is added to the input where ``has_residual``, and the block's result before the activation otherwise.

    Raises:
        ValueError: Unknown form or option, channels that the groups or the split do not divide, paths whose strides or
            (in a sum) channels differ, a residual between different shapes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = False,
        form: str | Mapping[str, Any] | Block = 'resnext',
        norm_cfg: Mapping | None = None,
        linear_output: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size} must be odd')
        if padding not in (None, dilation * (kernel_size - 1) // 2):
            raise ValueError(
                f'padding={padding}: only {dilation * (kernel_size - 1) // 2}, which keeps the size of a '
                f'kernel_size={kernel_size}, dilation={dilation} convolution, is supported'
            )
        if stride < 1 or dilation < 1:
            raise ValueError(f'stride={stride} and dilation={dilation} must be at least 1')
        if bias and not linear_output:
            raise ValueError('bias=True needs linear_output=True: before a normalisation a bias has no effect')
        site = Site(in_channels, out_channels, kernel_size, stride, dilation)
        block = describe(form, site, options)
        self.block = block.with_linear_output(bias) if linear_output else block
        self.branch: nn.Module = _Branch(self.block, in_channels, norm_cfg or dict(type='BN'))
        self.has_residual = self.block.residual
        _check_output(self.branch, self.block, site, form)
        if self.block.act is not None:
            self.act = build_act(self.block.act)

    def forward(self, x: Tensor) -> Tensor:
        y = add_residual(x, self.branch(x)) if self.has_residual else self.branch(x)
        return y if self.block.act is None else self.act(y)


def describe(form: str | Mapping[str, Any] | Block, site: Site, options: Mapping[str, Any]) -> Block:
    """The description behind the arguments ``form`` and ``options`` of :class:`SplitTransformMerge`."""
    if isinstance(form, str):
        if form not in FORMS:
            raise ValueError(f'unknown form {form!r}; known forms: {", ".join(FORMS)}')
        known = list(inspect.signature(FORMS[form]).parameters)[1:]
        for option in options:
            if option not in known:
                raise ValueError(f'form {form!r} has no option {option!r}; its options: {", ".join(known)}')
        return FORMS[form](site, **options)
    if options or (site.kernel, site.stride, site.dilation) != (3, 1, 1):
        raise ValueError(
            'a described form says itself what kernel, stride, dilation and groups are: leave out '
            f'{", ".join(options) or "kernel_size, stride and dilation"}'
        )
    return form if isinstance(form, Block) else Block.from_dict(form)


class _Branch(nn.Module):
    """``shuffle(merge_i T_i(split_i(x)))``; ``channels`` and ``stride`` of its result are known."""

    def __init__(self, block: Block, in_channels: int, norm_cfg: Mapping) -> None:
        super().__init__()
        self.split = None if block.split is None else tuple(block.split)
        self.steps = tuple(map(len, block.paths))
        if self.split is not None and sum(self.split) != in_channels:
            raise ValueError(f'split={block.split} adds up to {sum(self.split)}, the input has {in_channels} channels')
        received = self.split or (in_channels,) * len(block.paths)
        paths, channels, strides = [], [], []
        for path, width in zip(block.paths, received, strict=True):
            layers, width, stride = _build_path(path, width, norm_cfg)
            paths.append(nn.Sequential(*layers))
            channels.append(width)
            strides.append(stride)
        if len({*strides}) > 1:
            raise ValueError(f'the paths have strides {strides}; what is merged must have one size')
        if block.merge == 'sum' and len({*channels}) > 1:
            raise ValueError(f"the paths have {channels} channels; merge='sum' needs equal ones")
        self.paths = nn.ModuleList(paths)
        self.sums = block.merge == 'sum'
        self.channels = channels[0] if self.sums else sum(channels)
        self.stride = strides[0]
        self.shuffle = ChannelShuffle(block.shuffle) if block.shuffle > 1 else None
        if self.channels % block.shuffle:
            raise ValueError(f'{self.channels} channels cannot be shuffled between {block.shuffle} groups')
        # A shuffle of as many groups as there are paths of one width interleaves them: each channel is then moved once.
        self.interleaves = not self.sums and len(paths) == block.shuffle and len({*channels}) == 1

    def forward(self, x: Tensor) -> Tensor:
        parts: Sequence[Tensor] = [x] * len(self.steps) if self.split is None else x.split_with_sizes(self.split, 1)
        # a path without steps is not called: at batch 1 even that is seen
        outs = [path(part) if steps else part for path, part, steps in zip(self.paths, parts, self.steps, strict=True)]
        if self.interleaves:
            return torch.stack(outs, 2).flatten(1, 2)
        if len(outs) == 1:
            y = outs[0]
        else:
            y = reduce(torch.add, outs) if self.sums else torch.cat(outs, 1)
        return y if self.shuffle is None else self.shuffle(y)


def _build_path(path: Sequence[Step], channels: int, norm_cfg: Mapping) -> tuple[list[nn.Module], int, int]:
    """Layers of a transform, channels of its result, and its stride."""
    layers: list[nn.Module] = []
    stride = 1
    for step in path:
        if isinstance(step, Conv):
            layers.append(_build_conv(step, channels, norm_cfg))
            channels, stride = step.channels, stride * step.stride
        elif isinstance(step, Pool):
            if step.kind not in ('max', 'avg'):
                raise ValueError(f"kind={step.kind!r} of a pooling must be 'max' or 'avg'")
            pool = nn.MaxPool2d if step.kind == 'max' else nn.AvgPool2d
            layers.append(pool(step.kernel, step.stride, step.kernel // 2))
            stride *= step.stride
        elif isinstance(step, Shuffle):
            if channels % step.groups:
                raise ValueError(f'{channels} channels cannot be shuffled between {step.groups} groups')
            layers.append(ChannelShuffle(step.groups))
        else:
            own = any(isinstance(layer, ConvNormAct) for layer in layers)  # else it would write over the block's input
            layers.append(SqueezeExcite(channels, step.channels, step.act, step.gate, inplace=own))
    return layers, channels, stride


def _build_conv(step: Conv, channels: int, norm_cfg: Mapping) -> nn.Module:
    if step.channels < 1 or step.groups < 1 or channels % step.groups or step.channels % step.groups:
        raise ValueError(
            f'a convolution of {channels} to {step.channels} channels cannot have groups={step.groups}: both must be '
            'positive multiples of it; choose other groups or widths'
        )
    if step.norm:
        return ConvNormAct(
            channels,
            step.channels,
            step.kernel,
            step.stride,
            step.groups,
            norm_cfg=norm_cfg,
            act=step.act,
            dilation=step.dilation,
        )
    pads = step.dilation * (step.kernel - 1) // 2
    conv = nn.Conv2d(
        channels, step.channels, step.kernel, step.stride, pads, step.dilation, step.groups, bias=step.bias
    )
    return conv if step.act is None else nn.Sequential(conv, build_act(step.act))


def _check_output(branch: Any, block: Block, site: Site, form: object) -> None:
    name = f'form {form!r}' if isinstance(form, str) else 'the described block'
    if branch.channels != site.out_channels:
        raise ValueError(f'{name} gives {branch.channels} channels, out_channels={site.out_channels} are asked for')
    if block.residual and (branch.stride != 1 or site.in_channels != site.out_channels):
        raise ValueError(
            f'{name} cannot add its input of {site.in_channels} channels to {site.out_channels} channels at stride '
            f'{branch.stride}; leave residual out'
        )
