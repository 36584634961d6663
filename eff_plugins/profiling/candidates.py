"""What takes part in the rounds of a benchmark: static networks, and each variant of a dynamic one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from eff_plugins.deploy.prepare import Preparation
from eff_plugins.dynamic.break_even import measure_break_even
from eff_plugins.dynamic.budget import Calibration, set_budget
from eff_plugins.dynamic.module import is_dynamic, policy_prefixes, set_execution
from eff_plugins.dynamic.recorder import record
from eff_plugins.profiling.macs import count_macs, count_parameters
from eff_plugins.profiling.subjects import Subject
from eff_plugins.profiling.variants import Plan, Switch, Variant, blind_calibration, draw, learned_knobs


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one sample over the inputs."""

    mean: float
    std: float


def _nothing() -> None:
    """How a network with one state of its own is made ready."""


@dataclass
class Candidate:
    """A network in one state, with its inputs.

    Attributes:
        subject: Where it comes from.
        timed: The prepared network.
        counted: The same uncompiled, so that the counter of multiply-adds sees its operators.
        batches: Inputs.
        ready: For each batch, what puts the network into its state.
        variant: Of a dynamic network.
        wanted: Whether it gets a row.
        dense_macs: Of the dense network, for one sample of each batch.
        density: Mean share of the decisions that were on, once :meth:`macs` has run a dynamic network.
    """

    subject: Subject
    how: Preparation
    timed: nn.Module
    counted: nn.Module
    batches: list[Any]
    ready: list[Callable[[], None]]
    variant: Variant | None = None
    wanted: bool = True
    dense_macs: list[float] = field(default_factory=list)
    density: float | None = None

    @property
    def parameters(self) -> int:
        """Parameters; in dense execution the policies' are none of the network's."""
        if self.variant is None or self.variant.execution != 'dense':
            return count_parameters(self.counted)
        prefixes = policy_prefixes(self.counted)
        return sum(p.numel() for name, p in self.counted.named_parameters() if not name.startswith(prefixes))

    def call(self, i: int) -> Callable[[], Any]:
        """What is timed on batch ``i``."""
        return lambda: self.subject.call(self.timed, self.batches[i], self.how)

    @torch.no_grad()
    def macs(self, batch_size: int) -> Cost:
        """Count what is executed, by running every batch once; notes the density and a report that differs."""
        counts, densities = [], []
        for i, batch in enumerate(self.batches):
            self.ready[i]()
            with record(self.counted) as stats:
                count = count_macs(self.counted, partial(self.subject.call, self.counted, batch, self.how))
            counts.append(count.get('', 0) / batch_size)
            ready = self.ready[i]
            if isinstance(ready, Switch) and stats.entries:
                ready.check()
                densities.append(float(torch.stack([value.float() for value in stats.densities().values()]).mean()))
                self._check(counts[-1], self.dense_macs[i], float(stats.saved_macs()))
        if densities:
            self.density = float(np.mean(densities))
        return Cost(float(np.mean(counts)), float(np.std(counts)))

    def _check(self, counted: float, dense: float, saved: float) -> None:
        """What a sparse network reports is what it executes, or the user hears of it."""
        reported = dense - saved
        if self.variant is not None and self.variant.execution == 'sparse' and abs(reported - counted) > 0.01 * dense:
            note = (
                f'{self.subject.name}: executes {counted:.4g} multiply-adds a sample, its modules report {reported:.4g}'
            )
            if note not in self.subject.notes:
                self.subject.notes += (note,)


class Static:
    """A network that has one way to execute."""

    def __init__(self, subject: Subject, how: Preparation) -> None:
        self.subject, self.how = subject, how
        self.counted = subject.prepare(replace(how, compile=False))
        self.timed = subject.prepare(how) if how.compile else self.counted
        for model in (self.counted, self.timed):
            if is_dynamic(model):
                set_execution(model, 'dense')

    def candidates(self, batches: list[Any], batch_size: int) -> list[Candidate]:
        """The one, for these batches."""
        return [Candidate(self.subject, self.how, self.timed, self.counted, batches, [_nothing] * len(batches))]


@dataclass
class Dynamic:
    """All variants of a dynamic network: the dense one in a copy of its own, the others switched on a shared one.

    Raises:
        ValueError: A budget is out of reach.
    """

    subject: Subject
    how: Preparation
    plan: Plan
    size: int | None = None
    _knobs: dict[float, Any] = field(default_factory=dict)  # budget -> threshold of the learned policy
    _blind: Calibration | None = None
    _measured: bool = False  # the layers' break-even densities

    def __post_init__(self) -> None:
        self.variants = self.plan.variants(self.subject.checkpoint is not None)
        self.dense = set_execution(self.subject.prepare(self.how), 'dense')
        if any(variant.execution != 'dense' for variant in self.variants):
            self.model = self.subject.prepare(self.how)
        self._learned = any(variant.policy == 'learned' for variant in self.variants) and bool(self.plan.budgets)
        if self._learned and self.plan.calibration is not None:
            # of the network as it was trained: folding changes the weights, not the decisions
            stored = Calibration.load(self.plan.calibration)
            self._knobs = {budget: set_budget(self.subject.model, budget, stored) for budget in self.plan.budgets}

    def _run(self, model: nn.Module, batch: Any) -> Any:
        return self.subject.call(model, batch, self.how)

    def _meet_budgets(self, timed: list[Any]) -> None:
        """Find the thresholds of learned policies before anything is timed, once it is known what is computed whole."""
        try:
            batches = self.subject.training_batches(self.size, self.how)
        except FileNotFoundError as error:
            self.subject.notes += (f'{self.subject.name}: {error}; thresholds are set on the timed inputs',)
            batches = timed
        self._knobs = learned_knobs(self.model, batches, self._run, self.plan.budgets)

    def candidates(self, batches: list[Any], batch_size: int) -> list[Candidate]:
        """The dense network, which the others are held against, and then each variant."""
        budgets = self.plan.budgets
        sparse = any(variant.execution == 'sparse' for variant in self.variants)
        if sparse and self.how.device == 'cpu' and not self._measured:
            self._measured = True
            measure_break_even(self.model, lambda: self._run(self.model, batches[0]))
        if self._learned and not self._knobs:
            self._meet_budgets(batches)
        if self._blind is None and any(variant.is_blind for variant in self.variants):
            self._blind = blind_calibration(self.model, batches[0], batch_size, self._run, budgets)
        dense = [self._dense_macs(batch) / batch_size for batch in batches]
        still = [_nothing] * len(batches)
        wanted = Variant() in self.variants
        found = [Candidate(self.subject, self.how, self.dense, self.dense, batches, still, Variant(), wanted)]
        for variant in self.variants:
            if variant.execution != 'dense':
                ready: list[Callable[[], None]] = [
                    self._switch(variant, batch, macs) for batch, macs in zip(batches, dense, strict=True)
                ]
                found.append(
                    Candidate(self.subject, self.how, self.model, self.model, batches, ready, variant, True, dense)
                )
        return found

    @torch.no_grad()
    def _dense_macs(self, batch: Any) -> int:
        return count_macs(self.dense, lambda: self._run(self.dense, batch)).get('', 0)

    def _switch(self, variant: Variant, batch: Any, dense_macs: float) -> Switch:
        if not variant.is_blind:
            return Switch(self.model, variant, None if variant.budget is None else self._knobs.get(variant.budget))
        assert self._blind is not None
        return draw(self.model, variant, self._blind, lambda: self._run(self.model, batch), dense_macs)
