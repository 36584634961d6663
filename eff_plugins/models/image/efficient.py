"""Stage tables of the networks that scale EfficientNet-B0: EfficientNet, its Lite and V2 members, TinyNet.

Published figures: parameters and multiply-adds of the classifier. Where torchvision publishes them they are its exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from eff_plugins.models.image.stages import Network, Stage, round_channels
from eff_plugins.models.image.zoo import Variant, stage_variant

# EfficientNet-B0's stages (Tan & Le 2019, Table 1).
B0_STAGES = (
    Stage(16, 1, 3, 1, 1),
    Stage(24, 2, 3, 2),
    Stage(40, 2, 5, 2),
    Stage(80, 3, 3, 2),
    Stage(112, 3, 5, 1),
    Stage(192, 4, 5, 2),
    Stage(320, 1, 3, 1),
)


def scale_stages(
    stages: tuple[Stage, ...],
    width: float,
    depth: float,
    rounding: Callable[[float], int] = math.ceil,
    keep_depth: tuple[int, ...] = (),
    round_limit: float = 0.9,
) -> tuple[Stage, ...]:
    """Multiply channels by ``width`` (to multiples of 8) and repeats by ``depth``.

    Where a table gives the blocks of a resolution one by one (MobileNetV3), those of equal channels count as one stage:
    its last row is repeated, or rows are left out from its end.

    Args:
        stages: The base.
        width: Factor of the channels.
        depth: Factor of the repeats.
        rounding: Turns scaled repeats into a whole number; EfficientNet rounds up, TinyNet to the nearest.
        keep_depth: Indices of stages whose repeats stay.
        round_limit: See :func:`round_channels`.
    """

    def widen(stage: Stage) -> Stage:
        hidden = stage.hidden and round_channels(stage.hidden * width, round_limit=round_limit)
        return replace(stage, channels=round_channels(stage.channels * width, round_limit=round_limit), hidden=hidden)

    runs: list[list[int]] = []  # indices of rows that make up one stage
    for i, stage in enumerate(stages):
        if runs and stage.stride == 1 and stage.channels == stages[i - 1].channels:
            runs[-1].append(i)
        else:
            runs.append([i])
    scaled = []
    for run in runs:
        rows = [widen(stages[i]) for i in run]
        repeats = sum(row.repeats for row in rows)
        scaled += rows if run[0] in keep_depth else _repeated(rows, max(1, rounding(repeats * depth)))
    return tuple(scaled)


def _repeated(rows: list[Stage], repeats: int) -> list[Stage]:
    """The first ``repeats`` blocks of ``rows``, the last row being repeated where there are fewer."""
    kept = []
    for i, row in enumerate(rows):
        count = repeats if i == len(rows) - 1 else min(repeats, row.repeats)
        if count:
            kept.append(replace(row, repeats=count))
        repeats -= count
    return kept


def _squeezed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(replace(stage, se=0.25) for stage in stages)


def efficientnet(width: float, depth: float, input_size: int, norm_eps: float = 1e-5, momentum: float = 0.1) -> Network:
    """EfficientNet (Tan & Le, ICML 2019): B0 with ``width`` and ``depth`` factors; swish, squeeze-excite everywhere."""
    return Network(
        _squeezed(scale_stages(B0_STAGES, width, depth)),
        stem_channels=round_channels(32 * width),
        head_channels=round_channels(1280 * width),
        act='swish',
        norm_eps=norm_eps,
        norm_momentum=momentum,
        input_size=input_size,
    )


def efficientnet_lite(width: float, depth: float, input_size: int) -> Network:
    """EfficientNet-Lite: no squeeze-excite, ReLU6; stem, head, first and last stage are not scaled in depth.

    Source: the description of EfficientNet-Lite in the TensorFlow TPU repository (Liu 2020); factors as published there.
    """
    stages = scale_stages(B0_STAGES, width, depth, keep_depth=(0, len(B0_STAGES) - 1))
    return Network(stages, padding='same', norm_eps=1e-3, norm_momentum=0.01, input_size=input_size)


def tinynet(width: float, depth: float, input_size: int) -> Network:
    """TinyNet (Han et al., "Model Rubik's Cube", NeurIPS 2020, Table 3): B0 shrunk; the stem keeps its width."""
    return Network(
        _squeezed(scale_stages(B0_STAGES, width, depth, rounding=round)),
        head_channels=max(1280, round_channels(1280 * width)),
        act='swish',
        input_size=input_size,
    )


def _v2(stages: tuple[Stage, ...], stem: int, input_size: int, padding: str, head: int = 1280) -> Network:
    """EfficientNetV2 (Tan & Le, ICML 2021): fused blocks without squeeze-excite first, inverted ones with it after."""
    squeezed = tuple(replace(s, se=0.25) if s.block == 'inverted' else s for s in stages)
    return Network(
        squeezed,
        stem_channels=stem,
        head_channels=head,
        act='swish',
        norm_eps=1e-3,
        norm_momentum=0.1,
        padding=padding,
        input_size=input_size,
    )


# EfficientNetV2's base and S, M, L: Tan & Le 2021, Table 4 and its appendix; first stages are single convolutions.
_V2_BASE = (
    Stage(16, 1, 3, 1, 1, 'conv'),
    Stage(32, 2, 3, 2, 4, 'fused'),
    Stage(48, 2, 3, 2, 4, 'fused'),
    Stage(96, 3, 3, 2, 4),
    Stage(112, 5, 3, 1, 6),
    Stage(192, 8, 3, 2, 6),
)
_V2_S = (
    Stage(24, 2, 3, 1, 1, 'conv'),
    Stage(48, 4, 3, 2, 4, 'fused'),
    Stage(64, 4, 3, 2, 4, 'fused'),
    Stage(128, 6, 3, 2, 4),
    Stage(160, 9, 3, 1, 6),
    Stage(256, 15, 3, 2, 6),
)
_V2_M = (
    Stage(24, 3, 3, 1, 1, 'conv'),
    Stage(48, 5, 3, 2, 4, 'fused'),
    Stage(80, 5, 3, 2, 4, 'fused'),
    Stage(160, 7, 3, 2, 4),
    Stage(176, 14, 3, 1, 6),
    Stage(304, 18, 3, 2, 6),
    Stage(512, 5, 3, 1, 6),
)
_V2_L = (
    Stage(32, 4, 3, 1, 1, 'conv'),
    Stage(64, 7, 3, 2, 4, 'fused'),
    Stage(96, 7, 3, 2, 4, 'fused'),
    Stage(192, 10, 3, 2, 4),
    Stage(224, 19, 3, 1, 6),
    Stage(384, 25, 3, 2, 6),
    Stage(640, 7, 3, 1, 6),
)


def efficientnetv2_base(width: float, depth: float, input_size: int) -> Network:
    """EfficientNetV2-B0...B3: the base scaled by EfficientNet's factors, channels to the nearest multiple of 8."""
    stages = scale_stages(_V2_BASE, width, depth, round_limit=0.0)
    stem, head = (round_channels(channels * width, round_limit=0.0) for channels in (32, 1280))
    return _v2(stages, stem, input_size, 'same', head)


