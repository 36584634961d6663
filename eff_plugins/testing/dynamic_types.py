"""The suite's dynamic types as cases of :mod:`eff_plugins.testing.conformance`; the tests fail for a type that is missing.

A label starts with the type; what follows names the host, where there is more than one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eff_plugins import dynamic
from eff_plugins.compat import MissingExtraError
from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.models.spatial.dynconv import PixelMasker
from eff_plugins.models.spatial.host import hosted
from eff_plugins.models.spatial.lccl import Collaborator
from eff_plugins.registry import MODELS, TYPES
from eff_plugins.testing.case import Case, pictures, spread_decisions

Vary = Callable[[nn.Module, Any], None]


def dynamic_types() -> set[str]:
    """Registered models whose module makes use of a dynamic module; those that need a missing framework are left out."""
    found = set()
    for name, path in TYPES['model'].items():
        try:
            used = vars(import_module(path, 'eff_plugins')).values()
        except MissingExtraError:
            continue
        if any(value is hosted or (isinstance(value, type) and issubclass(value, DynamicModule)) for value in used):
            found.add(name)
    return found


@torch.no_grad()
def spread_pixels(model: nn.Module, x: Any) -> None:
    """``spread_decisions`` after each policy's scores got median 0 and deviation 1; else all positions halt at once."""

    def standardise(masker: PixelMasker, args: Any, out: Tensor) -> Tensor:
        middle, width = out.median(), out.std()
        masker.conv.weight /= width
        masker.fc.weight /= width
        masker.fc.bias.copy_((masker.fc.bias - middle) / width)
        return (out - middle) / width

    handles = [m.register_forward_hook(standardise) for m in model.modules() if isinstance(m, PixelMasker)]
    dynamic.set_execution(model, 'masked')(x)
    for handle in handles:
        handle.remove()
    spread_decisions(model, x)


@torch.no_grad()
def settle_collaborators(model: nn.Module, x: Any) -> None:
    """Give all norms the statistics of x, and the layers beside the convolutions zeros at about half of the positions.

    Without it the products of random layers grow, and rounding with them. The threshold stays at 0, where a score that
    rounding moves across changes next to nothing.
    """
    dynamic.set_execution(model, 'masked')
    for layer in model.modules():
        if isinstance(layer, Collaborator):
            layer.norm.bias.copy_(layer.norm.weight * (-1.0 if layer.norm.num_features > 1 else 0.0))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, of which there is one
        norm.train()
    model(x)
    for norm in norms:
        norm.eval()
        # a channel that is dead for x would be blown up elsewhere
        variance = norm.running_var
        assert variance is not None
        variance.clamp_(min=float(variance.mean()))


def spend_half(model: nn.Module, x: Any) -> None:
    """Set the knob, of whatever kind, to the middle of what the model can spend on x."""
    shares = dynamic.calibrate(model, [x]).shares
    dynamic.set_budget(model, (min(shares[0], 1.0) + shares[-1]) / 2)


