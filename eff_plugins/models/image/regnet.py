"""RegNetX, RegNetY and RegNetZ: stages from a quantised linear rule of widths.

RegNetX/Y: Radosavovic et al., "Designing Network Design Spaces", CVPR 2020. RegNetZ: Dollar, Singh, Girshick, "Fast and
Accurate Model Scaling", CVPR 2021. Written from the papers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.resnext import Bottleneck
from eff_plugins.models.image.stages import check_keys, resolve_description, round_channels
from eff_plugins.models.image.zoo import Variant
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.registry import MODELS

_QUANTUM = 8  # widths are multiples of it (section 3.3)


@dataclass(frozen=True)
class RegNetStage:
    """``depth`` blocks; the first has stride 2, the others 1.

    Attributes:
        channels: Output channels of every block.
        depth: Number of blocks.
        group_width: Channels of a group of the 3x3 convolution; divides ``hidden``.
        hidden: Channels of the 3x3 convolution.
    """

    channels: int
    depth: int
    group_width: int
    hidden: int


@dataclass(frozen=True)
class RegNetSpec:
    """A network of the RegNet space, described by the rule of its widths or by its stages.

    Attributes:
        depth: Blocks of the whole network (d).
        w_0: Width of the first block, a multiple of 8.
        w_a: Slope of the widths along the blocks.
        w_m: Ratio of the widths of neighbouring stages.
        group_width: Channels of a group of the 3x3 convolutions (g).
        bottleneck: Channels of the 3x3 convolution as a multiple of the block's output channels: 1 in X and Y (the paper's
            1 / b), 4 in Z.
        se_ratio: Squeezed channels of squeeze-excite as a share of the block's input channels; 0 means none (X).
        inverted: Z blocks: linear output, and the input is added only where it has the output's shape.
        act: Activation, a key of ``eff_plugins.models.layers.conv.ACTIVATIONS``.
        stem_channels: Channels of the first 3x3 convolution (stride 2).
        head_channels: Channels of a 1x1 convolution before the classifier's pooling; None means none.
        round_limit: Widths that are made multiples of the group width do not fall below this share of the rule's
            (torchvision: 0.9); 0 means the nearest multiple, as published.
        input_size: Published input side, pixels.
        stages: Stages that the rule does not give, for instance after scaling; with them the rule's numbers are not read.
    """

    depth: int = 0
    w_0: int = 0
    w_a: float = 0.0
    w_m: float = 0.0
    group_width: int = 1
    bottleneck: float = 1.0
    se_ratio: float = 0.0
    inverted: bool = False
    act: str = 'relu'
    stem_channels: int = 32
    head_channels: int | None = None
    round_limit: float = 0.0
    input_size: int = 224
    stages: tuple[RegNetStage, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RegNetSpec:
        """Build from plain data, as written in a config or stored in an ``arch.json``.

        Raises:
            ValueError: A key is unknown; the message names it.
        """
        check_keys(data, cls, 'RegNet')
        stages = data.get('stages', ())
        for stage in stages:
            check_keys(stage, RegNetStage, 'RegNet stage')
        return cls(**{**data, 'stages': tuple(RegNetStage(**stage) for stage in stages)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back."""
        return asdict(self)


def regnet_stages(spec: RegNetSpec) -> tuple[RegNetStage, ...]:
    """The stages that a description means (section 3.3, equations 2 to 4).

    Widths of the blocks grow linearly, are snapped to ``w_0 * w_m ** k`` and to multiples of 8; blocks of one width are a
    stage. Then widths are changed so that groups divide them.

    Raises:
        ValueError: The rule's numbers are out of range; the message names them.
    """
    if spec.stages:
        return spec.stages
    if spec.depth < 1 or spec.w_a < 0 or spec.w_0 < 1 or spec.w_m <= 1 or spec.w_0 % _QUANTUM:
        raise ValueError(
            f'depth={spec.depth}, w_0={spec.w_0}, w_a={spec.w_a}, w_m={spec.w_m}: a RegNet needs depth >= 1, w_0 a '
            f'positive multiple of {_QUANTUM}, w_a >= 0 and w_m > 1 (or its stages)'
        )
    depths: dict[int, int] = {}
    for block in range(spec.depth):
        step = round(math.log((spec.w_0 + spec.w_a * block) / spec.w_0) / math.log(spec.w_m))
        width = round(spec.w_0 * spec.w_m**step / _QUANTUM) * _QUANTUM
        depths[width] = depths.get(width, 0) + 1
    return tuple(fit_groups(width, depth, spec.group_width, spec) for width, depth in depths.items())


