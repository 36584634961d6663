"""What the image backbones share: which maps are returned, freezing, checkpointing, strict loading."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.dynamic.residual import residual_blocks, run_block
from eff_plugins.models.layers.conv import freeze, init_conv_norm, is_norm, policy_layers


class StagedBackbone(BaseModule):
    """What backbones of a stem and stages share: initialising or loading, freezing, checkpointing.

    Attributes:
        stages: The stages that are built, in order.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
    """

    frozen_stages: int
    norm_eval: bool
    with_cp: bool

    def stem_parts(self) -> list[nn.Module]:
        """What belongs to the stem."""
        raise NotImplementedError

    def settle(self) -> None:
        """Called when all is built."""
        for _, block in residual_blocks(self):
            block.with_cp = self.with_cp
        self._freeze(True)

    def initialise(self) -> None:
        """Random weights."""
        init_conv_norm(self)

    def init_weights(self) -> None:
        """Initialise, or load ``init_cfg``'s checkpoint; a key that is missing or unexpected is an error."""
        if self.is_init:
            return
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            from eff_plugins.hub import load_backbone_weights

            load_backbone_weights(self, self.init_cfg['checkpoint'])
        else:
            self.initialise()
            if self.init_cfg:
                super().init_weights()
        self._is_init = True  # mmengine would list every parameter on the terminal

    def _freeze(self, training: bool) -> None:
        if self.frozen_stages >= 0:
            for part in self.stem_parts():
                freeze(part, training)
        for stage in self.stages[: max(self.frozen_stages, 0)]:  # type: ignore[index, union-attr]
            freeze(stage, training)

    def train(self, mode: bool = True) -> StagedBackbone:
        """Like ``nn.Module.train``, but frozen stages (and with ``norm_eval`` all BatchNorms) stay in eval mode.

        Policies of a dynamic network begin without statistics and learn theirs.
        """
        super().train(mode)
        self._freeze(mode)
        if mode and self.norm_eval:
            learning = policy_layers(self)
            for module in self.modules():
                if is_norm(module) and module not in learning:
                    module.eval()
        return self


class ImageBackbone(StagedBackbone):
    """A stem and stages of blocks: (B, C, H, W) -> one map for each of ``out_indices``.

    A subclass calls ``set_stem`` and ``add_stage`` in order, then ``finish``. Maps are numbered by resolution level (0 =
    stride 2, 1 = stride 4 ...) or, where ``first_stride`` is 4, as mmdet's ResNet does (0-3 = C2-C5); a level's map is the
    last one of that stride.

    Args:
        in_channels: Channels of the input.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Their strides; a map's size is ceil(input / stride), GoogLeNet's up to one pixel less.
        size_divisor: The largest of these strides.
    """

    stem: nn.Module
    first_stride = 2

    def __init__(
        self, in_channels: int = 3, norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.stages = nn.ModuleList()
        self._last_of_stride: dict[int, tuple[int, int]] = {}  # stride -> (stage or -1 for the stem, channels)

    def set_stem(self, stem: nn.Module, channels: int, stride: int) -> None:
        """``stem`` maps (B, in_channels, H, W) to ``channels`` channels at ``stride``."""
        self.stem = stem
        self._last_of_stride[stride] = (-1, channels)

    def add_stage(self, blocks: Sequence[nn.Module], channels: int, stride: int) -> None:
        """Append blocks that end with ``channels`` channels at ``stride`` (of the whole network up to here)."""
        self._last_of_stride[stride] = (len(self.stages), channels)
        self.stages.append(nn.Sequential(*blocks))

    def finish(self, out_indices: Sequence[int], frozen_stages: int) -> None:
        """Choose the maps and drop the stages that none of them needs.

        Args:
            out_indices: Maps to return, ascending.
            frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.

        Raises:
            ValueError: A map that the network does not have, or ``frozen_stages`` out of range.
        """
        if not -1 <= frozen_stages <= len(self.stages):
            raise ValueError(f'frozen_stages={frozen_stages} is outside -1..{len(self.stages)} (0 = stem only)')
        self.frozen_stages = frozen_stages
        self.out_indices = tuple(out_indices)
        first = self.first_stride.bit_length() - 1
        maps = {s.bit_length() - 1 - first: s for s in sorted(self._last_of_stride) if s >= self.first_stride}
        if not self.out_indices or list(self.out_indices) != sorted({*self.out_indices} & {*maps}):
            raise ValueError(
                f'out_indices={self.out_indices} must ascend and lie in {tuple(maps)}, the resolution levels of '
                f'this network (0 = stride {self.first_stride}, 1 = stride {2 * self.first_stride}, ...)'
            )
        self.out_strides = tuple(maps[index] for index in self.out_indices)
        self._out_stages = tuple(self._last_of_stride[s][0] for s in self.out_strides)
        self.out_channels = tuple(self._last_of_stride[s][1] for s in self.out_strides)
        self.size_divisor = max(self.out_strides)
        # What comes after the last map asked for is not built: nothing idle, and every parameter gets a gradient.
        del self.stages[self._out_stages[-1] + 1 :]
        self.settle()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outs = [x] if -1 in self._out_stages else []
        for i, stage in enumerate(self.stages):
            for block in cast(nn.Sequential, stage):
                x = run_block(block, x, self.with_cp)
            if i in self._out_stages:
                outs.append(x)
        return tuple(outs)

    def stem_parts(self) -> list[nn.Module]:
        return [self.stem]
