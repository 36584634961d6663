"""Stage tables of the networks for mobile devices, designed or searched: MobileNet, MnasNet, FBNet, ProxylessNAS."""

from __future__ import annotations

from eff_plugins.models.image.stages import Network, Stage, round_channels
from eff_plugins.models.image.zoo import Variant, stage_variant


def _mobilenetv2(width: float) -> Network:
    """MobileNetV2 (Sandler et al., CVPR 2018, Table 2) with a width multiplier; the head is never narrowed."""
    rows = ((16, 1, 1, 1), (24, 2, 2, 6), (32, 3, 2, 6), (64, 4, 2, 6), (96, 3, 1, 6), (160, 3, 2, 6), (320, 1, 1, 6))
    return Network(
        tuple(Stage(round_channels(c * width), n, 3, s, t) for c, n, s, t in rows),
        stem_channels=round_channels(32 * width),
        head_channels=max(1280, round_channels(1280 * width)),
    )


# MobileNetV3 (Howard et al., ICCV 2019, Tables 1 and 2), a row a block:
# kernel, hidden channels, channels, squeeze-excite, activation, stride.
_V3_LARGE = (
    (3, 16, 16, 0, 'relu', 1),
    (3, 64, 24, 0, 'relu', 2),
    (3, 72, 24, 0, 'relu', 1),
    (5, 72, 40, 1, 'relu', 2),
    (5, 120, 40, 1, 'relu', 1),
    (5, 120, 40, 1, 'relu', 1),
    (3, 240, 80, 0, 'hswish', 2),
    (3, 200, 80, 0, 'hswish', 1),
    (3, 184, 80, 0, 'hswish', 1),
    (3, 184, 80, 0, 'hswish', 1),
    (3, 480, 112, 1, 'hswish', 1),
    (3, 672, 112, 1, 'hswish', 1),
    (5, 672, 160, 1, 'hswish', 2),
    (5, 960, 160, 1, 'hswish', 1),
    (5, 960, 160, 1, 'hswish', 1),
)
_V3_SMALL = (
    (3, 16, 16, 1, 'relu', 2),
    (3, 72, 24, 0, 'relu', 2),
    (3, 88, 24, 0, 'relu', 1),
    (5, 96, 40, 1, 'hswish', 2),
    (5, 240, 40, 1, 'hswish', 1),
    (5, 240, 40, 1, 'hswish', 1),
    (5, 120, 48, 1, 'hswish', 1),
    (5, 144, 48, 1, 'hswish', 1),
    (5, 288, 96, 1, 'hswish', 2),
    (5, 576, 96, 1, 'hswish', 1),
    (5, 576, 96, 1, 'hswish', 1),
)


def _mobilenetv3(rows: tuple[tuple, ...], head_channels: int, head_hidden: int) -> Network:
    """MobileNetV3: hard swish, squeeze-excite over a quarter of the hidden channels with a hard sigmoid."""
    return Network(
        tuple(Stage(c, 1, k, s, hidden=h, se=0.25 * se, act=act) for k, h, c, se, act, s in rows),
        stem_channels=16,
        head_channels=head_channels,
        head_hidden=head_hidden,
        act='hswish',
        norm_eps=1e-3,
        norm_momentum=0.01,
        se_base='hidden',
        se_divisor=8,
        se_act='relu',
        se_gate='hsigmoid',
    )


def _mnasnet(rows: tuple[tuple, ...], stem: int = 32) -> Network:
    """MnasNet (Tan et al., CVPR 2019, Figure 7); a row is kernel, expansion, channels, repeats, SE, stride."""
    stages = tuple(Stage(c, n, k, s, t, se=0.25 * se) for k, t, c, n, se, s in rows)
    return Network(stages, stem_channels=stem, act='relu')


