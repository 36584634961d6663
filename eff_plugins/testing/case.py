"""A dynamic network as the checks of :mod:`eff_plugins.testing.conformance` see it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins import dynamic
from eff_plugins.dynamic.module import dynamic_modules
from eff_plugins.dynamic.policies import Decide
from eff_plugins.registry import MODELS
from eff_plugins.testing.oracles import randomise


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Random pictures of ``shape``."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@torch.no_grad()
def spread_decisions(model: nn.Module, x: Any) -> None:
    """Set the threshold of each policy of ``model`` amid its scores for ``x``, so that samples and places differ.

    It goes where no score is near, else rounding alone would move scores across and executions would differ rightly.

    Raises:
        AssertionError: There is no such place: the scores are all alike.
    """
    for name, module in dynamic_modules(model):
        steps = [step for step in module.modules() if isinstance(step, Decide)]
        for step in steps:
            scores = _scores(model, x, name).unique()  # ascending
            third = len(scores) // 3
            middle = scores[third : max(len(scores) - third, third + 2)]
            gaps = middle.diff()
            for gap in gaps.argsort(descending=True)[:8].tolist():
                step.threshold = float(middle[gap : gap + 2].mean())
                # a decision may change scores that come after it
                now = _scores(model, x, name)
                if float((now - step.threshold).abs().min()) > 2e-5 * float(now.abs().max()):
                    break
            else:
                raise AssertionError(f'{name}: a score lies within rounding of every threshold; are all scores alike?')


def _scores(model: nn.Module, x: Any, name: str) -> Tensor:
    with dynamic.record(dynamic.set_execution(model, 'masked')) as stats:
        model(x)
    found = [entry.scores for entry in stats.entries if entry.name == name and entry.scores is not None]
    assert found, f'{name} reports no scores'
    return torch.cat([scores.float().flatten() for scores in found])


def call(model: nn.Module, x: Any) -> Any:
    """``model(x)``."""
    return model(x)


@dataclass(frozen=True, eq=False)
class Case:
    """A dynamic network as the checks see it; small, for each is run some hundred times.

    Attributes:
        model: Config or function that builds it; its weights are made random.
        reference: The same for its dense reference, the static network with its keys.
        shape: Of the input, (B, C, H, W) with B >= 2.
        odd: (H, W) of another input, odd numbers.
        inputs: Shape -> what the model is called with.
        vary: ``vary(model, x)`` makes the model, in evaluation mode, decide differently for samples (and places) of x.
        select: ``select(model, kind)`` switches everything on (``'all'``), off (``'none'``), or back (``'learned'``).
        train: ``train(model, x)`` gives, in training mode, the tensors that losses are computed of.
        policy: Names of modules that belong to the policy though they have no ``is_policy``.
        step: How far from a budget the knob may end, as a share of what lies between everything and nothing on; a knob with
            few decisions to turn goes in coarse steps.
        exceptions: Check -> why it does not apply.
    """

    model: Mapping[str, Any] | Callable[[], nn.Module]
    reference: Mapping[str, Any] | Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 3, 32, 32)
    odd: tuple[int, int] = (35, 27)
    inputs: Callable[[tuple[int, ...]], Any] = pictures
    vary: Callable[[nn.Module, Any], None] = spread_decisions
    select: Callable[[nn.Module, str], Any] = dynamic.set_policy
    train: Callable[[nn.Module, Any], Any] = call
    policy: tuple[str, ...] = ()
    step: float = 0.06
    exceptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def odd_shape(self) -> tuple[int, ...]:
        """Shape of the input of odd size."""
        return (*self.shape[:2], *self.odd)


def build(what: Mapping[str, Any] | Callable[[], nn.Module]) -> nn.Module:
    """The network of a config, or of a function, with the same random weights each time."""
    torch.manual_seed(0)
    net = what() if callable(what) else MODELS.build(dict(what))
    randomise(net)
    return net.eval()


@lru_cache(maxsize=4)
def _varied(case: Case, shape: tuple[int, ...]) -> nn.Module:
    net = build(case.model)
    case.vary(net, case.inputs(shape))
    return net


def varied(case: Case, odd: bool = False) -> tuple[nn.Module, Any]:
    """The network of ``case`` that decides differently for the samples of the input that comes with it."""
    shape = case.odd_shape if odd else case.shape
    return copy.deepcopy(_varied(case, shape)), case.inputs(shape)


def tensors(out: Any) -> list[Tensor]:
    """All tensors of what a network returned: nested tuples, lists and dicts."""
    if isinstance(out, Tensor):
        return [out]
    parts = out.values() if isinstance(out, Mapping) else out if isinstance(out, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]
