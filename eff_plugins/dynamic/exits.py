"""Early exits: a sample leaves at the first classifier that is sure of it, and the rest of the batch goes on.

A network says how to walk from exit to exit (:meth:`EarlyExit.walk`); what is done with the samples is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins.dynamic.choices import OneOf, take_rows
from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.dynamic.policies import Knob
from eff_plugins.dynamic.recorder import emit, recording


def confidence(logits: Tensor) -> Tensor:
    """Largest class probability: (B, C) -> (B,) float32."""
    return logits.float().softmax(1).amax(1)


class ConfidenceExit(OneOf):
    """A sample leaves at exit k where its largest class probability is above ``thresholds[k]``; at the last one always.

    The knob is one threshold an exit. A calibration sets them as MSDNet and RANet do in budgeted batch classification: the
    share of samples that leave at exit k is proportional to q^k, the surest of those that are left leave first, and
    q spends more or less (Huang et al., ICLR 2018, section 5; Yang et al., CVPR 2020, section 4).

    Args:
        count: Exits.

    Attributes:
        thresholds: One for each exit but the last; 1.0 lets nobody leave.
        max_exit: Where the last samples leave (a deadline), by default the last exit. Dense execution does not look at it.
    """

    LEARNED_KNOB = 'thresholds'

    def __init__(self, count: int) -> None:
        super().__init__(count, dearest=count - 1)
        self.thresholds: tuple[float, ...] = (1.0,) * (count - 1)
        self._max_exit = count - 1

    @property
    def max_exit(self) -> int:
        return self._max_exit

    @max_exit.setter
    def max_exit(self, value: int) -> None:
        if not 0 <= value < self.count:
            raise ValueError(f'max_exit={value} must lie in 0..{self.count - 1}')
        self._max_exit = value

    def plan(self, batch: int, device: torch.device) -> Tensor | None:
        """As in :class:`OneOf`, with nobody behind ``max_exit``."""
        planned = super().plan(batch, device)
        return None if planned is None else planned.clamp(max=self.max_exit)

    def leaves(self, number: int, logits: Tensor) -> Tensor:
        """(n,) bool: who leaves at exit ``number``, by logits (n, C)."""
        if number >= self.max_exit:
            return torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return confidence(logits) > self.thresholds[number]

    def tried_learned(self, scores: list[Tensor]) -> list[Knob]:
        confidences = torch.cat(scores)
        return [fit_thresholds(confidences, shares) for shares in self.spread()]


def fit_thresholds(confidences: Tensor, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Thresholds with which samples leave in given shares.

    Args:
        confidences: (N, K), of each of N samples at each of K exits.
        shares: Of the N samples, one an exit, summing to 1.

    Returns:
        K - 1 thresholds: 0 where all that are left leave, 1 where nobody does.
    """
    remaining = torch.arange(len(confidences))
    thresholds = []
    for number, share in enumerate(shares[:-1]):
        ordered = confidences[remaining, number].sort(descending=True).values
        wanted = min(round(share * len(confidences)), len(ordered))
        # rounding must not keep the last ones of an exit at which everybody is to leave
        if wanted == len(ordered) or sum(shares[: number + 1]) > 1 - 1e-9:
            threshold = 0.0
        elif wanted == 0:
            threshold = 1.0
        else:
            threshold = float(ordered[wanted - 1] + ordered[wanted]) / 2
        thresholds.append(threshold)
        remaining = remaining[confidences[remaining, number] <= threshold]
    return tuple(thresholds)


class Held(NamedTuple):
    """A map and the samples of the batch (ascending) that its rows belong to."""

    value: Tensor
    rows: Tensor