_MNASNET_A1 = (
    (3, 1, 16, 1, 0, 1),
    (3, 6, 24, 2, 0, 2),
    (5, 3, 40, 3, 1, 2),
    (3, 6, 80, 4, 0, 2),
    (3, 6, 112, 2, 1, 1),
    (5, 6, 160, 3, 1, 2),
    (3, 6, 320, 1, 0, 1),
)
_MNASNET_B1 = (
    (3, 1, 16, 1, 0, 1),
    (3, 3, 24, 3, 0, 2),
    (5, 3, 40, 3, 0, 2),
    (5, 6, 80, 3, 0, 2),
    (3, 6, 96, 2, 0, 1),
    (5, 6, 192, 4, 0, 2),
    (3, 6, 320, 1, 0, 1),
)
_MNASNET_SMALL = (
    (3, 1, 8, 1, 0, 1),
    (3, 3, 16, 1, 0, 2),
    (3, 6, 16, 2, 0, 2),
    (5, 6, 32, 4, 1, 2),
    (3, 6, 32, 3, 1, 1),
    (5, 6, 88, 3, 1, 2),
    (3, 6, 144, 1, 0, 1),
)


def _blocks(text: str, act: str | None = None) -> tuple[Stage, ...]:
    """Stages of one block each from a table such as ``'k5 e6 c32 s2, k5 e3 c32'``.

    A block is k (kernel), e (expansion), c (channels), s (stride, 1 if absent), g (groups of the 1x1 convolutions),
    ``se`` (squeeze-excite over a quarter), ``hs`` (hard swish); ``conv`` makes it a single convolution.
    """
    stages = []
    for row in text.split(','):
        words = row.split()
        number = {w[0]: float(w[1:]) for w in words if w not in ('se', 'hs', 'conv')}
        stages.append(
            Stage(
                int(number['c']),
                1,
                int(number['k']),
                int(number.get('s', 1)),
                number.get('e', 1),
                'conv' if 'conv' in words else 'inverted',
                se=0.25 if 'se' in words else 0.0,
                act='hswish' if 'hs' in words else act,
                groups=int(number.get('g', 1)),
            )
        )
    return tuple(stages)


# FBNet (Wu et al., CVPR 2019, Figure 4), block by block as in the mobile-vision repository; C as in the paper, whose blocks
# with expansion 1 have an expansion convolution.
_FBNET_A = (
    'k3 e3 c24 s2, k3 e1 c24, k5 e6 c32 s2, k3 e3 c32, k5 e1 c32, k3 e3 c32, k5 e6 c64 s2, k5 e3 c64, k5 e1 c64 g2,'
    'k5 e6 c64, k3 e6 c112, k5 e1 c112 g2, k5 e3 c112, k3 e1 c112 g2, k5 e6 c184 s2, k5 e6 c184, k5 e3 c184, k5 e6 c184,'
    'k5 e6 c352'
)
_FBNET_B = (
    'k3 e1 c16, k3 e6 c24 s2, k5 e1 c24, k3 e1 c24, k3 e1 c24, k5 e6 c32 s2, k5 e3 c32, k3 e6 c32, k5 e6 c32, k5 e6 c64 s2,'
    'k5 e6 c64, k5 e3 c64, k5 e6 c112, k3 e1 c112, k5 e1 c112, k5 e3 c112, k5 e6 c184 s2, k5 e1 c184, k5 e6 c184, k5 e6 c184,'
    'k3 e6 c352'
)
_FBNET_C = (
    'k3 e1 c16, k3 e6 c24 s2, k3 e1 c24, k3 e1 c24, k5 e6 c32 s2, k5 e3 c32, k5 e6 c32, k3 e6 c32, k5 e6 c64 s2, k5 e3 c64,'
    'k5 e6 c64, k5 e6 c64, k5 e6 c112, k5 e6 c112, k5 e6 c112, k5 e3 c112, k5 e6 c184 s2, k5 e6 c184, k5 e6 c184, k5 e6 c184,'
    'k3 e6 c352'
)
# FBNetV2 (Wan et al., CVPR 2020), block by block as in the mobile-vision repository. F1-F3 differ in input and head only.
_FBNETV2_F = (
    'k5 e1 c8, k5 e5.4566 c24 s2, k5 e4.7912 c24, k5 e5.3501 c32 s2 se, k5 e4.5379 c24 se, k5 e5.7133 c56 s2 hs,'
    'k3 e4.1212 c56 hs, k3 e5.1246 c56 se hs, conv k1 c80, k5 e4.507 c80 se hs, k5 e1.7712 c80 se hs,'
    'k3 e4.5685 c144 s2 se hs, k5 e5.84 c144 se hs, k5 e6.8754 c144 se hs, conv k1 c224'
)
_FBNETV2_F4 = (
    'k3 e1 c16 hs, k5 e5.4566 c24 s2 hs, k5 e1.7912 c24 hs, k5 e1.7912 c24 hs, k5 e5.3501 c32 s2 se, k5 e3.5379 c32 se,'
    'k5 e4.5379 c32 se, k5 e4.5379 c32 se, k5 e5.7133 c64 s2 hs, k3 e2.1212 c64 hs, k3 e5.0333 c104 hs, k5 e2.507 c104 se hs,'
    'k5 e1.7712 c104 se hs, k5 e3.7712 c112 se hs, k3 e5.5685 c184 s2 se hs, k5 e2.84 c184 se hs, k5 e4.8754 c184 se hs,'
    'conv k1 c224'
)
_FBNETV2_L = (
    'k3 e1 c16 hs, k5 e5.4566 c24 s2 hs, k5 e1.7912 c24 hs, k3 e1.7912 c24 hs, k5 e1.7912 c24 hs, k5 e5.3501 c40 s2 se hs,'
    'k5 e3.5379 c32 se hs, k5 e4.5379 c32 se hs, k5 e4.5379 c32 se hs, k5 e5.7133 c64 s2 hs, k3 e2.1212 c64 hs,'
    'k3 e3.1246 c64 hs, k3 e5.0333 c112 hs, k5 e2.507 c112 se hs, k5 e1.7712 c112 se hs, k5 e2.7712 c112 se hs,'
    'k5 e3.7712 c112 se hs, k5 e3.7712 c112 se hs, k3 e5.5685 c184 s2 se hs, k5 e2.84 c184 se hs, k5 e2.84 c184 se hs,'
    'k5 e4.8754 c184 se hs, k5 e4.8754 c184 se hs, conv k1 c224'
)


