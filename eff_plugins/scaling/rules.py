"""Scaling rules: how much deeper, wider and finer a network becomes as its multiply-adds change by a ratio.

Compound: Tan & Le, "EfficientNet", ICML 2019, equation 3. Fast: Dollar, Singh, Girshick, "Fast and Accurate Model Scaling",
CVPR 2021, Table 4. Tiny: Han et al., "Model Rubik's Cube", NeurIPS 2020 (in ``tiny.py``). Rounding is each paper's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Factors:
    """Multiples of the base's numbers.

    Attributes:
        depth: Of the repeats.
        width: Of the channels.
        resolution: Of the input side.
        groups: Of the group widths of grouped (not depthwise) convolutions; None means as ``width``.
    """

    depth: float
    width: float
    resolution: float
    groups: float | None = None

    @property
    def macs(self) -> float:
        """Nominal multiple of the multiply-adds: depth * width^2 * resolution^2."""
        return self.depth * self.width**2 * self.resolution**2


@dataclass(frozen=True)
class Rounding:
    """How a rule turns scaled quantities into whole ones.

    Attributes:
        repeats: Scaled repeats -> a whole number (at least 1 is kept).
        round_limit: Channels become multiples of 8, not below this share (see ``stages.round_channels``).
        size_multiple: The input side becomes the nearest multiple of it.
        stem: The stem's channels are scaled, too.
        narrow_head: The 1x1 convolution before pooling may become narrower than the base's.
    """

    repeats: Callable[[float], int] = round
    round_limit: float = 0.0
    size_multiple: int = 4
    stem: bool = True
    narrow_head: bool = True


class Rule:
    """A scaling rule: a curve of :class:`Factors` for every wanted ratio of multiply-adds."""

    name: ClassVar[str]
    rounding: ClassVar[Rounding]

    def path(self, ratio: float) -> Callable[[float], Factors]:
        """The curve along which the network with ``ratio`` times the base's multiply-adds is looked for.

        Args:
            ratio: Wanted multiply-adds over the base's.

        Returns:
            Nominal ratio -> factors. Rounding, and what the rule leaves unscaled, make the nominal ratio differ from the
            built network's; a search moves it until the built network has the wanted one.
        """
        raise NotImplementedError

    def factors(self, ratio: float) -> Factors:
        """The rule as the paper states it, before any rounding."""
        return self.path(ratio)(ratio)

    def describe(self) -> dict[str, object]:
        """Name and parameters as plain data."""
        raise NotImplementedError


@dataclass(frozen=True)
class CompoundRule(Rule):
    """depth = alpha^phi, width = beta^phi, resolution = gamma^phi.

    Attributes:
        alpha: Depth's base; the three were found by a grid search at phi = 1.
        beta: Width's.
        gamma: Resolution's; alpha * beta^2 * gamma^2 is about 2, here 1.92, and a ratio is that to the power phi.
    """

    alpha: float = 1.2
    beta: float = 1.1
    gamma: float = 1.15
    name: ClassVar[str] = 'compound'
    rounding: ClassVar[Rounding] = Rounding(repeats=math.ceil, round_limit=0.9)

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta, self.gamma) < 1 or self.at_phi(1).macs <= 1:
            raise ValueError(
                f'alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}: the compound rule needs all >= 1 and one > 1'
            )

    def at_phi(self, phi: float) -> Factors:
        """The factors of a given compound coefficient; negative ones shrink."""
        return Factors(self.alpha**phi, self.beta**phi, self.gamma**phi)

    def phi(self, ratio: float) -> float:
        """The compound coefficient of a ratio of multiply-adds."""
        return math.log(ratio) / math.log(self.at_phi(1).macs)

    def path(self, ratio: float) -> Callable[[float], Factors]:
        return lambda nominal: self.at_phi(self.phi(nominal))

    def describe(self) -> dict[str, object]:
        return dict(rule=self.name, alpha=self.alpha, beta=self.beta, gamma=self.gamma)


@dataclass(frozen=True)
class FastRule(Rule):
    """depth = s^((1-a)/2), width = s^(a/2), resolution = s^((1-a)/4): mostly wider, so that activations grow little.

    Group widths of grouped convolutions are scaled together with the channels, as in the paper.

    Attributes:
        alpha: 1 scales the width alone, 1/3 all three alike, 0.8 is published as "dWr".
    """

    alpha: float = 0.8
    name: ClassVar[str] = 'fast'
    rounding: ClassVar[Rounding] = Rounding()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f'alpha={self.alpha} is outside [0, 1] (1 scales width alone, 0.8 is published)')

    def path(self, ratio: float) -> Callable[[float], Factors]:
        rest = 1 - self.alpha
        return lambda nominal: Factors(nominal ** (rest / 2), nominal ** (self.alpha / 2), nominal ** (rest / 4))

    def describe(self) -> dict[str, object]:
        return dict(rule=self.name, alpha=self.alpha)
