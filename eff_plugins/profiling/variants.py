"""The settings of a dynamic network that a benchmark times: executions, policies and budgets over shared weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.budget import Calibration, calibrate, check_share, set_knob
from eff_plugins.dynamic.module import EXECUTIONS, decisions, set_execution, set_policy
from eff_plugins.dynamic.recorder import record

POLICIES = ('learned', 'random', 'all')
# Blind decisions are drawn until what they spend lies so near to the budget, at most so often; the nearest is taken.
_NEAR, _DRAWS = 0.005, 24
# With one decision a block and sample, a single draw says little about a density: they are drawn for so many samples.
_DRAWN_FOR = 4


@dataclass(frozen=True)
class Plan:
    """What of a dynamic network is timed.

    Attributes:
        executions: Members of ``EXECUTIONS``; empty: dense, and sparse where there is something to decide by.
        policies: Members of ``POLICIES``; empty: learned.
        budgets: Shares of the dense network's multiply-adds; empty: as the policies are, uncalibrated.
        calibration: File of a calibration of the learned policy.

    Raises:
        ValueError: An unknown value; the message names it.
    """

    executions: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    calibration: str | None = None

    def __post_init__(self) -> None:
        for name, values, known in (('execution', self.executions, EXECUTIONS), ('policy', self.policies, POLICIES)):
            for value in values:
                if value not in known:
                    raise ValueError(f'{name} {value!r} must be one of {", ".join(known)}')
        for budget in self.budgets:
            check_share(budget)

    @property
    def is_plain(self) -> bool:
        """Whether a static network can do what is asked."""
        return not (self.budgets or self.policies or self.calibration or set(self.executions) - {'dense'})

    def variants(self, trained: bool) -> list[Variant]:
        """Every combination that has a meaning, the dense network first.

        Args:
            trained: Whether the policies' weights are; if not, what they decide means nothing, and blind decisions that
                spend the budget (policy ``'synthetic'``) stand for them.

        Raises:
            ValueError: Untrained policies, and no budget to spend blindly, or an option that no row uses.
        """
        decided = trained or self.budgets or self.policies
        executions = self.executions or (('dense', 'sparse') if decided else ('dense',))
        asked = self.policies or ('learned',)
        policies = dict.fromkeys(p if trained or p == 'all' else 'synthetic' for p in asked)
        found = [Variant('dense')] if 'dense' in executions else []
        for execution in dict.fromkeys(e for e in executions if e != 'dense'):
            for policy in policies:
                if policy == 'all':
                    found.append(Variant(execution, policy))
                elif self.budgets:
                    found += [Variant(execution, policy, budget) for budget in dict.fromkeys(self.budgets)]
                elif policy == 'learned':
                    found.append(Variant(execution, policy))
                else:
                    why = '; without a checkpoint decisions are blind' if policy == 'synthetic' else ''
                    raise ValueError(f'execution {execution} of the {policy} policy needs --budgets to spend{why}')
        if self.policies and not any(v.policy for v in found):
            raise ValueError("execution 'dense' computes everything: leave --policy out, or add --execution sparse")
        if self.budgets and not any(v.budget for v in found):
            raise ValueError(
                'no row has a budget: --budgets serve learned and random policies in masked or sparse execution'
            )
        if self.calibration is not None and not any(v.policy == 'learned' and v.budget is not None for v in found):
            raise ValueError('--calibration serves a learned policy: give a checkpoint, --policy learned and --budgets')
        return found


@dataclass(frozen=True)
class Variant:
    """One row's columns: how a network executes, what decides, and what share of the dense network it may spend."""

    execution: str = 'dense'
    policy: str | None = None
    budget: float | None = None

    @property
    def is_blind(self) -> bool:
        """Whether decisions are drawn and not read off the input."""
        return self.policy in ('random', 'synthetic')