def _fbnetv2(text: str, stem: int, head_hidden: int, input_size: int) -> Network:
    """FBNetV2: widths are multiples of 8; the head expands 6 times, pools, and projects without normalisation."""
    return Network(
        _blocks(text, act='relu'),
        stem_channels=stem,
        head_channels=6 * 224,
        head_hidden=head_hidden,
        act='hswish',
        input_size=input_size,
        hidden_divisor=8,
        round_limit=0.95,
        se_base='hidden',
        se_divisor=8,
        se_gate='hsigmoid',
    )


# ProxylessNAS (Cai et al., ICLR 2019), block by block as in its repository.
_PROXYLESS_CPU = (
    'k3 e1 c24, k3 e6 c32 s2, k3 e3 c32, k3 e3 c32, k3 e3 c32, k3 e6 c48 s2, k3 e3 c48, k3 e3 c48, k5 e3 c48, k3 e6 c88 s2,'
    'k3 e3 c88, k5 e6 c104, k3 e3 c104, k3 e3 c104, k3 e3 c104, k5 e6 c216 s2, k5 e3 c216, k5 e3 c216, k3 e3 c216, k5 e6 c360'
)
_PROXYLESS_GPU = (
    'k3 e1 c24, k5 e3 c32 s2, k7 e3 c56 s2, k3 e3 c56, k7 e6 c112 s2, k5 e3 c112, k5 e6 c128, k3 e3 c128, k5 e3 c128,'
    'k7 e6 c256 s2, k7 e6 c256, k7 e6 c256, k5 e6 c256, k7 e6 c432'
)
_PROXYLESS_MOBILE = (
    'k3 e1 c16, k5 e3 c32 s2, k3 e3 c32, k7 e3 c40 s2, k3 e3 c40, k5 e3 c40, k5 e3 c40, k7 e6 c80 s2, k5 e3 c80, k5 e3 c80,'
    'k5 e3 c80, k5 e6 c96, k5 e3 c96, k5 e3 c96, k5 e3 c96, k7 e6 c192 s2, k7 e6 c192, k7 e3 c192, k7 e3 c192, k7 e6 c320'
)

