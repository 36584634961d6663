"""Compare a network of the suite with the same network in timm or torchvision, map by map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eff_plugins.compat import require
from eff_plugins.hub import build_classifier, load_strict
from eff_plugins.hub.convert import Keys, keys, rename
from eff_plugins.models.image.zoo import variant


class _NoRandomInit(TorchDispatchMode):
    """Leave out what fills a tensor with random numbers: in large networks it takes most of the comparison's time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_oracle(name: str) -> nn.Module:
    """The classifier behind ``'timm:NAME'`` or ``'tv:NAME'`` with random weights, in eval mode.

    Raises:
        MissingExtraError: timm or torchvision is not installed.
        ValueError: Another prefix.
    """
    source, _, model = name.partition(':')
    if source == 'timm':
        return require('timm', f'oracle {name}').create_model(model, pretrained=False).eval()
    if source == 'tv':
        models = require('torchvision', f'oracle {name}').models
        extra = dict(init_weights=False, aux_logits=False) if model == 'googlenet' else {}
        return models.get_model(model, weights=None, **extra).eval()
    raise ValueError(f'oracle {name!r} must be timm:NAME or tv:NAME')


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Random weights, biases and norm statistics, scaled so that the signal neither dies nor explodes in a deep network."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    module: Any
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in = module.weight[0].numel()
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (1.6 / fan_in) ** 0.5)
            if module.bias is not None:
                uniform(module.bias, -0.2, 0.2)
        elif isinstance(module, nn.BatchNorm2d):
            if module.affine:
                uniform(module.weight, 0.4, 0.9)
                uniform(module.bias, -0.2, 0.2)
                # some channels beyond the bends of ReLU6 and of the hard functions
                module.bias[torch.rand(module.bias.shape, generator=generator) < 0.1] += 6.5
            uniform(module.running_mean, -0.3, 0.3)
            uniform(module.running_var, 0.5, 1.5)


def _outputs_of(model: nn.Module, names: list[str], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Outputs of the named modules and of the whole model."""
    caught: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, args: object, output: Tensor, name: str = name) -> None:
            caught[name] = output.clone()  # the next layer may work in place

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        whole = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [caught[name] for name in names], whole


def same_weights(name: str, oracle: str | None = None) -> tuple[nn.Module, nn.Module, Keys]:
    """A variant's classifier and its oracle with the same random weights and norm statistics, in eval mode.

    Args:
        name: Variant of the zoo.
        oracle: In place of the variant's own.

    Returns:
        Ours, theirs, and the table by which their keys became ours.

    Raises:
        ValueError: There is no oracle.
    """
    oracle = oracle or variant(name).oracle
    if oracle is None:
        raise ValueError(f'{name} has no oracle')
    with _NoRandomInit():
        theirs = build_oracle(oracle)
        ours = build_classifier(name).eval()
    randomise(theirs)
    table: Keys = keys(name, oracle.partition(':')[0])
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith('num_batches_tracked')}
    load_strict(ours, rename(state, table.prefixes), oracle)
    return ours, theirs, table


@torch.no_grad()
def differences(name: str, sizes: list[tuple[int, int]], oracle: str | None = None) -> dict[str, float]:
    """Largest differences between a variant and its oracle with the same random weights.

    Every map that the oracle shows and the logits are compared in eval mode.

    Args:
        name: Variant of the zoo.
        sizes: Input sizes (H, W).
        oracle: In place of the variant's own.

    Returns:
        ``'relative'``: the largest max|a - b| / max|b| of any map or logits; ``'absolute'``: the largest max|a - b|.
    """
    described = variant(name)
    ours, theirs, table = same_weights(name, oracle)
    backbone = ours.get_submodule('backbone')
    maps = sorted(table.maps)
    with torch.device('meta'):
        backbone_all = type(backbone)(**_arguments(described.backbone), out_indices=maps).eval()
    backbone_all.load_state_dict(backbone.state_dict(), strict=True, assign=True)
    largest = {'relative': 0.0, 'absolute': 0.0}
    for height, width in sizes:
        x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))
        want, logits = _outputs_of(theirs, [table.maps[level] for level in maps], x)
        got = [*backbone_all(x), ours(x)]
        for a, b in zip(got, [*want, logits], strict=True):
            if a.shape != b.shape:
                raise ValueError(f'{name}: a map is {tuple(a.shape)}, its oracle has {tuple(b.shape)}')
            if not (a.isfinite().all() and b.isfinite().all()):
                raise ValueError(f'{name}: a map is not finite, so that nothing can be compared')
            gap = float((a - b).abs().max())
            largest['absolute'] = max(largest['absolute'], gap)
            largest['relative'] = max(largest['relative'], gap / max(float(b.abs().max()), 1e-12))
    return largest


def _arguments(config: object) -> dict:
    return {key: value for key, value in dict(config).items() if key != 'type'}  # type: ignore[call-overload]
