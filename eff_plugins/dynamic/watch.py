"""Follow a dynamic model's forward passes in evaluation: what was decided, and what share of the dense network was spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import executing
from eff_plugins.dynamic.recorder import Stats, record
from eff_plugins.profiling.macs import count_macs


@dataclass(frozen=True)
class Pass:
    """One forward pass.

    Attributes:
        stats: What the dynamic modules decided.
        size: (H, W) of the batch as the network saw it, padding included; None where its input is no picture.
        network_macs: Multiply-adds of the dense network for one sample of this size.
        batch: Samples that the network was given, fewer than ``stats.samples`` where each was cut into several; None where
            its input is no tensor.
    """

    stats: Stats
    size: tuple[int, int] | None
    network_macs: float
    batch: int | None


class Watch:
    """Watches every call of ``model`` until :meth:`remove`.

    The dense network's multiply-adds are counted by one pass more at each new input size.

    Args:
        model: In evaluation, in masked or sparse execution.
        heed: Called with each :class:`Pass`.

    Attributes:
        last: The latest pass in which a dynamic module was called.
    """

    def __init__(self, model: nn.Module, heed: Callable[[Pass], None] | None = None) -> None:
        self.last: Pass | None = None
        self._heed = heed
        self._known: dict[tuple[int, ...], float] = {}
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = args[0] if args else kwargs.get('inputs')
        self._key = tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None
        self._batch = len(inputs) if isinstance(inputs, Tensor) else None
        self._counted: int | None = None
        if self._key is None or self._key not in self._known:
            # before the pass itself, whose predictions then stand where both write into the data samples
            with executing(model, 'dense'):
                self._counted = count_macs(model, lambda: model.forward(*args, **kwargs)).get('', 0)
        self._recording = record(model)
        self._stats = self._recording.__enter__()

    def _end(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._recording.__exit__(None, None, None)
        stats = self._stats
        if not stats.entries or output is None:  # None: the pass failed
            return
        macs = self._known[self._key] if self._counted is None else self._counted / stats.samples  # type: ignore[index]
        if self._key is not None:
            self._known[self._key] = macs
        size = (self._key[1], self._key[2]) if self._key is not None and len(self._key) == 3 else None
        self.last = Pass(stats, size, macs, self._batch)
        if self._heed is not None:
            self._heed(self.last)


class Spent:
    """Sums up what passes spent: pass its :meth:`add` to a :class:`Watch`.

    Args:
        choices: Of how many a sample takes one, such as exits or resolutions; 0 where it takes none.

    Attributes:
        sums: Samples, executed and dense multiply-adds, the sum over the samples of the modules' mean density, and how many
            samples took each of the choices.
    """

    def __init__(self, choices: int = 0) -> None:
        self.sums = torch.zeros(4 + choices, dtype=torch.float64)

    def add(self, done: Pass) -> None:
        """Count one pass in."""
        count, stats = done.stats.samples, done.stats
        density = float(torch.stack([value.float() for value in stats.densities().values()]).mean())
        executed = (done.network_macs - float(stats.saved_macs())) * count
        self.sums[:4] += torch.tensor(
            [count, executed, done.network_macs * count, density * count], dtype=torch.float64
        )
        for taken in stats.choices().values():
            self.sums[4:] += taken.bincount(minlength=len(self.sums) - 4).cpu()

    @property
    def share(self) -> float:
        """Executed share of the dense network's multiply-adds."""
        return float(self.sums[1] / self.sums[2])

    @property
    def density(self) -> float:
        """Mean share of the decisions that were on."""
        return float(self.sums[3] / self.sums[0])

    @property
    def choices(self) -> list[float]:
        """Share of the samples that took each exit, resolution or the like; empty where a network has none."""
        return (self.sums[4:] / self.sums[0]).tolist()

    def scalars(self) -> dict[str, float]:
        """``executed_share``, ``density`` and ``choice_<k>``, the share of the samples that took the k-th of several."""
        taken = {f'choice_{k}': part for k, part in enumerate(self.choices)}
        return dict(executed_share=self.share, density=self.density, **taken)