@dataclass
class Switch:
    """Puts a shared dynamic network into one variant's state.

    A blind policy's decisions are drawn once for a batch and replayed: while it is timed, the network computes its scores
    and its threshold as for a learned decision, so that a policy's cost is all there and that of drawing is not. A policy
    that decides otherwise than by its ``forward`` draws again each time, the same by the same seed.

    Attributes:
        model: The prepared network.
        variant: What to switch to.
        knob: That meets the budget; None leaves the policies as they are.
        drawn: Each decision step's outcomes in the order of its calls, for a blind policy.
        seed: Where there are none, what a blind policy's random numbers begin with.
    """

    model: nn.Module
    variant: Variant
    knob: Any = None
    drawn: list[list[Tensor]] = field(default_factory=list)
    seed: int | None = None

    def __call__(self) -> None:
        set_execution(self.model, self.variant.execution)
        if self.variant.execution == 'dense':
            return
        steps = _steps(self.model)
        for step in steps:
            for name in ('forward', 'cut'):
                step.__dict__.pop(name, None)
        if self.seed is not None:
            _set(self.model, 'random', self.knob)
            torch.manual_seed(self.seed)
            return
        if steps or self.variant.policy == 'all':
            _set(self.model, 'all' if self.variant.policy == 'all' else 'learned', None if self.drawn else self.knob)
        if self.drawn:
            for step, outcomes in zip(steps, self.drawn, strict=True):
                replay = _Replay(step.forward, outcomes)
                step.forward, step.cut = replay, replay.cut  # type: ignore[method-assign, assignment]

    def check(self) -> None:
        """After one run: whether the network asked for all of the drawn decisions.

        Raises:
            RuntimeError: It did not, so that it is not the drawn decisions that were executed.
        """
        for step in decisions(self.model) if self.drawn else ():
            replay: Any = step.forward
            if replay.asked != len(replay.outcomes):
                raise RuntimeError(
                    f'a policy decided {replay.asked} times, {len(replay.outcomes)} decisions were drawn for it: it does not '
                    'ask its Decide step for every decision, so blind ones cannot be timed'
                )


def _steps(model: nn.Module) -> list[nn.Module]:
    """The model's decision steps; none where it decides by what cannot be replaced."""
    try:
        return list(decisions(model))
    except ValueError:
        return []


def _set(model: nn.Module, kind: str, knob: Any) -> None:
    set_policy(model, kind)
    if knob is not None:
        set_knob(model, knob)


class _Replay:
    """In place of a decision step's ``forward``: does what that does, and returns what was drawn."""

    def __init__(self, own: Callable[[Tensor], Tensor], outcomes: list[Tensor]) -> None:
        self.own, self.outcomes, self.asked = own, outcomes, 0
        self._next = cycle(outcomes)

    def __call__(self, scores: Tensor) -> Tensor:
        self.asked += 1
        self.own(scores)
        return next(self._next)

    def cut(self, scores: Tensor) -> tuple[Tensor, float]:
        """As of :class:`~eff_plugins.dynamic.policies.Decide`, where it costs nothing."""
        self.asked += 1
        return next(self._next), 0.0


@contextmanager
def _noted(steps: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Each step's outcomes within the block."""
    outcomes: list[list[Tensor]] = [[] for _ in steps]
    handles = [
        step.register_forward_hook(lambda _module, _args, out, kept=kept: kept.append(out))
        for step, kept in zip(steps, outcomes, strict=True)
    ]
    try:
        yield outcomes
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def draw(model: nn.Module, variant: Variant, found: Calibration, run: Callable[[], Any], dense_macs: float) -> Switch:
    """Draw a blind policy's decisions for one batch, such that they spend the budget.

    Args:
        model: The prepared dynamic network.
        variant: With a blind policy and a budget.
        found: What :func:`blind_calibration` gave.
        run: Runs the model on the batch.
        dense_macs: Of the dense network for one sample of the batch.
    """
    assert variant.budget is not None
    best, least, aim = None, float('inf'), variant.budget
    with torch.random.fork_rng():
        for seed in range(_DRAWS):
            switch = Switch(model, variant, found.knob(min(max(aim, found.shares[-1]), 1.0)), seed=seed)
            switch()
            with _noted(decisions(model)) as outcomes, record(model) as stats:
                run()
            if any(outcomes):
                switch = Switch(model, variant, drawn=outcomes)
            off = float(stats.share(dense_macs)) - variant.budget
            if abs(off) < least:
                best, least = switch, abs(off)
            if least <= _NEAR:
                break
            aim -= 0.3 * off  # on batches of another size the calibration may be a little off
    assert best is not None
    return best


def blind_calibration(
    model: nn.Module, batch: Any, samples: int, run: Callable[[nn.Module, Any], Any], budgets: Sequence[float]
) -> Calibration:
    """What random decisions spend on inputs like ``batch``, of ``samples`` samples, near the budgets.

    Raises:
        ValueError: A budget below what the network spends with nothing on.
    """
    set_policy(model, 'random')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = calibrate(model, [batch] * max(1, _DRAWN_FOR // samples), run, budgets)
    for budget in budgets:
        found.knob(budget)
    return found


def learned_knobs(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], Any],
    budgets: Sequence[float],
) -> dict[float, Any]:
    """Budget -> threshold of the learned policy, calibrated on ``batches``."""
    set_policy(model, 'learned')
    found = calibrate(model, batches, run, budgets)
    return {budget: found.knob(budget) for budget in budgets}
