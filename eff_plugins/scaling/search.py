"""Find the member of a rule's family that really has the wanted multiply-adds, or the wanted latency.

Channels, repeats and input sides are whole numbers, so a rule's nominal ratio and the built network's differ. Here the
nominal ratio is moved until the built network, counted or timed, comes closest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from eff_plugins.profiling.activations import count_activations
from eff_plugins.profiling.macs import count_macs, count_parameters
from eff_plugins.scaling.descriptions import Description, on_meta
from eff_plugins.scaling.rules import Factors, Rule

_SMALLEST, _LARGEST = 1e-9, 1e4  # nominal ratios; at the smallest everything is as small as rounding lets it be


@dataclass(frozen=True)
class Cost:
    """What one picture costs.

    Attributes:
        params: Parameters of the classifier with 1000 classes.
        macs: Multiply-adds.
        activations: Elements of all convolution outputs.
    """

    params: int
    macs: int
    activations: int


@lru_cache(maxsize=1024)
def cost(description: Description) -> Cost:
    """Count the built network, on the meta device."""
    model, picture = on_meta(description)
    macs = 0

    def run() -> None:
        nonlocal macs
        macs = count_macs(model, lambda: model(picture))['']

    activations = count_activations(model, run)
    return Cost(count_parameters(model), macs, activations)


@dataclass(frozen=True)
class Member:
    """A network that a rule made for a target.

    Attributes:
        description: The network.
        factors: Before rounding.
        target: Wanted multiply-adds, or milliseconds.
        reached: What the built network has.
        unit: ``'macs'`` or ``'ms'``.
        tolerance: Relative difference that was asked for.
    """

    description: Description
    factors: Factors
    target: float
    reached: float
    unit: str
    tolerance: float

    @property
    def error(self) -> float:
        """Relative difference to the target."""
        return self.reached / self.target - 1

    @property
    def met(self) -> bool:
        return abs(self.error) <= self.tolerance


def scale_to_macs(base: Description, rule: Rule, target: float, tolerance: float = 0.02) -> Member:
    """The network of the rule's family whose counted multiply-adds are nearest to a target.

    Args:
        base: What is scaled.
        rule: How.
        target: Multiply-adds of one picture at the new input size.
        tolerance: Relative difference that counts as met. Where no network on the rule's path meets it, the input side may
            go one rounding step beside the rule's. ``Member.met`` and ``Member.error`` say what was reached.

    Raises:
        ValueError: The target is not positive, or below the smallest or above the largest network of the family.
    """
    return _search(base, rule, target, target / cost(base).macs, lambda d: cost(d).macs, 'macs', tolerance, fine=True)


def scale_to_ms(
    base: Description, rule: Rule, target: float, measure: Callable[[Description], float], tolerance: float = 0.05
) -> Member:
    """The network of the rule's family whose measured latency is nearest to a target.

    Args:
        base: What is scaled.
        rule: How. The tiny rule takes its resolution and depth at the ratio of target and base latency.
        target: Milliseconds.
        measure: Description -> milliseconds, such as :func:`eff_plugins.scaling.latency.measured_ms`.
        tolerance: Relative difference at which the search stops.

    Raises:
        ValueError: See :func:`scale_to_macs`.
    """
    return _search(base, rule, target, target / measure(base), measure, 'ms', tolerance, fine=False)


def _search(
    base: Description,
    rule: Rule,
    target: float,
    ratio: float,
    measure: Callable[[Description], float],
    unit: str,
    tolerance: float,
    fine: bool,
) -> Member:
    """Bracket the target, bisect, and return the nearest network seen; ``fine`` goes on after the tolerance is met."""
    if not target > 0:
        raise ValueError(f'target {target:g} {unit} must be positive')
    path = rule.path(ratio)
    # Group widths move in large steps, at which the cost jumps: they follow the rule at the target and stay along the path.
    groups = rule.factors(ratio).width
    seen: dict[Description, Member] = {}

    def reached(nominal: float) -> float:
        factors = replace(path(nominal), groups=groups)
        description = base.scaled(factors, rule.rounding)
        if description not in seen:
            seen[description] = Member(description, factors, target, measure(description), unit, tolerance)
        return seen[description].reached

    def near_enough() -> bool:
        return not fine and any(member.met for member in seen.values())

    low, high = _bracket(reached, target, ratio, unit, tolerance, near_enough)
    while high / low > 1.002 and not near_enough():
        middle = math.sqrt(low * high)
        if reached(middle) < target:
            low = middle
        else:
            high = middle
    if fine:
        # Rounding to multiples makes the cost rise and fall along the path, so neighbours of the crossing are tried, too.
        for step in range(-4, 5):
            reached(low * 1.006**step)
        if not any(member.met for member in seen.values()):
            seen |= _resized(list(seen.values()), rule.rounding.size_multiple, measure)
    return min(seen.values(), key=lambda member: abs(math.log(member.reached / target)))


def _resized(
    members: list[Member], step: int, measure: Callable[[Description], float], reach: float = 0.15
) -> dict[Description, Member]:
    """The members near the target, their input side one rounding step smaller or larger."""
    found = {}
    for member in members:
        if abs(member.error) < reach:
            size = member.description.input_size + (step if member.error < 0 else -step)
            description = member.description.resized(size)
            found[description] = replace(member, description=description, reached=measure(description))
    return found


def _bracket(
    reached: Callable[[float], float],
    target: float,
    start: float,
    unit: str,
    tolerance: float,
    near_enough: Callable[[], bool],
) -> tuple[float, float]:
    """Nominal ratios on both sides of the target."""
    low = high = start
    step = 1.5
    while reached(low) > target and not near_enough():
        high, low, step = low, low / step, step**1.5
        if low < _SMALLEST:
            low, smallest = _SMALLEST, reached(_SMALLEST)
            if smallest > target * (1 + tolerance):
                raise ValueError(
                    f'target {_show(target, unit)}: the smallest network of this rule and base has {_show(smallest, unit)}'
                )
            break
    step = 1.5
    while reached(high) < target and not near_enough():
        low, high, step = high, high * step, step**1.5
        if high > _LARGEST:
            raise ValueError(
                f'target {_show(target, unit)}: networks of more than {_LARGEST:.0f} times the base are not searched'
            )
    return low, high


def _show(value: float, unit: str) -> str:
    return f'{value:.3g} ms' if unit == 'ms' else f'{value / 1e9:.4g} G multiply-adds'