ARCHS: dict[str, Network] = {
    'efficientnet_b0': efficientnet(1.0, 1.0, 224),
    'efficientnet_b1': efficientnet(1.0, 1.1, 240),
    'efficientnet_b2': efficientnet(1.1, 1.2, 260),
    'efficientnet_b3': efficientnet(1.2, 1.4, 300),
    'efficientnet_b4': efficientnet(1.4, 1.8, 380),
    'efficientnet_b5': efficientnet(1.6, 2.2, 456, 1e-3, 0.01),
    'efficientnet_b6': efficientnet(1.8, 2.6, 528, 1e-3, 0.01),
    'efficientnet_b7': efficientnet(2.0, 3.1, 600, 1e-3, 0.01),
    'efficientnet_lite0': efficientnet_lite(1.0, 1.0, 224),
    'efficientnet_lite1': efficientnet_lite(1.0, 1.1, 240),
    'efficientnet_lite2': efficientnet_lite(1.1, 1.2, 260),
    'efficientnet_lite3': efficientnet_lite(1.2, 1.4, 280),
    'efficientnet_lite4': efficientnet_lite(1.4, 1.8, 300),
    'efficientnetv2_b0': efficientnetv2_base(1.0, 1.0, 224),
    'efficientnetv2_b1': efficientnetv2_base(1.0, 1.1, 240),
    'efficientnetv2_b2': efficientnetv2_base(1.1, 1.2, 260),
    'efficientnetv2_b3': efficientnetv2_base(1.2, 1.4, 300),
    'efficientnetv2_s': _v2(_V2_S, 24, 384, 'symmetric'),
    'efficientnetv2_m': _v2(_V2_M, 24, 480, 'symmetric'),
    'efficientnetv2_l': _v2(_V2_L, 32, 480, 'symmetric'),
    'tinynet_a': tinynet(1.0, 1.2, 192),
    'tinynet_b': tinynet(0.75, 1.1, 188),
    'tinynet_c': tinynet(0.54, 0.85, 184),
    'tinynet_d': tinynet(0.54, 0.695, 152),
    'tinynet_e': tinynet(0.51, 0.6, 106),
}

