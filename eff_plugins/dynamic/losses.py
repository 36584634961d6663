"""What a training pays for computing: the budget losses of the papers as one small family.

Each takes a :class:`Situation` and gives a scalar; a method's loss is a weighted sum of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Situation:
    """What budget losses read.

    Attributes:
        share: Executed share of the whole network's multiply-adds, a differentiable scalar.
        floor: Share that nothing can avoid (static layers and policies).
        densities: Mean density of each dynamic module, differentiable scalars.
        target: The budget, a share in (0, 1].
        slack: 0 binds every module to the target, 1 leaves it free (annealed in training).
        ponders: Mean ponder cost of each module that halts, differentiable scalars.
    """

    share: Tensor
    floor: float
    densities: list[Tensor]
    target: float
    slack: float = 1.0
    ponders: Sequence[Tensor] = ()


def gap(s: Situation) -> Tensor:
    """Squared distance from the target: DynConv (Verelst & Tuytelaars, CVPR 2020), LASNet (Han et al., NeurIPS 2022)."""
    return (s.share - s.target) ** 2


def bounds(s: Situation) -> Tensor:
    """Keeps each module's density near the target at first, free at last: the upper and lower bounds of DynConv and LASNet.

    A module may be at most 1 - p (1 - target) and must be at least p * target, with p = 1 - slack.
    """
    p = 1 - s.slack
    density = torch.stack(s.densities)
    above = (density - (1 - p * (1 - s.target))).clamp(min=0)
    below = (p * s.target - density).clamp(min=0)
    return (above**2 + below**2).mean()


def hinge(s: Situation) -> Tensor:
    """Expected cost above the target, over the range that can be reached: DRNet (Zhu et al., NeurIPS 2021)."""
    return ((s.share - s.target) / (1 - s.floor)).clamp(min=0)


def ratios(s: Situation) -> Tensor:
    """Sum of the modules' densities: SFSI (Xie et al., ECCV 2020). It has no target; its weight is the knob."""
    return torch.stack(s.densities).sum()


def ponder(s: Situation) -> Tensor:
    """Sum of the stages' mean ponder costs: SACT (Figurnov et al., CVPR 2017, section 3). Its weight is the knob.

    Raises:
        ValueError: No module of the model halts.
    """
    if not s.ponders:
        raise ValueError("budget loss 'ponder' is for networks that halt, such as eff_plugins.SACT; use 'gap' here")
    return torch.stack(list(s.ponders)).sum()


LOSSES: dict[str, Callable[[Situation], Tensor]] = {
    'gap': gap,
    'bounds': bounds,
    'hinge': hinge,
    'ratios': ratios,
    'ponder': ponder,
}


def budget_loss(terms: dict[str, float], situation: Situation) -> dict[str, Tensor]:
    """The weighted terms, named ``loss_budget_<term>`` as mmengine's runner sums and logs them.

    Args:
        terms: Loss -> weight, such as ``dict(gap=10.0, bounds=10.0)``.
        situation: What the forward pass recorded.

    Raises:
        ValueError: An unknown loss, or one that has no gradient because the network halts by a threshold.
    """
    unknown = sorted(set(terms) - set(LOSSES))
    if unknown:
        raise ValueError(f'unknown budget loss {", ".join(unknown)}; known: {", ".join(LOSSES)}')
    useless = sorted(set(terms) - {'ponder'})
    if useless and situation.ponders and not situation.share.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f'budget loss {", ".join(useless)} has no gradient in a network that halts by a threshold; '
            'use losses=dict(ponder=...)'
        )
    return {f'loss_budget_{name}': weight * LOSSES[name](situation) for name, weight in terms.items()}
