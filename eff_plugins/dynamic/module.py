"""What all dynamic modules share, and the switches that work on any model that contains some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from eff_plugins.dynamic.policies import Policy
from eff_plugins.profiling.macs import count_macs

EXECUTIONS = ('dense', 'masked', 'sparse')
Model = TypeVar('Model', bound=nn.Module)


class DynamicModule(nn.Module):
    """A module that decides at run time what to compute.

    Attributes:
        execution: ``'dense'``: everything on, the plain network; ``'masked'``: all computed and the decisions multiplied in,
            differentiable; ``'sparse'``: what was not chosen is not computed (evaluation only).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # of a host class that follows it
        self.execution = 'masked'

    def settings(self) -> tuple:
        """What decides, apart from weights, how much a decision of this module is worth: part of a calibration's identity."""
        return ()

    def check_execution(self) -> None:
        """Called by ``forward``: sparse execution has no gradient for what it leaves out.

        Raises:
            RuntimeError: Sparse execution in training mode.
        """
        if self.execution == 'sparse' and self.training:
            raise RuntimeError(
                f"{type(self).__name__} is in training mode, where execution 'sparse' would lose gradients: "
                "call model.eval() or set_execution(model, 'masked')"
            )


class WrapsStatic:
    """Mixin, before ``nn.Module``, of a module around a static network: it loads that network's own checkpoints, too.

    Keys of the static network without the prefix that the wrapper gives them, as a checkpoint trained without the wrapper has
    them, are taken for its own; what then is missing are the policy's.

    Attributes:
        wrapped: Name of the attribute that is the static network.
    """

    wrapped = 'backbone'

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        inside = f'{prefix}{self.wrapped}.'
        own = {*self._modules, *self._parameters, *self._buffers}  # type: ignore[attr-defined]
        static = getattr(self, self.wrapped).state_dict().keys()
        for key in [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]:
            stranger = key in static or key.partition('.')[0] not in own  # the latter: it may wrap, or rename, further
            if stranger and inside + key not in state_dict:
                state_dict[inside + key] = state_dict.pop(prefix + key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]


def dynamic_modules(model: nn.Module) -> Iterator[tuple[str, DynamicModule]]:
    """Name and module of every dynamic module inside ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, DynamicModule):
            yield name, module


def is_dynamic(model: nn.Module) -> bool:
    """Whether ``model`` contains a dynamic module."""
    return next(dynamic_modules(model), None) is not None


def policy_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of parameters begin with that belong to policies (``is_policy``), not to the dense network."""
    return tuple(f'{name}.' for name, part in model.named_modules() if getattr(part, 'is_policy', False))


def decisions(model: nn.Module) -> list[Policy]:
    """Every policy's decision step inside ``model``.

    Raises:
        ValueError: There is none: nothing in the model is dynamic, or no policy in it has a knob.
    """
    found = [module for module in model.modules() if isinstance(module, Policy)]
    if not found:
        raise ValueError(f'{type(model).__name__} contains no policy that decides; is its network dynamic?')
    return found


def set_execution(model: Model, mode: str) -> Model:
    """Set how every dynamic module inside ``model`` executes; returns the model.

    Args:
        model: Any model that contains dynamic modules.
        mode: ``'dense'``, ``'masked'`` or ``'sparse'``.

    Raises:
        ValueError: Unknown mode, or no dynamic module.
    """
    if mode not in EXECUTIONS:
        raise ValueError(f'execution {mode!r} must be one of {", ".join(EXECUTIONS)}')
    found = [module for _, module in dynamic_modules(model)]
    if not found:
        raise ValueError(f'{type(model).__name__} contains no dynamic module; its only execution is dense')
    for module in found:
        module.execution = mode
    return model


@contextmanager
def executing(model: nn.Module, mode: str) -> Iterator[None]:
    """Let every dynamic module inside ``model`` execute in ``mode`` within the block; a static model is left alone."""
    before = [(module, module.execution) for _, module in dynamic_modules(model)]
    try:
        for module, _ in before:
            module.execution = mode
        yield
    finally:
        for module, own in before:
            module.execution = own


def set_policy(model: Model, kind: str, index: int | None = None) -> Model:
    """Replace every policy's decisions; returns the model.

    What a kind spends is its own: after a change to ``'random'`` calibrate, and set the budget, anew.

    Args:
        model: Any model that contains dynamic modules.
        kind: ``'learned'``, or a control: ``'random'``, ``'all'``, ``'none'``; where one of several exits, resolutions or
            the like is chosen also ``'fixed'``.
        index: Which one, for ``'fixed'`` alone.

    Raises:
        ValueError: A kind that the model's policies do not have, no policy, or an index that does not fit.
    """
    for decide in decisions(model):
        if kind not in decide.KINDS:
            raise ValueError(f'policy {kind!r} must be one of {", ".join(decide.KINDS)}')
        if (kind == 'fixed') != (index is not None):
            raise ValueError(f"index={index} with policy {kind!r}: 'fixed' needs an index, the other kinds have none")
        if index is not None:
            decide.index = index  # type: ignore[assignment]
        decide.kind = kind
    return model


class MacsOf:
    """Multiply-adds of a module for one sample, counted once for each input size on the meta device."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, module: nn.Module, size: tuple[int, ...]) -> float:
        """``size`` is that of one sample, (C, H, W)."""
        if size not in self._known:
            # outside of a counter that may watch the forward pass at hand
            with _disable_current_modes(), torch.no_grad():
                parameter = next(module.parameters(), torch.empty(0))
                try:
                    self._known[size] = _count(module, size, parameter.dtype, torch.device('meta'))
                except RuntimeError:  # an operator without shapes alone, such as mmcv's deformable convolution
                    self._known[size] = _count(module, size, parameter.dtype, parameter.device)
        return self._known[size]

    def __deepcopy__(self, memo: dict) -> MacsOf:
        return MacsOf()


def _count(module: nn.Module, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> float:
    twin = deepcopy(module).to(device).eval()
    x = torch.zeros(1, *size, device=device, dtype=dtype)
    return float(count_macs(twin, lambda: twin(x)).get('', 0))
