"""From scores to decisions: learned, and the controls that a learned policy has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.sampling import gumbel_sigmoid

KINDS = ('learned', 'random', 'all', 'none')


class Decide(nn.Module):
    """Scores (B, ...) -> decisions (B, ...) in {0, 1}.

    In training a learned decision is a straight-through Gumbel sample; in evaluation it is ``score > threshold``, and the
    threshold is the knob that meets a budget. The other kinds ignore the scores' values.

    Attributes:
        kind: ``'learned'``; ``'random'`` (the same number of decisions a sample, blindly placed); ``'all'``; ``'none'``.
        temperature: Of the Gumbel samples.
        threshold: Of learned decisions in evaluation.
        density: Share of random decisions that are on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind = 'learned'
        self.temperature = 1.0
        self.threshold = 0.0
        self.density = 1.0

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


def random_decisions(scores: Tensor, density: float) -> Tensor:
    """Switch on ``density`` of each sample's n decisions, without looking at the scores.

    n * density is rounded up or down at random so that its mean is exact; with one decision a sample it is a coin.

    Args:
        scores: (B, ...); only shape, type and device count.
        density: In [0, 1].
    """
    flat = torch.rand(scores.flatten(1).shape, device=scores.device)
    count = torch.floor(density * flat.shape[1] + torch.rand(len(flat), 1, device=scores.device))
    rank = flat.argsort(1).argsort(1)
    return (rank < count).to(scores.dtype).view_as(scores)
