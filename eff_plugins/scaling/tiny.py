"""TinyNet's rule: Gaussian-process regression says which resolution and depth good small networks have, the width follows.

Han et al., "Model Rubik's Cube: Twisting Resolution, Depth and Width for TinyNets", NeurIPS 2020, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from eff_plugins.compat import require
from eff_plugins.scaling.rules import Factors, Rounding, Rule

# How far beyond its samples the regression is asked: a Gaussian process falls back to its mean outside them.
_REACH = 1.25


@dataclass(frozen=True)
class Sample:
    """A trained network of the family.

    Attributes:
        ratio: Its multiply-adds over the base's.
        resolution: Its input side over the base's.
        depth: Its depth factor.
        accuracy: Of the trained network, on any scale; None where it is known to lie on the Pareto front.
    """

    ratio: float
    resolution: float
    depth: float
    accuracy: float | None = None


# The networks that the paper publishes from its rule: TinyNet-E...A (Table 3 and the authors' repository), multiply-adds over
# EfficientNet-B0's 387 M. The random samples behind the paper's own regression are not published.
PUBLISHED_SAMPLES = tuple(
    Sample(macs / 387, size / 224, depth)
    for macs, size, depth in ((24, 106, 0.6), (52, 152, 0.695), (100, 184, 0.85), (202, 188, 1.1), (339, 192, 1.2))
)


def pareto_front(samples: Sequence[Sample], share: float = 0.2) -> tuple[Sample, ...]:
    """The samples that no other beats in accuracy at no more multiply-adds, front after front.

    Args:
        samples: With accuracies.
        share: Fronts are taken until this share of the samples is reached (the paper keeps 20 %); 0 means the first front.

    Raises:
        ValueError: A sample has no accuracy.
    """
    if any(sample.accuracy is None for sample in samples):
        raise ValueError('a sample has accuracy=None: the Pareto front needs the accuracy of every sample')
    rest = list(samples)
    chosen: list[Sample] = []
    while rest and (not chosen or len(chosen) < share * len(samples)):
        front = [sample for sample in rest if not any(_dominates(other, sample) for other in rest)]
        chosen += front
        rest = [sample for sample in rest if sample not in front]
    return tuple(sorted(chosen, key=lambda sample: sample.ratio))


def _dominates(one: Sample, other: Sample) -> bool:
    """At least as good in both, better in one."""
    gain = (one.accuracy or 0) - (other.accuracy or 0)
    return one.ratio <= other.ratio and gain >= 0 and (one.ratio < other.ratio or gain > 0)


class TinyRule(Rule):
    """resolution r(c) and depth d(c) by regression over the ratio c of multiply-adds, width = sqrt(c / (r^2 d)).

    The paper's width ignores that the stem and the 1x1 convolution before pooling keep their channels: built networks of
    the nominal width have more multiply-adds than asked for. So r and d are taken at the wanted ratio and the width is
    moved until the built network has it.

    Args:
        samples: Networks on the Pareto front (:func:`pareto_front` picks them from many); the published TinyNets where None.

    Raises:
        ValueError: Fewer than 3 samples, or one that is no positive ratio.
        MissingExtraError: scikit-learn is not installed.
    """

    name: ClassVar[str] = 'tiny'
    rounding: ClassVar[Rounding] = Rounding(round_limit=0.9, size_multiple=2, stem=False, narrow_head=False)

    def __init__(self, samples: Sequence[Sample] | None = None) -> None:
        self.samples = tuple(PUBLISHED_SAMPLES if samples is None else samples)
        if len(self.samples) < 3:
            raise ValueError(f"{len(self.samples)} samples: the tiny rule's regression needs at least 3")
        if any(min(s.ratio, s.resolution, s.depth) <= 0 for s in self.samples):
            raise ValueError('samples of the tiny rule need positive ratio, resolution and depth')
        self._resolution, self._depth = (
            self._regression([getattr(sample, field) for sample in self.samples]) for field in ('resolution', 'depth')
        )

    def _regression(self, values: list[float]) -> Any:
        gaussian = require('sklearn.gaussian_process', 'TinyRule')
        kernels = require('sklearn.gaussian_process.kernels', 'TinyRule')
        # Logarithms, because ratios span a decade and more. Samples are trained networks, so a noise term; its bounds and the
        # length's keep five samples from being explained as noise alone or as points without relation.
        kernel = kernels.RBF(1.0, (0.3, 10.0)) + kernels.WhiteKernel(1e-3, (1e-5, 1e-1))
        process = gaussian.GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
        return process.fit(np.log([[sample.ratio] for sample in self.samples]), values)

    def shape(self, ratio: float) -> tuple[float, float]:
        """Resolution and depth factors at a ratio.

        Raises:
            ValueError: The ratio lies outside the samples.
        """
        ratios = [sample.ratio for sample in self.samples]
        low, high = min(ratios) / _REACH, max(ratios) * _REACH
        if not low <= ratio <= high:
            raise ValueError(
                f"{ratio:.3g} times the base's multiply-adds: the tiny rule's samples cover {low:.3g} to {high:.3g} times"
            )
        at = np.log([[ratio]])
        return float(self._resolution.predict(at)[0]), float(self._depth.predict(at)[0])

    def path(self, ratio: float) -> Callable[[float], Factors]:
        resolution, depth = self.shape(ratio)
        return lambda nominal: Factors(depth, math.sqrt(nominal / (resolution**2 * depth)), resolution)

    def describe(self) -> dict[str, object]:
        return dict(rule=self.name, samples=len(self.samples))
