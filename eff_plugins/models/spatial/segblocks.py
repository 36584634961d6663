"""Blocks of a picture in full or half resolution, chosen for each picture: SegBlocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.dynamic.blockwise import Blockwise
from eff_plugins.dynamic.module import DynamicModule, MacsOf, WrapsStatic
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.reinforce import Sampled, expected, log_probability
from eff_plugins.ops.block_conv import forget_packed
from eff_plugins.ops.dual import DualGrid
from eff_plugins.registry import MODELS


class BlockPolicy(nn.Module):
    """Picture (B, C, H, W) -> one score a block, (B, 1, ceil(H / block), ceil(W / block)).

    A small convolutional network on the picture reduced to 32 pixels a block, as in SegBlocks (its layers: 7x7 of stride 4
    and three 5x5 of stride 2).

    Args:
        block_size: Side of a block in pixels, a multiple of 32.
        in_channels: C.
        width: Channels of the layers.
        keep: Bias of the scores at the start.

    Raises:
        ValueError: ``block_size`` is no multiple of 32.
    """

    is_policy = True

    def __init__(self, block_size: int, in_channels: int = 3, width: int = 32, keep: float = 0.0) -> None:
        super().__init__()
        if block_size < 32 or block_size % 32:
            raise ValueError(
                f'block_size={block_size} must be a multiple of 32, which is what the policy sees of a block'
            )
        self.step = block_size // 32
        layers: list[nn.Module] = []
        for channels, kernel, stride in ((in_channels, 7, 4), (width, 5, 2), (width, 5, 2)):
            layers += [
                nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.score = nn.Conv2d(width, 1, 5, 2, 2)
        nn.init.constant_(self.score.bias, keep)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        small = x[:, :, self.step // 2 :: self.step, self.step // 2 :: self.step]
        block = 32 * self.step
        missing = [-(-n // block) * 32 - part for n, part in zip(x.shape[2:], small.shape[2:], strict=True)]
        return self.score(self.layers(F.pad(small, (0, missing[1], 0, missing[0]))))


def build_host(backbone: Mapping[str, Any] | nn.Module, block_size: int, reason: str = '') -> Any:
    """A backbone whose pictures are cut into blocks.

    Args:
        backbone: Config of the backbone, or the module itself.
        block_size: Side of a block in pixels.
        reason: Appended to the error.

    Raises:
        ValueError: ``block_size`` does not fit the backbone's strides.
    """
    network: Any = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
    if block_size % (2 * max(network.out_strides)):
        raise ValueError(
            f"block_size={block_size} must be a multiple of {2 * max(network.out_strides)}, twice the backbone's "
            f'largest stride{reason}'
        )
    return network


@MODELS.register_module()
class SegBlocks(WrapsStatic, BaseModule, DynamicModule):
    """A backbone whose picture is cut into blocks, each of them computed in full or in half resolution.

    Verelst & Tuytelaars, "SegBlocks: Block-Based Dynamic Resolution Networks for Real-Time Segmentation", TPAMI 2022. The
    backbone is any convolutional one; its layers run on blocks whose borders come from their neighbours (BlockPad), so that
    with all blocks in full resolution it is the plain network. The returned maps are whole, with the pixels of
    half-resolution blocks repeated: necks and heads stay as they are. Train it with ``eff_plugins.ReinforceHook``.

    Below ``backbone.`` the keys are those of the static network, below ``policy.`` the policy's; a checkpoint of the static
    network, without the former, is loaded, too.

    Args:
        backbone: Config of the backbone (or the module itself), which declares ``out_channels`` and ``out_strides``.
        block_size: Side of a block in pixels; a multiple of 32 and of twice the backbone's largest stride.
        policy: Arguments of :class:`BlockPolicy`.
        init_cfg: As in mmengine; weights belong in the backbone's ``init_cfg``.

    Attributes:
        out_channels: Of the returned maps; ``out_strides`` and ``size_divisor`` as the backbone's.

    Raises:
        ValueError: ``block_size`` does not fit the backbone's strides, or the backbone recomputes activations.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | nn.Module,
        block_size: int = 128,
        policy: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)  # and through it DynamicModule's
        network = build_host(backbone, block_size, ': blocks of half the resolution have whole pixels then')
        if getattr(network, 'with_cp', False):
            raise ValueError('with_cp=True recomputes layers outside of the blocks; SegBlocks needs with_cp=False')
        self.backbone = network
        self.block_size = block_size
        self.policy = BlockPolicy(block_size, **(policy or {}))
        self.decide = Sampled()
        self.out_channels = tuple(network.out_channels)
        self.out_strides = tuple(network.out_strides)
        self.size_divisor = network.size_divisor
        self._macs_of, self._policy_macs_of = MacsOf(), MacsOf()

    def settings(self) -> tuple:
        return (self.block_size,)

    def train(self, mode: bool = True) -> SegBlocks:
        forget_packed(self.backbone)  # as RowExecutor does: averaged weights are swapped in before an evaluation
        return super().train(mode)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.check_execution()
        if self.execution == 'dense':
            return self.backbone(x)
        scores = self.policy(x)
        on = self.decide(scores)
        if not len(x) or (self.execution == 'sparse' and bool(on.all())):
            outs, macs = self.backbone(x), None
        else:
            blocks = Blockwise(DualGrid(on[:, 0] > 0.5, (x.shape[2], x.shape[3]), self.block_size), x)
            with blocks:
                pools = self.backbone(x)
            levels = (stride.bit_length() - 1 for stride in self.out_strides)
            outs, macs = tuple(map(blocks.combine, pools, levels)), blocks.macs
        if recording():
            self._report(x, scores, on, macs)
        return outs

    def _report(self, x: Tensor, scores: Tensor, on: Tensor, macs: Tensor | None) -> None:
        size = tuple(x.shape[1:])
        dense, policy = self._macs_of(self.backbone, size), self._policy_macs_of(self.policy, size)
        density = expected(scores, on).float().flatten(1).mean(1)
        spent = torch.full((len(x),), dense, device=x.device) if macs is None else macs.float()
        # a block in half the resolution costs a quarter; the value is what was executed
        slope = 0.75 * dense * (density - density.detach())
        emit(
            self,
            dense_macs=dense,
            macs=spent + slope + policy,
            policy_macs=policy,
            least_macs=dense / 4 + policy,  # borders apart
            density=density,
            mask=on.detach(),
            cell=self.block_size,
            scores=scores.detach(),
            log_prob=log_probability(scores, on),
            masked_macs=(spent + policy).detach(),
        )
