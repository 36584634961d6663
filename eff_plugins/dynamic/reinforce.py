"""Decisions without a gradient of their own, trained by reward: REINFORCE (Williams, Machine Learning 1992).

Where a decision changes what is computed (a resolution, a crop, a frame) there is no value to multiply it into; its
log-probability, weighted by how well it turned out, has the gradient instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eff_plugins.dynamic.policies import Decide


class Sampled(Decide):
    """Like :class:`Decide`, but in training a learned decision is a Bernoulli sample without gradient."""

    def forward(self, scores: Tensor) -> Tensor:
        if self.kind == 'learned' and self.training:
            return torch.bernoulli(scores.detach().sigmoid())
        return super().forward(scores)


def log_probability(scores: Tensor, decisions: Tensor) -> Tensor:
    """log P(decision) where P(1) = sigmoid(score); the shape of ``scores``, differentiable."""
    return F.logsigmoid(torch.where(decisions > 0.5, scores, -scores))


def expected(scores: Tensor, decisions: Tensor) -> Tensor:
    """The value of ``decisions`` with the gradient of their expectation sigmoid(scores): for what a decision costs."""
    soft = scores.sigmoid()
    return decisions.detach() + (soft - soft.detach())


def reinforce(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Policy gradient as a loss: the mean of -log P(decision) * advantage, a scalar.

    Args:
        log_prob: Of the decisions that were taken, any shape.
        advantage: The same shape: reward of each decision, less a baseline. No gradient passes through it.
    """
    return -(log_prob * advantage.detach()).mean()


def resolution_advantage(decisions: Tensor, difficulty: Tensor, spare: float, weight: float) -> Tensor:
    """SegBlocks' reward of each block's decision (Verelst & Tuytelaars, TPAMI 2022, section 3.3).

    Full resolution is rewarded where the task is harder than on average, and while there is budget to spare; half the
    resolution is rewarded by the opposite.

    Args:
        decisions: (B, 1, gh, gw) in {0, 1}: 1 is full resolution.
        difficulty: (B, 1, gh, gw): task loss of each block.
        spare: Budget less what was spent.
        weight: Of the budget's part.
    """
    gain = difficulty - difficulty.mean() + weight * spare
    return torch.where(decisions > 0.5, gain, -gain)
