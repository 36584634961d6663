"""From scores to decisions: learned, and the controls that a learned policy has to beat."""

from __future__ import annotations

from math import inf
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from eff_plugins.dynamic.sampling import gumbel_sigmoid
from eff_plugins.ops.scores import Scores

Knob = float | tuple[float, ...]
Given = TypeVar('Given', Tensor, Scores)


class Policy(nn.Module):
    """From scores to decisions, with a knob that says how much they may spend; what calibration and budgets work on.

    Attributes:
        KINDS: What may decide: the scores, or a control.
        kind: One of them.
        temperature: Of the Gumbel samples of learned decisions in training.
    """

    KINDS: tuple[str, ...] = ('learned', 'random', 'all', 'none')

    def __init__(self) -> None:
        super().__init__()
        self.kind = 'learned'
        self.temperature = 1.0

    @property
    def knob(self) -> Knob:
        """What turns the spending of the present kind.

        Raises:
            ValueError: The kind has none, such as ``'all'``.
        """
        raise NotImplementedError

    @knob.setter
    def knob(self, value: Knob) -> None:
        raise NotImplementedError

    def tried(self, scores: list[Tensor]) -> list[Knob]:
        """Knobs from the most to the least that the present kind can spend, for a calibration.

        Args:
            scores: What policies of this kind emitted as ``scores`` on the data, one tensor a call.
        """
        raise NotImplementedError

    def _knob_name(self, names: dict[str, str]) -> str:
        """The attribute that is the knob of the present kind; raises where it has none."""
        if self.kind not in names:
            raise ValueError(f'policy {self.kind!r} has no knob; calibrate {" or ".join(map(repr, names))}')
        return names[self.kind]


class Decide(Policy):
    """Scores (B, ...) -> decisions (B, ...) in {0, 1}.

    In training a learned decision is a straight-through Gumbel sample; in evaluation it is ``score > threshold``, and the
    threshold is the knob that meets a budget. The other kinds ignore the scores' values.

    Attributes:
        kind: ``'learned'``; ``'random'`` (the same number of decisions a sample, blindly placed); ``'all'``; ``'none'``.
        threshold: Of learned decisions in evaluation, their knob.
        density: Share of random decisions that are on, their knob.
    """

    # Shares of the scores that the tried thresholds lie above
    QUANTILES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.threshold = 0.0
        self.density = 1.0

    @property
    def knob(self) -> Knob:
        return getattr(self, self._knob_name({'learned': 'threshold', 'random': 'density'}))

    @knob.setter
    def knob(self, value: Knob) -> None:
        setattr(self, self._knob_name({'learned': 'threshold', 'random': 'density'}), value)

    def tried(self, scores: list[Tensor]) -> list[Knob]:
        if self.kind == 'random':
            return [1 - q for q in self.QUANTILES]
        return quantile_knobs(torch.cat([s.flatten() for s in scores]) if scores else torch.zeros(1), self.QUANTILES)

    def cut(self, scores: Given) -> tuple[Tensor | Given, float]:
        """Values like ``scores``, and a threshold: in evaluation those above it are on. For kernels that compare.

        A subclass that decides otherwise gives its decisions and 0.
        """
        if self.kind in ('all', 'none'):
            return scores, -inf if self.kind == 'all' else inf
        if self.kind == 'learned' and type(self).forward is Decide.forward:
            return scores, self.threshold
        return self(scores if isinstance(scores, Tensor) else scores.tensor()), 0.0

    def forward(self, scores: Tensor) -> Tensor:
        if self.kind == 'learned':
            return (
                gumbel_sigmoid(scores, self.temperature)
                if self.training
                else (scores > self.threshold).to(scores.dtype)
            )
        if self.kind == 'random':
            return random_decisions(scores, self.density)
        return torch.full_like(scores, float(self.kind == 'all'))

    def extra_repr(self) -> str:
        return f'kind={self.kind}, threshold={self.threshold:g}'


def quantile_knobs(values: Tensor, quantiles: tuple[float, ...]) -> list[Knob]:
    """Ascending thresholds at quantiles of ``values`` (N,); the first lies below all of them, the last above."""
    values = values.float()
    inner = np.quantile(values.numpy(), quantiles[1:-1])
    margin = float(values.max() - values.min()) * 1e-3 + 1e-6
    return [float(values.min()) - margin, *map(float, inner), float(values.max()) + margin]


class HardDecide(Decide):
    """As :class:`Decide`, but learned decisions are ``score > threshold`` in training, too.

    For scores that are weights, not negative, and get their gradient elsewhere. A weight of 0 is never worth computing:
    thresholds below 0 count as 0.

    Args:
        threshold: In training, and in evaluation until a budget moves it.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = self.trained = threshold

    def forward(self, scores: Tensor) -> Tensor:
        if self.kind == 'learned':
            threshold = self.trained if self.training else self.threshold
            return (scores > max(threshold, 0.0)).to(scores.dtype)
        return super().forward(scores)

    def cut(self, scores: Given) -> tuple[Tensor | Given, float]:
        return (scores, max(self.threshold, 0.0)) if self.kind == 'learned' else super().cut(scores)


def random_decisions(scores: Tensor, density: float) -> Tensor:
    """Switch on ``density`` of each sample's n decisions, without looking at the scores.

    n * density is rounded up or down at random so that its mean is exact; with one decision a sample it is a coin.

    Args:
        scores: (B, ...); only shape, type and device count.
        density: In [0, 1].
    """
    flat = torch.rand(scores.flatten(1).shape, device=scores.device)
    count = torch.floor(density * flat.shape[1] + torch.rand(len(flat), 1, device=scores.device))
    first = torch.arange(flat.shape[1], device=scores.device) < count
    return (
        torch.zeros_like(flat, dtype=scores.dtype).scatter_(1, flat.argsort(1), first.to(scores.dtype)).view_as(scores)
    )
