"""Hard decisions that gradients pass through, and the schedules that anneal them.

Straight-through Gumbel estimators: Jang et al., "Categorical Reparameterization with Gumbel-Softmax", ICLR 2017; Maddison et
al., "The Concrete Distribution", ICLR 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


def gumbel_sigmoid(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Bernoulli samples in {0, 1} with probability sigmoid(logits); the gradient is that of the relaxed sample.

    The difference of two Gumbel variables is logistic, so one noise variable a decision is enough.

    Args:
        logits: Any shape.
        temperature: Of the relaxation, positive; the lower, the closer its gradient is to that of the hard decision.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    _check_temperature(temperature)
    wide = logits.float() if logits.dtype in _HALF else logits  # noise of half precision has no tails
    uniform = torch.rand_like(wide).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((wide + uniform.log() - (-uniform).log1p()) / temperature)
    return straight_through((soft > 0.5).to(soft.dtype), soft).to(logits.dtype)


def gumbel_softmax(logits: Tensor, temperature: float = 1.0, dim: int = -1) -> Tensor:
    """One-hot samples along ``dim`` with probability softmax(logits); the gradient is that of the relaxed sample.

    Args:
        logits: Any shape.
        temperature: As in :func:`gumbel_sigmoid`.
        dim: The choices.

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    _check_temperature(temperature)
    wide = logits.float() if logits.dtype in _HALF else logits
    noise = -torch.empty_like(wide).exponential_().clamp(min=1e-10).log()
    soft = torch.softmax((wide + noise) / temperature, dim)
    hard = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return straight_through(hard, soft).to(logits.dtype)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of ``hard``, exactly, with the gradient of ``soft``."""
    return hard.detach() + (soft - soft.detach())


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f'temperature={temperature} must be positive')


_FORMS: dict[str, Callable[[float, float, float], float]] = {
    'constant': lambda start, end, t: start,
    'linear': lambda start, end, t: start + (end - start) * t,
    'exp': lambda start, end, t: start * (end / start) ** t,
    'cosine': lambda start, end, t: end + (start - end) * (1 + math.cos(math.pi * t)) / 2,
}


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` during a part of the training.

    Attributes:
        start: Value up to ``begin``.
        end: Value from ``finish`` on.
        form: ``'constant'``, ``'linear'``, ``'exp'`` or ``'cosine'``.
        begin: Share of the training at which it starts to change.
        finish: Share at which it has arrived.

    Raises:
        ValueError: An unknown form, or one whose numbers do not fit it.
    """

    start: float
    end: float
    form: str = 'exp'
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise ValueError(f'form={self.form!r} of a schedule must be one of {", ".join(_FORMS)}')
        if self.form == 'exp' and min(self.start, self.end) <= 0:
            raise ValueError(f'an exponential schedule from {self.start} to {self.end}: both must be positive')
        if not 0 <= self.begin < self.finish <= 1:
            raise ValueError(f'begin={self.begin} and finish={self.finish} must satisfy 0 <= begin < finish <= 1')

    def __call__(self, progress: float) -> float:
        """The value at ``progress``, the share of the training that is done."""
        t = min(max((progress - self.begin) / (self.finish - self.begin), 0.0), 1.0)
        return _FORMS[self.form](self.start, self.end, t)
