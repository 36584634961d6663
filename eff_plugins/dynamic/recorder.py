"""What dynamic networks decided and what it cost, collected beside the forward pass.

Modules call :func:`emit`; whoever wants to know opens :func:`record`. Nothing travels through return values or attributes of
tensors, so that hosts need not know that a network is dynamic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One call of one dynamic module.

    Attributes:
        name: Path of the module in the recorded model.
        dense_macs: Multiply-adds of its dense reference for one sample of this size.
        macs: (B,) multiply-adds that sparse execution spends on each sample, policy included; differentiable in training.
        policy_macs: The policy's part of ``macs`` for one sample.
        density: (B,) share of the decisions that are on; differentiable in training.
        mask: (B, 1, h, w) what was on, or None: a value for each position of the module's map (or one for all), or, with
            ``cell``, for each cell of the picture.
        cell: Side of the mask's cells in pixels of the picture, from its upper left corner; the last ones may stand out.
        scores: The policy's scores, detached, or None.
        choice: (B,) which of several a sample took (an exit, a resolution), or None.
        labels: What to call each of them in a picture's legend; without ``choice`` all that the one sample took (zooms).
        least_macs: What sparse execution spends at least on a sample, policy included; None: the policy's part alone.
        masked_macs: What masked execution spends on a sample, or (B,) on each; None: ``dense_macs`` and the policy's part.
        log_prob: Log-probabilities of the decisions, differentiable, where a policy is trained by reward; else None.
        ponder: (B,) mean ponder cost of the positions, differentiable, of a module that halts; or None.
    """

    name: str
    dense_macs: float
    macs: Tensor
    policy_macs: float
    density: Tensor
    mask: Tensor | None = None
    cell: int | None = None
    scores: Tensor | None = None
    choice: Tensor | None = None
    labels: tuple[str, ...] = ()
    least_macs: float | None = None
    masked_macs: float | Tensor | None = None
    log_prob: Tensor | None = None
    ponder: Tensor | None = None

    @property
    def floor_macs(self) -> float:
        """``least_macs``, where it is not given the policy's part."""
        return self.policy_macs if self.least_macs is None else self.least_macs


class Stats:
    """The entries of one recording, in the order of the calls."""

    def __init__(self, model: nn.Module) -> None:
        self.entries: list[Entry] = []
        self._names = {id(module): name for name, module in model.named_modules()}

    def add(self, module: nn.Module, **fields: object) -> None:
        """Called by :func:`emit`; modules of other models are none of this recording's business."""
        name = self._names.get(id(module))
        if name is not None:
            self.entries.append(Entry(name, **fields))  # type: ignore[arg-type]

    @property
    def samples(self) -> int:
        """Samples that went through the model: those of the module that was called first, over all its calls."""
        first = self.entries[0].name if self.entries else ''
        return sum(len(entry.macs) for entry in self.entries if entry.name == first)

    def saved_macs(self) -> Tensor:
        """Mean multiply-adds a sample that sparse execution leaves out, the policies' cost subtracted; a scalar.

        Raises:
            ValueError: Nothing was recorded.
        """
        if not self.entries:
            raise ValueError(
                'nothing was recorded: no dynamic module of the model was called within `with record(model)`'
            )
        return sum((entry.dense_macs - entry.macs).sum() for entry in self.entries) / self.samples  # type: ignore[return-value]

    def share(self, network_macs: float) -> Tensor:
        """Executed share of the whole network's dense multiply-adds (a scalar, differentiable in training).

        Args:
            network_macs: Of the dense network for one sample of this size.
        """
        return 1 - self.saved_macs() / network_macs

    def masked_beyond(self) -> float:
        """Multiply-adds of all samples that masked execution computes beyond the dense network's: policies, unless the
        method says otherwise.
        """
        total = 0.0
        for entry in self.entries:
            whole = entry.dense_macs + entry.policy_macs if entry.masked_macs is None else entry.masked_macs
            total += float((torch.as_tensor(whole).detach() - entry.dense_macs).expand(len(entry.macs)).sum())
        return total

    def ponders(self) -> list[Tensor]:
        """Mean ponder cost of each call of a module that halts."""
        return [entry.ponder.mean() for entry in self.entries if entry.ponder is not None]

    def densities(self) -> dict[str, Tensor]:
        """Module -> mean density over its samples."""
        found: dict[str, list[Tensor]] = {}
        for entry in self.entries:
            found.setdefault(entry.name, []).append(entry.density)
        return {name: torch.cat(values).mean() for name, values in found.items()}

    def choices(self) -> dict[str, Tensor]:
        """Module -> (N,) what each sample took, for the modules that choose one of several."""
        found: dict[str, list[Tensor]] = {}
        for entry in self.entries:
            if entry.choice is not None:
                found.setdefault(entry.name, []).append(entry.choice)
        return {name: torch.cat(values) for name, values in found.items()}


_active: ContextVar[tuple[Stats, ...]] = ContextVar('eff_plugins_active_recordings', default=())


@contextmanager
def record(model: nn.Module) -> Iterator[Stats]:
    """Collect what the dynamic modules inside ``model`` decide.

    Example:
        >>> with record(model) as stats:                        # doctest: +SKIP
        ...     model(x)
        >>> stats.densities()                                   # doctest: +SKIP
    """
    stats = Stats(model)
    token = _active.set((*_active.get(), stats))
    try:
        yield stats
    finally:
        _active.reset(token)


def recording() -> bool:
    """Whether anybody listens; a module may skip work that only statistics need."""
    return bool(_active.get())


def emit(module: nn.Module, **fields: object) -> None:
    """Report one call to every open recording; see :class:`Entry` for the fields."""
    for stats in _active.get():
        stats.add(module, **fields)
