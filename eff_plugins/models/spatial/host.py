"""Static networks that spatial methods are put into: any backbone of residual blocks, a ResNet unless one is named."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from eff_plugins.dynamic.residual import ResidualBlock, residual_blocks
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.registry import MODELS


def hosted(convert: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register a function that makes a static network dynamic, in place, as a backbone type.

    The type takes the options of ``convert`` and, besides, either ``backbone``: the config of a backbone of the suite (or the
    module itself); or every argument of :class:`~eff_plugins.models.image.resnet.ResNet`, so that in a config with mmdet's or
    mmseg's ResNet one changed ``type`` is enough. What it builds is the host itself: its class, its keys plus the
    policy's, and ``init_cfg`` for its static weights.

    Args:
        convert: ``convert(network, **options)`` returns the network.
    """
    own = list(inspect.signature(convert).parameters.values())[1:]
    names = [parameter.name for parameter in own]

    @functools.wraps(convert)
    def build(backbone: Mapping[str, Any] | nn.Module | None = None, **arguments: Any) -> nn.Module:
        options = {name: arguments.pop(name) for name in names if name in arguments}
        return convert(_host(backbone, arguments), **options)

    host = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(ResNet).parameters.values()]
    keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    first = inspect.Parameter('backbone', inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
    build.__signature__ = inspect.Signature([first, *keywords, *host])  # type: ignore[attr-defined]
    build.first_stride = ResNet.first_stride  # type: ignore[attr-defined]
    return MODELS.register_module(name=convert.__name__, module=build)


def _host(backbone: Mapping[str, Any] | nn.Module | None, resnet: Mapping[str, Any]) -> nn.Module:
    if backbone is None:
        return ResNet(**resnet)
    if resnet:
        raise ValueError(
            f'{", ".join(resnet)}: arguments of the backbone belong into backbone=dict(...), which is given as well'
        )
    return backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)


def stages_of(network: nn.Module, values: int | Sequence[int]) -> list[tuple[list[ResidualBlock], int]]:
    """The residual blocks of each stage, and its value.

    Args:
        network: Blocks that lie in one sequence are a stage.
        values: One number for each stage, or one for all.

    Raises:
        ValueError: There is no residual block, a value that is no number of pixels, or not as many as stages.
    """
    stages: dict[str, list[ResidualBlock]] = {}
    for name, block in residual_blocks(network):
        stages.setdefault(name.rpartition('.')[0], []).append(block)
    if not stages:
        kind = type(network)
        raise ValueError(
            f'{kind.__name__} of {kind.__module__.partition(".")[0]} has no residual block that could be computed in part; '
            "eff_plugins.ResNet has, which takes the arguments and weights of mmdet's and mmseg's"
        )
    each = list(values) if isinstance(values, Sequence) else [values] * len(stages)
    for value in each:
        if not isinstance(value, int):
            raise ValueError(f'granularity {value!r} must be a whole number of pixels, at least 1')
    if len(each) != len(stages):
        raise ValueError(
            f'{tuple(each)} has {len(each)} numbers; {type(network).__name__} has {len(stages)} stages with residual blocks: '
            f'{", ".join(stages)}'
        )
    return list(zip(stages.values(), each, strict=True))