ARCHS: dict[str, Network] = {
    'mobilenetv2_050': _mobilenetv2(0.5),
    'mobilenetv2_100': _mobilenetv2(1.0),
    'mobilenetv2_140': _mobilenetv2(1.4),
    'mobilenetv3_large': _mobilenetv3(_V3_LARGE, 960, 1280),
    'mobilenetv3_small': _mobilenetv3(_V3_SMALL, 576, 1024),
    'mnasnet_a1': _mnasnet(_MNASNET_A1),
    'mnasnet_b1': _mnasnet(_MNASNET_B1),
    'mnasnet_small': _mnasnet(_MNASNET_SMALL, stem=8),
    'fbnet_a': Network(_blocks(_FBNET_A), stem_channels=16, head_channels=1504, act='relu'),
    'fbnet_b': Network(_blocks(_FBNET_B), stem_channels=16, head_channels=1984, act='relu'),
    'fbnet_c': Network(_blocks(_FBNET_C), stem_channels=16, head_channels=1984, act='relu', expand_always=True),
    'fbnetv2_f1': _fbnetv2(_FBNETV2_F, 8, 1600, 128),
    'fbnetv2_f2': _fbnetv2(_FBNETV2_F, 8, 1600, 160),
    'fbnetv2_f3': _fbnetv2(_FBNETV2_F, 8, 1984, 192),
    'fbnetv2_f4': _fbnetv2(_FBNETV2_F4, 16, 1984, 224),
    'fbnetv2_l1': _fbnetv2(_FBNETV2_L, 16, 1984, 224),
    'fbnetv2_l2': _fbnetv2(_FBNETV2_L, 16, 1984, 256),
    'proxylessnas_cpu': Network(_blocks(_PROXYLESS_CPU), stem_channels=40, head_channels=1432),
    'proxylessnas_gpu': Network(_blocks(_PROXYLESS_GPU), stem_channels=40, head_channels=1728),
    'proxylessnas_mobile': Network(_blocks(_PROXYLESS_MOBILE), stem_channels=32, head_channels=1280),
}

_TV = 'torchvision 0.28 model documentation'
_V2_PAPER = 'Sandler et al., CVPR 2018, and the MobileNet repository'
_MNAS = 'Tan et al., CVPR 2019, and the MnasNet repository'
_VISION = 'mobile-vision repository'
_PROXYLESS = 'proxylessnas repository'

# name -> (parameters in M, multiply-adds in G, source, oracle)
_PUBLISHED: dict[str, tuple[float, float, str, str | None]] = {
    'mobilenetv2_050': (1.95, 0.097, _V2_PAPER, 'timm:mobilenetv2_050'),
    'mobilenetv2_100': (3.504872, 0.301, _TV, 'tv:mobilenet_v2'),
    'mobilenetv2_140': (6.06, 0.582, _V2_PAPER, 'timm:mobilenetv2_140'),
    'mobilenetv3_large': (5.483032, 0.217, _TV, 'tv:mobilenet_v3_large'),
    'mobilenetv3_small': (2.542856, 0.057, _TV, 'tv:mobilenet_v3_small'),
    'mnasnet_a1': (3.9, 0.312, _MNAS, 'timm:mnasnet_a1'),
    'mnasnet_b1': (4.383312, 0.314, _TV, 'tv:mnasnet1_0'),
    'mnasnet_small': (2.0, 0.0651, _MNAS, 'timm:mnasnet_small'),
    'fbnet_a': (4.3, 0.2445, _VISION, None),
    'fbnet_b': (4.8, 0.2911, _VISION, None),
    'fbnet_c': (5.5, 0.3782, _VISION, 'timm:fbnetc_100'),
    'fbnetv2_f1': (5.999408, 0.05641056, _VISION, None),
    'fbnetv2_f2': (5.999408, 0.085441392, _VISION, None),
    'fbnetv2_f3': (6.899504, 0.121824, _VISION, None),
    'fbnetv2_f4': (6.994824, 0.238351984, _VISION, None),
    'fbnetv2_l1': (8.49652, 0.325, 'Wan et al., CVPR 2020; ' + _VISION, None),
    'fbnetv2_l2': (8.49652, 0.423912768, _VISION, None),
    'proxylessnas_cpu': (4.36, 0.439, _PROXYLESS, None),
    'proxylessnas_gpu': (7.12, 0.465, _PROXYLESS, None),
    'proxylessnas_mobile': (4.08, 0.320, _PROXYLESS, None),
}

VARIANTS: dict[str, Variant] = {
    name: stage_variant(name, ARCHS[name], params, macs, source, oracle)
    for name, (params, macs, source, oracle) in _PUBLISHED.items()
}