def fit_groups(channels: float, depth: int, group_width: int, spec: RegNetSpec) -> RegNetStage:
    """A stage of about ``channels`` channels whose 3x3 convolution has whole groups.

    Args:
        channels: Wished output channels of the blocks.
        depth: Blocks of the stage.
        group_width: Wished channels of a group; no more than the 3x3 convolution has.
        spec: Gives the bottleneck and the rounding.
    """
    wished = max(1, int(channels * spec.bottleneck))
    group_width = min(group_width, wished)
    whole = int(spec.bottleneck) if spec.bottleneck > 1 else 1  # the output's channels have to be whole, too
    divisor = math.lcm(group_width, whole)
    # The published widths depend on ties: the paper's code rounds them to even multiples, torchvision's rounds them up.
    if spec.round_limit:
        hidden = round_channels(wished, divisor, spec.round_limit)
    else:
        hidden = max(1, round(wished / divisor)) * divisor
    return RegNetStage(int(hidden / spec.bottleneck), depth, group_width, hidden)


def _x(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, **other: Any) -> RegNetSpec:
    return RegNetSpec(depth, w_0, w_a, w_m, group_width, **other)


def _y(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, **other: Any) -> RegNetSpec:
    return RegNetSpec(depth, w_0, w_a, w_m, group_width, se_ratio=0.25, **other)


def _z(depth: int, w_0: int, w_a: float, w_m: float, group_width: int, **other: Any) -> RegNetSpec:
    return RegNetSpec(
        depth,
        w_0,
        w_a,
        w_m,
        group_width,
        bottleneck=4.0,
        se_ratio=0.25,
        inverted=True,
        act='swish',
        **other,
    )


# Radosavovic et al., Figures 15 and 16, with the digits of the pycls repository's configs; Z: ClassyVision's and timm's
# definitions (the paper does not print them).
ARCHS: dict[str, RegNetSpec] = {
    'regnetx_200mf': _x(13, 24, 36.44, 2.49, 8),
    'regnetx_400mf': _x(22, 24, 24.48, 2.54, 16),
    'regnetx_600mf': _x(16, 48, 36.97, 2.24, 24),
    'regnetx_800mf': _x(16, 56, 35.73, 2.28, 16),
    'regnetx_1.6gf': _x(18, 80, 34.01, 2.25, 24),
    'regnetx_3.2gf': _x(25, 88, 26.31, 2.25, 48),
    'regnetx_4.0gf': _x(23, 96, 38.65, 2.43, 40),
    'regnetx_6.4gf': _x(17, 184, 60.83, 2.07, 56),
    'regnetx_8.0gf': _x(23, 80, 49.56, 2.88, 120),
    'regnetx_12gf': _x(19, 168, 73.36, 2.37, 112),
    'regnetx_16gf': _x(22, 216, 55.59, 2.1, 128),
    'regnetx_32gf': _x(23, 320, 69.86, 2.0, 168),
    'regnety_200mf': _y(13, 24, 36.44, 2.49, 8),
    'regnety_400mf': _y(16, 48, 27.89, 2.09, 8),
    'regnety_600mf': _y(15, 48, 32.54, 2.32, 16),
    'regnety_800mf': _y(14, 56, 38.84, 2.4, 16),
    'regnety_1.6gf': _y(27, 48, 20.71, 2.65, 24),
    'regnety_3.2gf': _y(21, 80, 42.63, 2.66, 24),
    'regnety_4.0gf': _y(22, 96, 31.41, 2.24, 64),
    'regnety_6.4gf': _y(25, 112, 33.22, 2.27, 72),
    'regnety_8.0gf': _y(17, 192, 76.82, 2.19, 56),
    'regnety_12gf': _y(19, 168, 73.36, 2.37, 112),
    'regnety_16gf': _y(18, 200, 106.23, 2.48, 112),
    'regnety_32gf': _y(20, 232, 115.89, 2.53, 232),
    'regnetz_500mf': _z(21, 16, 10.7, 2.51, 4, head_channels=1024),
    'regnetz_4.0gf': _z(28, 48, 14.5, 2.226, 8, input_size=256),
    'regnetz_4.0gf_head': _z(28, 48, 14.5, 2.226, 8, input_size=256, head_channels=1536),
    # torchvision's rounding of widths gives other networks of these names
    'regnetx_400mf_tv': _x(22, 24, 24.48, 2.54, 16, round_limit=0.9),
    'regnety_800mf_tv': _y(14, 56, 38.84, 2.4, 16, round_limit=0.9),
    'regnety_8.0gf_tv': _y(17, 192, 76.82, 2.19, 56, round_limit=0.9),
}


