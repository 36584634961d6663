"""Temporal shift: a 2D backbone looks along time by exchanging channels between neighbouring frames.

Lin, Gan, Han, "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019. Written from the paper: the
residual shift of section 3.2, bi-directional, zeros beyond the first and the last frame. It costs no multiply-adds and
no parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.dynamic.module import is_dynamic
from eff_plugins.registry import MODELS


def temporal_shift(x: Tensor, num_segments: int, shift_div: int = 8) -> Tensor:
    """Move 1/``shift_div`` of the channels one frame back in time and as many one frame forward.

    The first ``C // shift_div`` channels of frame t become those of frame t + 1, the next as many those of frame t - 1,
    the others stay. What would come from before the first or after the last frame is zero.

    Args:
        x: (N * T, C, H, W), the T frames of a clip one after another. Any memory format; the result has the same.
        num_segments: T.
        shift_div: The share of the channels that moves in each direction is 1 / ``shift_div``.

    Returns:
        (N * T, C, H, W).

    Raises:
        ValueError: ``x`` has no whole number of clips, or fewer channels than ``shift_div``, so that none would move.
    """
    frames, channels, height, width = x.shape
    if frames % num_segments:
        raise ValueError(
            f'temporal shift: a batch of {frames} frames is no whole number of clips of num_segments={num_segments}; '
            'num_segments must equal the number of frames that the data pipeline samples from a clip'
        )
    fold = channels // shift_div
    if not fold:
        raise ValueError(f'temporal shift: shift_div={shift_div} moves none of {channels} channels; give a smaller one')
    clips = x.view(frames // num_segments, num_segments, channels, height, width)
    out = torch.zeros_like(x)
    moved = out.view_as(clips)
    moved[:, :-1, :fold] = clips[:, 1:, :fold]
    moved[:, 1:, fold : 2 * fold] = clips[:, :-1, fold : 2 * fold]
    moved[:, :, 2 * fold :] = clips[:, :, 2 * fold :]
    return out


def residual_branches(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The residual branches inside ``module``, with their names, in the order of ``named_modules``.

    A block declares its branch: attribute ``has_residual`` is true and ``branch`` is the module whose output it adds to
    its input. Every backbone of the suite with such blocks works in :class:`TemporalShift`.
    """
    for name, block in module.named_modules():
        if getattr(block, 'has_residual', False):
            branch = getattr(block, 'branch', None)
            if not isinstance(branch, nn.Module):
                raise TypeError(f'{name} ({type(block).__name__}) has has_residual=True, but its branch is no module')
            yield f'{name}.branch' if name else 'branch', branch


@MODELS.register_module()
class TemporalShift(BaseModule):
    """Any residual 2D backbone as a video backbone: (N * T, C, H, W) -> (N * T, C', H', W'), the last map.

    The shift enters the residual branches, not the shortcuts, so every frame keeps its own features. One tensor is
    returned because the 2D recognisers of mmaction2 want one. Below ``backbone.`` the keys are those of the image
    network: its ``init_cfg`` loads image weights strictly.

    Args:
        backbone: Config of the backbone (or the module itself), with at least one block as
            :func:`residual_branches` finds them. Give it a single entry in ``out_indices``.
        num_segments: Frames T a clip; the head's ``num_segments`` and the pipeline's number of frames equal it.
        shift_div: 1 / ``shift_div`` of the channels moves forward and as many backward in time.
        init_cfg: As in mmengine; weights of an image network belong in the backbone's ``init_cfg``.

    Attributes:
        out_channels: (C',) of the returned map; ``out_strides`` and ``size_divisor`` as the backbone's.

    Raises:
        ValueError: ``num_segments`` or ``shift_div`` is too small, several maps are asked for, or the backbone has no
            residual block to shift in, or is dynamic.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | nn.Module,
        num_segments: int = 8,
        shift_div: int = 8,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_segments < 1:
            raise ValueError(f'num_segments={num_segments} must be at least 1')
        if shift_div < 2:
            raise ValueError(f'shift_div={shift_div} must be at least 2: twice 1/shift_div of the channels moves')
        self.num_segments = num_segments
        self.shift_div = shift_div
        network: Any = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        if len(network.out_channels) != 1:
            levels = tuple(getattr(network, 'out_indices', ()))
            raise ValueError(
                f'TemporalShift returns one map, but its backbone gives {len(network.out_channels)}; set '
                f'out_indices=({levels[-1] if levels else "..."},) in the backbone'
            )
        self.backbone = network
        self.out_channels = tuple(network.out_channels)
        self.out_strides = tuple(network.out_strides)
        self.size_divisor = network.size_divisor

        if is_dynamic(network):
            raise ValueError(
                'TemporalShift moves channels between the frames of a clip; a dynamic backbone computes some frames, or '
                'parts of them, alone'
            )
        branches = [branch for _, branch in residual_branches(network)]
        if not branches:
            raise ValueError(f'{type(network).__name__} has no block with has_residual=True to shift in')
        for branch in branches:
            # A hook, not a wrapping module: the keys of the state dict stay those of the image network.
            branch.register_forward_pre_hook(self._shift)

    def _shift(self, branch: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (temporal_shift(inputs[0], self.num_segments, self.shift_div), *inputs[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)[-1]
