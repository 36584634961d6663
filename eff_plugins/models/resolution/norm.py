"""One BatchNorm a resolution over shared convolutions: statistics depend on the resolution, weights hardly do."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.per_thread import PerThread

Model = TypeVar('Model', bound=nn.Module)


class Switch:
    """Which resolution is computed now; one object, shared by all norms of a network.

    Attributes:
        index: Number of the resolution, 0 being the largest.
    """

    index = PerThread(0)


class _Others(nn.ModuleList):
    """Norms of the further resolutions; a dense network's weights have nothing of them."""

    is_policy = True


class ResolutionBatchNorm(nn.BatchNorm2d):
    """BatchNorm with its own statistics and affine terms for each resolution: (B, C, H, W) -> the same shape.

    Parameters and buffers of the largest resolution have the names of the BatchNorm that it replaces, the others'
    stand below ``others.``. Weights that lack ``others.`` are copied to all resolutions, so that a dense network's load.

    Source: Zhu et al., "Dynamic Resolution Network", NeurIPS 2021, section 3 (resolution-aware BN).

    Args:
        norm: BatchNorm to start from; its parameters are kept.
        count: Resolutions.
        switch: Says which one is computed.
    """

    def __init__(self, norm: nn.BatchNorm2d, count: int, switch: Switch) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.others = _Others(deepcopy(norm) for _ in range(count - 1))
        self.switch = switch
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.index == 0:
            return super().forward(x)
        return self.others[self.switch.index - 1](x)

    def plain(self, index: int) -> nn.BatchNorm2d:
        """A copy of the BatchNorm of resolution ``index`` as a layer of its own."""
        if index > 0:
            return deepcopy(self.others[index - 1])  # type: ignore[return-value]
        norm = deepcopy(self.others[0])
        state = {key: value for key, value in self.state_dict().items() if not key.startswith('others.')}
        norm.load_state_dict(state)
        return norm  # type: ignore[return-value]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if not any(key.startswith(f'{prefix}others.') for key in state_dict):
            own = [*self._parameters, *self._buffers]
            for name in (f'{prefix}{key}' for key in own if f'{prefix}{key}' in state_dict):
                for i in range(len(self.others)):
                    state_dict[f'{prefix}others.{i}.{name.removeprefix(prefix)}'] = state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def split_norms(model: Model, count: int) -> tuple[Model, Switch]:
    """Give each BatchNorm of ``model`` one set of statistics and affine terms a resolution, in place.

    Args:
        model: A network whose BatchNorms are torch's.
        count: Resolutions.

    Returns:
        The model, and the switch between the resolutions.

    Raises:
        ValueError: There is no BatchNorm, or one of another kind, which could not follow the resolution.
    """
    switch, found = Switch(), 0
    for path, norm in list(model.named_modules()):
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if type(norm) is not nn.BatchNorm2d:
            raise ValueError(
                f'{path} is {type(norm).__name__}; one norm a resolution is made of torch.nn.BatchNorm2d only'
            )
        holder, _, name = path.rpartition('.')
        setattr(model.get_submodule(holder), name, ResolutionBatchNorm(norm, count, switch))
        found += 1
    if not found:
        raise ValueError(f'{type(model).__name__} has no BatchNorm2d: there is nothing to keep per resolution')
    return model, switch


@torch.no_grad()
def at_resolution(model: Model, index: int) -> Model:
    """A copy of ``model`` for resolution ``index`` alone, with plain BatchNorms: a static network with its keys."""
    twin = deepcopy(model)
    for path, norm in list(twin.named_modules()):
        if isinstance(norm, ResolutionBatchNorm):
            holder, _, name = path.rpartition('.')
            setattr(twin.get_submodule(holder), name, norm.plain(index))
    return twin