class Survivors:
    """The samples of a batch that are still computed.

    Maps that a network keeps for later are held with the samples they belong to, and shrink when they are taken: each is
    gathered at most once, however many exits lie between.

    Attributes:
        rows: (n,) who is left, ascending.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.rows = torch.arange(batch, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def hold(self, value: Tensor) -> Held:
        """Keep a map (n, ...) of those who are left now."""
        return Held(value, self.rows)

    def take(self, held: Held) -> Tensor:
        """Its rows of those who are left now."""
        if len(held.rows) == len(self.rows):
            return held.value
        return take_rows(held.value, torch.searchsorted(held.rows, self.rows))

    def leave(self, gone: Tensor) -> Tensor:
        """Take ``gone`` (n,) bool out of the computation; returns their places in the batch."""
        rows = self.rows[gone]
        self.rows = self.rows[~gone]
        return rows


class ExitPoint(NamedTuple):
    """A classifier and the map (n, C, H, W) that it reads, of those who are left."""

    classifier: nn.Module
    features: Tensor


class _Costs(NamedTuple):
    """Multiply-adds for one sample: up to each exit without any classifier, and of each classifier."""

    trunk: list[float]
    heads: list[float]


class EarlyExit(DynamicModule):
    """A network with several exits: (B, C, H, W) -> logits (B, num_classes), each sample's from where it left.

    ``'dense'`` is the network up to its last classifier, without the others; ``'masked'`` computes all exits and selects;
    ``'sparse'`` goes on with those who have not left. The classifiers on the way are the policy: its cost is theirs.

    Args:
        exits: Their number.
    """

    def __init__(self, exits: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy = ConfidenceExit(exits)
        self._known_costs: dict[tuple[int, ...], _Costs] = {}

    def settings(self) -> tuple:
        return (self.policy.max_exit,)

    def walk(self, x: Tensor, alive: Survivors) -> Iterator[ExitPoint]:
        """From exit to exit, as lazily as it can; between two of them samples may leave ``alive``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        self.check_execution()
        if self.execution == 'dense':
            *_, last = self.walk(x, Survivors(len(x), x.device))
            return last.classifier(last.features)
        if self.execution == 'masked':
            return self._masked(x)
        return self._sparse(x)

    def anytime(self, x: Tensor) -> Iterator[Tensor]:
        """Logits (B, num_classes) of one exit after the other: stop when the time is up and keep the last."""
        for classifier, features in self.walk(x, Survivors(len(x), x.device)):
            yield classifier(features)

    def _masked(self, x: Tensor) -> Tensor:
        logits = list(self.anytime(x))
        choice = self.policy.plan(len(x), x.device)
        by_plan = choice is not None
        if choice is None:
            leaves = torch.stack([self.policy.leaves(number, part) for number, part in enumerate(logits)], 1)
            choice = leaves.int().argmax(1)
        self._report(x, choice, by_plan, logits)
        return torch.stack(logits, 1)[torch.arange(len(x), device=x.device), choice]

    def _sparse(self, x: Tensor) -> Tensor:
        alive = Survivors(len(x), x.device)
        plan = self.policy.plan(len(x), x.device)
        choice = torch.zeros(len(x), dtype=torch.long, device=x.device)
        out = x.new_empty(0)
        for number, (classifier, features) in enumerate(self.walk(x, alive)):
            if plan is None:
                logits = classifier(features)
                gone = self.policy.leaves(number, logits)
                logits = logits if bool(gone.all()) else logits[gone]
            else:
                gone = plan[alive.rows] == number
                if len(alive) and not bool(gone.any()):
                    continue
                logits = classifier(features if bool(gone.all()) else take_rows(features, gone.nonzero().flatten()))
            rows = alive.leave(gone)
            out = out if out.numel() else logits.new_empty(len(x), logits.shape[1])
            out[rows] = logits
            choice[rows] = number
            if not len(alive):
                break
        self._report(x, choice, plan is not None)
        return out

    def _report(self, x: Tensor, choice: Tensor, by_plan: bool, logits: list[Tensor] | None = None) -> None:
        if not recording():
            return
        trunk, heads = self._costs(tuple(x.shape[1:]))
        on_the_way = sum(heads[:-1])
        # a plan asks no classifier but the one at which a sample leaves
        spent = [trunk[k] + (heads[k] if by_plan else sum(heads[: k + 1])) for k in range(len(trunk))]
        dense = trunk[-1] + heads[-1]
        macs = torch.tensor(spent, device=x.device)[choice]
        emit(
            self,
            dense_macs=dense,
            macs=macs,
            policy_macs=on_the_way,
            density=macs / dense,
            scores=None if logits is None else torch.stack([confidence(part) for part in logits], 1).detach(),
            choice=choice,
            labels=tuple(f'exit {k}' for k in range(len(trunk))),
            least_macs=spent[0],
            masked_macs=dense + on_the_way,
        )

    def _costs(self, size: tuple[int, ...]) -> _Costs:
        """Counted once for each input size (C, H, W) on the meta device."""
        if size not in self._known_costs:
            trunk, heads = [], []
            # outside of a counter that may watch the forward pass at hand
            with _disable_current_modes(), torch.no_grad():
                twin = deepcopy(self).to('meta').eval()
                x = torch.empty(1, *size, device='meta')
                with FlopCounterMode(display=False) as counter:
                    for classifier, features in twin.walk(x, Survivors(1, x.device)):
                        before = counter.get_total_flops() / 2
                        classifier(features)
                        heads.append(counter.get_total_flops() / 2 - before)
                        trunk.append(before - sum(heads[:-1]))
            self._known_costs[size] = _Costs(trunk, heads)
        return self._known_costs[size]