@MODELS.register_module()
class RegNet(ImageBackbone):
    """RegNetX, Y or Z: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        arch: A name (``'regnetx_400mf'``), a description as ``RegNetSpec.from_dict`` reads it, or the path of an arch.json
            of kind ``'regnet'``.
        out_indices: 0-3 = C2-C5 (strides 4 to 32), ascending.
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_cfg: Normalisation.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Raises:
        ValueError: Unknown ``arch``, a map the network does not have, or ``frozen_stages`` out of range.
    """

    first_stride = 4

    def __init__(
        self,
        arch: str | Mapping[str, Any] | RegNetSpec = 'regnetx_400mf',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        self.spec = spec = resolve_description(arch, ARCHS, RegNetSpec, 'regnet')
        norm = {'type': 'BN', **(norm_cfg or {})}
        channels, stride = spec.stem_channels, 2
        self.set_stem(ConvNormAct(in_channels, channels, 3, 2, norm_cfg=norm, act=spec.act), channels, stride)
        for stage in regnet_stages(spec):
            blocks = []
            for j in range(stage.depth):
                blocks.append(
                    Bottleneck(
                        channels,
                        stage.channels,
                        stage.hidden,
                        stage.hidden // stage.group_width,
                        1 if j else 2,
                        norm,
                        spec.act,
                        round(channels * spec.se_ratio),
                        spec.inverted,
                    )
                )
                channels = stage.channels
            stride *= 2
            self.add_stage(blocks, channels, stride)
        self.finish(out_indices, frozen_stages)


_PYCLS = 'pycls model zoo'
_TV = 'torchvision 0.28 model documentation'
_CARD = 'timm model card'
_NOMINAL = 'parameters as counted in timm 1.0.31, multiply-adds by its name'

# name -> (parameters in M, multiply-adds in G, source, oracle)
_PUBLISHED: dict[str, tuple[float, float, str, str]] = {
    'regnetx_200mf': (2.7, 0.2, _PYCLS, 'timm:regnetx_002'),
    'regnetx_400mf': (5.2, 0.4, _PYCLS, 'timm:regnetx_004'),
    'regnetx_600mf': (6.2, 0.6, _PYCLS, 'timm:regnetx_006'),
    'regnetx_800mf': (7.259656, 0.8, _TV, 'tv:regnet_x_800mf'),
    'regnetx_1.6gf': (9.190136, 1.603, _TV, 'tv:regnet_x_1_6gf'),
    'regnetx_3.2gf': (15.296552, 3.177, _TV, 'tv:regnet_x_3_2gf'),
    'regnetx_4.0gf': (22.1, 4.0, _PYCLS, 'timm:regnetx_040'),
    'regnetx_6.4gf': (26.2, 6.5, _PYCLS, 'timm:regnetx_064'),
    'regnetx_8.0gf': (39.572648, 7.995, _TV, 'tv:regnet_x_8gf'),
    'regnetx_12gf': (46.1, 12.1, _PYCLS, 'timm:regnetx_120'),
    'regnetx_16gf': (54.278536, 15.941, _TV, 'tv:regnet_x_16gf'),
    'regnetx_32gf': (107.811560, 31.736, _TV, 'tv:regnet_x_32gf'),
    'regnety_200mf': (3.2, 0.2, _PYCLS, 'timm:regnety_002'),
    'regnety_400mf': (4.344144, 0.402, _TV, 'tv:regnet_y_400mf'),
    'regnety_600mf': (6.1, 0.6, _PYCLS, 'timm:regnety_006'),
    'regnety_800mf': (6.3, 0.8, _PYCLS, 'timm:regnety_008'),
    'regnety_1.6gf': (11.202430, 1.612, _TV, 'tv:regnet_y_1_6gf'),
    'regnety_3.2gf': (19.436338, 3.176, _TV, 'tv:regnet_y_3_2gf'),
    'regnety_4.0gf': (20.6, 4.0, _PYCLS, 'timm:regnety_040'),
    'regnety_6.4gf': (30.6, 6.4, _PYCLS, 'timm:regnety_064'),
    'regnety_8.0gf': (39.2, 8.0, _PYCLS, 'timm:regnety_080'),
    'regnety_12gf': (51.8, 12.1, _PYCLS, 'timm:regnety_120'),
    'regnety_16gf': (83.590140, 15.912, _TV, 'tv:regnet_y_16gf'),
    'regnety_32gf': (145.046770, 32.28, _TV, 'tv:regnet_y_32gf'),
    'regnetz_500mf': (7.122742, 0.5, _NOMINAL, 'timm:regnetz_005'),
    'regnetz_4.0gf': (27.1168, 4.0, _NOMINAL, 'timm:regnetz_040'),
    'regnetz_4.0gf_head': (28.9, 4.1, _CARD, 'timm:regnetz_040_h'),
    'regnetx_400mf_tv': (5.495976, 0.414, _TV, 'tv:regnet_x_400mf'),
    'regnety_800mf_tv': (6.432512, 0.834, _TV, 'tv:regnet_y_800mf'),
    'regnety_8.0gf_tv': (39.381472, 8.473, _TV, 'tv:regnet_y_8gf'),
}


def regnet_head(spec: RegNetSpec) -> dict[str, Any]:
    """The classifier's head: a linear layer; what ends linearly is activated (with a convolution, if any) before it."""
    if spec.head_channels:
        return dict(hidden_channels=spec.head_channels, act=spec.act)
    return dict(input_act=spec.act) if spec.inverted else {}


VARIANTS: dict[str, Variant] = {
    name: Variant(
        family='regnet',
        backbone=dict(type='eff_plugins.RegNet', arch=name),
        params=params,
        macs=macs,
        source=source,
        input_size=ARCHS[name].input_size,
        last_index=3,
        head=regnet_head(ARCHS[name]),
        oracle=oracle,
    )
    for name, (params, macs, source, oracle) in _PUBLISHED.items()
}