# Sources of the published figures.
_PAPER = 'Tan & Le, ICML 2019, Table 2'
_LITE = 'EfficientNet-Lite, TensorFlow TPU repository'
_TV = 'torchvision 0.28 model documentation'
_V2_PAPER = 'Tan & Le, ICML 2021, and its repository'
_TINY = 'Han et al., NeurIPS 2020, and the Efficient-AI-Backbones repository'

# name -> (parameters in M, multiply-adds in G, source, oracle)
_PUBLISHED: dict[str, tuple[float, float, str, str]] = {
    'efficientnet_b0': (5.288548, 0.386, _TV, 'tv:efficientnet_b0'),
    'efficientnet_b1': (7.794184, 0.687, _TV, 'tv:efficientnet_b1'),
    'efficientnet_b2': (9.2, 1.0, _PAPER, 'tv:efficientnet_b2'),
    'efficientnet_b3': (12.233232, 1.827, _TV, 'tv:efficientnet_b3'),
    'efficientnet_b4': (19.341616, 4.394, _TV, 'tv:efficientnet_b4'),
    'efficientnet_b5': (30.389784, 10.266, _TV, 'tv:efficientnet_b5'),
    'efficientnet_b6': (43.040704, 19.068, _TV, 'tv:efficientnet_b6'),
    'efficientnet_b7': (66.34796, 37.746, _TV, 'tv:efficientnet_b7'),
    'efficientnet_lite0': (4.7, 0.407, _LITE, 'timm:tf_efficientnet_lite0'),
    'efficientnet_lite1': (5.4, 0.631, _LITE, 'timm:tf_efficientnet_lite1'),
    'efficientnet_lite2': (6.1, 0.899, _LITE, 'timm:tf_efficientnet_lite2'),
    'efficientnet_lite3': (8.2, 1.44, _LITE, 'timm:tf_efficientnet_lite3'),
    'efficientnet_lite4': (13.0, 2.64, _LITE, 'timm:tf_efficientnet_lite4'),
    'efficientnetv2_b0': (7.1, 0.72, _V2_PAPER, 'timm:tf_efficientnetv2_b0'),
    'efficientnetv2_b1': (8.1, 1.2, _V2_PAPER, 'timm:tf_efficientnetv2_b1'),
    'efficientnetv2_b2': (10.1, 1.7, _V2_PAPER, 'timm:tf_efficientnetv2_b2'),
    'efficientnetv2_b3': (14.4, 3.0, _V2_PAPER, 'timm:tf_efficientnetv2_b3'),
    'efficientnetv2_s': (21.458488, 8.366, _TV, 'tv:efficientnet_v2_s'),
    'efficientnetv2_m': (54.139356, 24.582, _TV, 'tv:efficientnet_v2_m'),
    'efficientnetv2_l': (118.515272, 56.08, _TV, 'tv:efficientnet_v2_l'),
    'tinynet_a': (6.2, 0.339, _TINY, 'timm:tinynet_a'),
    'tinynet_b': (3.7, 0.202, _TINY, 'timm:tinynet_b'),
    'tinynet_c': (2.5, 0.1, _TINY, 'timm:tinynet_c'),
    'tinynet_d': (2.3, 0.052, _TINY, 'timm:tinynet_d'),
    'tinynet_e': (2.0, 0.024, _TINY, 'timm:tinynet_e'),
}

VARIANTS: dict[str, Variant] = {
    name: stage_variant(name, ARCHS[name], params, macs, source, oracle)
    for name, (params, macs, source, oracle) in _PUBLISHED.items()
}
