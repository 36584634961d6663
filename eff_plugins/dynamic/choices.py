"""One of several: an exit, a resolution or the like for each sample, learned or by a control that spends the same."""

from __future__ import annotations

import torch
from torch import Tensor

from eff_plugins.dynamic.policies import Knob, Policy, quantile_knobs
from eff_plugins.dynamic.sampling import gumbel_softmax

# q of the geometric distributions that are tried, from (nearly) all samples at one end to all at the other
_RATIOS = (20.0, 10.0, 6.0, 4.0, 3.0, 2.2, 1.7, 1.4, 1.2, 1.0, 0.85, 0.7, 0.6, 0.45, 0.33, 0.25, 0.17, 0.1, 0.05)


def geometric_shares(count: int, ratio: float) -> tuple[float, ...]:
    """Shares proportional to ratio^k for k = 0 ... count - 1, as MSDNet and RANet spread a batch over their exits.

    Source: Huang et al., "Multi-Scale Dense Networks for Resource Efficient Image Classification", ICLR 2018, section 5.
    """
    weights = [ratio**k for k in range(count)]
    return tuple(weight / sum(weights) for weight in weights)


class OneOf(Policy):
    """A policy that takes one of ``count`` alternatives for each sample.

    Args:
        count: Alternatives.
        dearest: The one of the dense network, 0 or ``count - 1``; the costs are in order.

    Attributes:
        kind: ``'learned'``; ``'random'`` with ``shares``; ``'all'``, the dearest; ``'none'``, the cheapest; ``'fixed'``,
            the one of ``index``.
        shares: Share of samples of each alternative under ``'random'``, its knob.
        index: The alternative of ``'fixed'``.

    Raises:
        ValueError: Fewer than two alternatives, or ``dearest`` in between.
    """

    KINDS = ('learned', 'random', 'all', 'none', 'fixed')
    LEARNED_KNOB = ''

    def __init__(self, count: int, dearest: int) -> None:
        super().__init__()
        if count < 2 or dearest not in (0, count - 1):
            raise ValueError(f'count={count} must be at least 2 and dearest={dearest} 0 or count - 1')
        self.count = count
        self.dearest = dearest
        self.shares = geometric_shares(count, 1.0)
        self._index = dearest

    @property
    def index(self) -> int:
        return self._index

    @index.setter
    def index(self, value: int) -> None:
        if not 0 <= value < self.count:
            raise ValueError(f'index={value} must lie in 0..{self.count - 1}')
        self._index = int(value)

    @property
    def knob(self) -> Knob:
        return getattr(self, self._knob_name({'learned': self.LEARNED_KNOB, 'random': 'shares'}))

    @knob.setter
    def knob(self, value: Knob) -> None:
        setattr(self, self._knob_name({'learned': self.LEARNED_KNOB, 'random': 'shares'}), value)

    def spread(self) -> list[tuple[float, ...]]:
        """Distributions over the alternatives, from all samples at the dearest to all at the cheapest."""

        def everyone(index: int) -> tuple[float, ...]:
            return tuple(float(k == index) for k in range(self.count))

        middle = [geometric_shares(self.count, ratio) for ratio in _RATIOS]
        if self.dearest == 0:
            middle.reverse()
        return [everyone(self.dearest), *middle, everyone(self.count - 1 - self.dearest)]

    def tried(self, scores: list[Tensor]) -> list[Knob]:
        if self.kind == 'random':
            return list(self.spread())
        return self.tried_learned(scores)

    def tried_learned(self, scores: list[Tensor]) -> list[Knob]:
        """:meth:`tried` for learned decisions."""
        raise NotImplementedError

    def plan(self, batch: int, device: torch.device) -> Tensor | None:
        """(batch,) what each sample takes where that needs no scores; None for learned decisions."""
        if self.kind == 'learned':
            return None
        if self.kind == 'random':
            return random_choices(batch, self.shares, device)
        index = {'all': self.dearest, 'none': self.count - 1 - self.dearest}.get(self.kind, self.index)
        return torch.full((batch,), index, device=device)

    def extra_repr(self) -> str:
        return f'kind={self.kind}, count={self.count}'


def random_choices(batch: int, shares: tuple[float, ...], device: torch.device) -> Tensor:
    """(batch,) blind choices that follow ``shares`` as closely as the batch's size allows.

    Each choice's number of samples is its expectation rounded up or down at random; who gets it is a permutation.
    """
    places = (torch.randperm(batch, device=device) + torch.rand((), device=device)) / max(batch, 1)
    bounds = torch.tensor(shares[:-1], device=device).cumsum(0)
    return torch.searchsorted(bounds, places, right=True)


def take_rows(x: Tensor, places: Tensor) -> Tensor:
    """Samples ``places`` (n,) of ``x`` (B, ...), in the memory order that ``x`` lies in.

    Indexing alone returns channels-last maps in the default order, in which convolutions prepared for the other are slow.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, places).permute(0, 3, 1, 2)
    return x.index_select(0, places)


class Choose(OneOf):
    """Logits (B, count), the dearest alternative first -> one-hot decisions (B, count).

    In training a learned decision is a straight-through Gumbel-softmax sample; in evaluation it is the argmax of
    ``logits[k] + lean * k``, and ``lean``, which favours the cheaper ones, is the knob that meets a budget.

    Attributes:
        lean: Of learned decisions in evaluation; 0 is the plain argmax.
    """

    LEARNED_KNOB = 'lean'
    QUANTILES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)

    def __init__(self, count: int) -> None:
        super().__init__(count, dearest=0)
        self.lean = 0.0

    def forward(self, logits: Tensor) -> Tensor:
        if logits.shape[1] != self.count:
            raise ValueError(f'logits {tuple(logits.shape)} must have {self.count} columns, one an alternative')
        choice = self.plan(len(logits), logits.device)
        if choice is None:
            if self.training:
                return gumbel_softmax(logits, self.temperature)
            choice = (logits + self.lean * torch.arange(self.count, device=logits.device)).argmax(1)
        return torch.zeros_like(logits).scatter_(1, choice[:, None], 1.0)

    def tried_learned(self, scores: list[Tensor]) -> list[Knob]:
        """Where samples change from one alternative to another, over all pairs."""
        logits = torch.cat(scores)
        pairs = [(a, b) for b in range(self.count) for a in range(b)]
        return quantile_knobs(torch.cat([(logits[:, a] - logits[:, b]) / (b - a) for a, b in pairs]), self.QUANTILES)