class Below(nn.Module):
    """A static network as the child ``backbone``, as networks hold it that decide for a whole picture."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


class ToLastExit(nn.Module):
    """The static network in a :class:`RANet`: all its blocks, and the classifier behind the last one."""

    def __init__(self, network: dict) -> None:
        super().__init__()
        net: Any = MODELS.build(network)
        self.stem, self.subnets, self.fused = net.stem, net.subnets, net.fused
        self.classifiers = nn.ModuleDict({str(LAST_EXIT): net.classifiers[LAST_EXIT]})

    def forward(self, x: Tensor) -> Tensor:
        bases = [x := layer(x) for layer in self.stem]
        below: Any = []
        for fused, subnet in zip(self.fused, self.subnets, strict=True):
            x, kept = bases.pop(), []
            for i, block in enumerate(subnet):
                x, maps = block(x, below[i]) if i < fused else block(x)
                kept.append(maps)
            below = kept
        return self.classifiers[str(LAST_EXIT)](x)


def exit_losses(model: nn.Module, x: Tensor) -> Any:
    """What an :class:`EarlyExitClassifier` is trained with."""
    net: Any = model
    return net.losses(x, torch.arange(len(x)) % 4)


def patchy(shape: tuple[int, ...]) -> Tensor:
    """Random pictures whose regions differ, so that blocks of a picture do."""
    coarse = pictures((*shape[:2], 3, 3))
    return pictures(shape) + 4 * F.interpolate(coarse, shape[2:])


def in_blocks(
    kind: str, backbone: dict, block: int, shape: tuple[int, ...], odd: tuple[int, int], **options: Any
) -> Case:
    """A method that decides on blocks of the picture."""
    network = dict(type=f'eff_plugins.{kind}', backbone=backbone, block_size=block, policy=dict(width=4))
    return Case(network, lambda: Below(MODELS.build(backbone)), shape, odd, inputs=patchy, **options)


def on_resnet(
    kind: str, host: dict | None = None, vary: Vary = spread_decisions, step: float = Case.step, **options: Any
) -> Case:
    """A method on a narrow ResNet of the given arguments, ResNet-50 by default."""
    arguments = {'depth': 50, 'base_channels': 8, **(host or {})}
    return Case(
        dict(type=f'eff_plugins.{kind}', **arguments, **options),
        dict(type='eff_plugins.ResNet', **arguments),
        shape=(3, 3, 104, 97),
        odd=(131, 97),
        vary=vary,
        step=step,
    )


def on(
    kind: str,
    backbone: dict,
    shape: tuple[int, ...],
    odd: tuple[int, int],
    vary: Vary = spread_decisions,
    step: float = Case.step,
    **options: Any,
) -> Case:
    """A method on any backbone of the suite."""
    network = dict(type=f'eff_plugins.{kind}', backbone=backbone, **options)
    return Case(network, backbone, shape, odd, vary=vary, step=step)


CIFAR: dict[str, Any] = dict(
    backbone=dict(type='eff_plugins.CifarResNet', depth=14), shape=(3, 3, 32, 32), odd=(29, 35)
)
MOBILE: dict[str, Any] = dict(
    backbone=dict(
        type='eff_plugins.InvertedResidualNet',
        arch=dict(
            stages=[dict(channels=8, repeats=3, expand=2, stride=2), dict(channels=12, repeats=3, stride=2, expand=2)],
            stem_channels=8,
        ),
        out_indices=(1, 2),
    ),
    shape=(3, 3, 64, 48),
    odd=(65, 49),
)
RESNEXT = dict(type='eff_plugins.ResNeXt', arch=dict(depths=(2, 1, 2, 1), cardinality=2, width=8))
# halos cost little beside large blocks at small strides
ONE_GROUP = dict(
    type='eff_plugins.ResNeXt', arch=dict(depths=(3, 2, 1, 1), cardinality=1, width=16), out_indices=(0, 1)
)
TWO_GROUPS = {**ONE_GROUP, 'arch': dict(depths=(3, 2, 1, 1), cardinality=2, width=4)}
CAFFE = dict(style='caffe', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
RANET: dict[str, Any] = dict(
    type='eff_plugins.RANet',
    scales=(1, 2, 2),
    channels=4,
    growth_rate=4,
    growth_factors=(2, 1, 1),
    bottleneck_factors=(2, 1, 1),
    step=1,
    classifier_channels=8,
)
LAST_EXIT = 5
ON_THE_WAY = tuple(f'classifiers.{number}' for number in range(LAST_EXIT))  # its classifiers decide who leaves
EXITS = dict(type='eff_plugins.EarlyExitClassifier', backbone=RANET, num_classes=4)
CLASSIFIER = dict(
    backbone={**MOBILE['backbone'], 'out_indices': (2,)},
    head=dict(type='eff_plugins.LinearClsHead', in_channels=12, num_classes=5),
)
DRNET = dict(type='eff_plugins.DRNet', resolutions=(64, 48, 32), predictor=dict(size=16, channels=(8, 8)), **CLASSIFIER)

# Steps of the knob: a whole layer or block for one of few samples, or all that one or two of twelve samples run
A_FEW, A_DOZEN = 0.1, 0.2

DYNAMIC: dict[str, Case] = {
    'LASNet': on_resnet('LASNet'),
    'LASNet on ResNet-18': on_resnet('LASNet', dict(depth=18), granularity=(4, 4, 2, 1)),
    'LASNet on CifarResNet': on('LASNet', **CIFAR, granularity=(4, 2, 2)),
    'LASNet on InvertedResidualNet': on('LASNet', **MOBILE, granularity=(4, 2)),
    'DynConv': on_resnet('DynConv'),
    'DynConv on a dilated ResNet': on_resnet('DynConv', CAFFE),
    'DynConv on CifarResNet': on('DynConv', **CIFAR),
    'DynConv on InvertedResidualNet': on('DynConv', **MOBILE),
    'LayerSkip': on_resnet('LayerSkip', step=A_FEW),
    'LayerSkip on CifarResNet': on('LayerSkip', **CIFAR, step=A_FEW),
    'LayerSkip on ResNeXt': on('LayerSkip', RESNEXT, (4, 3, 64, 64), (65, 71), step=A_FEW),
    'LayerSkip on InvertedResidualNet': on('LayerSkip', **MOBILE, step=A_FEW),
    'SBNet': in_blocks('SBNet', ONE_GROUP, 64, (2, 3, 192, 192), (197, 135)),
    'SBNet on ResNeXt': in_blocks('SBNet', TWO_GROUPS, 64, (2, 3, 192, 192), (197, 135), step=A_FEW),
    'SegBlocks': in_blocks(
        'SegBlocks',
        MOBILE['backbone'],
        32,
        (3, 3, 96, 96),
        (97, 75),
        exceptions={'task_gradients': 'its policy is trained by REINFORCE, on a reward that has no gradient'},
    ),
    'RANet': Case(
        RANET,
        lambda: ToLastExit(RANET),
        (12, 3, 32, 32),
        (33, 21),
        vary=spend_half,
        train=lambda net, x: list(net.anytime(x)),  # type: ignore[operator]
        policy=ON_THE_WAY,
        step=A_DOZEN,
    ),
    'EarlyExitClassifier': Case(
        EXITS,
        lambda: Below(ToLastExit({**RANET, 'num_classes': 4})),
        (12, 3, 32, 32),
        (33, 21),
        vary=spend_half,
        train=exit_losses,
        policy=tuple(f'backbone.{name}' for name in ON_THE_WAY),
        step=A_DOZEN,
    ),
    'DRNet': Case(
        DRNET,
        dict(type='eff_plugins.ImageClassifier', **CLASSIFIER),
        (12, 3, 64, 64),
        (51, 69),
        vary=spend_half,
        step=A_DOZEN,
    ),
    'LCCL': on_resnet('LCCL', vary=settle_collaborators),
    'LCCL on CifarResNet': on('LCCL', **CIFAR, vary=settle_collaborators, kernel='pointwise'),
    'LCCL on InvertedResidualNet': on('LCCL', **MOBILE, vary=settle_collaborators),
    'SACT': on_resnet('SACT', vary=spread_pixels),
    'SACT on CifarResNet': on('SACT', **CIFAR, vary=spread_pixels),
    'SACT on InvertedResidualNet': on('SACT', **MOBILE, vary=spread_pixels),
    'SFSI': on_resnet('SFSI', vary=spread_pixels, window=5),
    'SFSI on CifarResNet': on('SFSI', **CIFAR, vary=spread_pixels, window=5, grid=4),
    'SFSI on InvertedResidualNet': on('SFSI', **MOBILE, vary=spread_pixels, window=3, grid=4),
}

try:
    from eff_plugins.testing.zooms import ZOOMS
except MissingExtraError:  # no mmdet, no detectors
    pass
else:
    DYNAMIC['ScaleAwareDetector'] = ZOOMS
