"""Hold the rules against the families published with them: ``python -m eff_plugins.scaling.published docs/scaling.md``.

EfficientNet-B1...B7 (Tan & Le, ICML 2019; coefficients of the authors' repository), TinyNet-A...E (Han et al., NeurIPS 2020).
The tables between the two marks of the document are written anew.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from eff_plugins.models.image.efficient import ARCHS
from eff_plugins.models.image.stages import Network
from eff_plugins.scaling.descriptions import StageTable
from eff_plugins.scaling.rules import CompoundRule, Factors
from eff_plugins.scaling.search import cost, scale_to_macs
from eff_plugins.scaling.tiny import PUBLISHED_SAMPLES, TinyRule

BEGIN, END = '<!-- tables: begin -->', '<!-- tables: end -->'

# width, depth, input side
EFFICIENTNETS = {
    'efficientnet_b1': (1.0, 1.1, 240),
    'efficientnet_b2': (1.1, 1.2, 260),
    'efficientnet_b3': (1.2, 1.4, 300),
    'efficientnet_b4': (1.4, 1.8, 380),
    'efficientnet_b5': (1.6, 2.2, 456),
    'efficientnet_b6': (1.8, 2.6, 528),
    'efficientnet_b7': (2.0, 3.1, 600),
}
TINYNETS = {
    'tinynet_a': (1.0, 1.2, 192),
    'tinynet_b': (0.75, 1.1, 188),
    'tinynet_c': (0.54, 0.85, 184),
    'tinynet_d': (0.54, 0.695, 152),
    'tinynet_e': (0.51, 0.6, 106),
}
BASE = StageTable(ARCHS['efficientnet_b0'])


def agreement(one: Network, other: Network) -> tuple[int, int]:
    """In how many stages repeats and channels are equal."""
    pairs = list(zip(one.stages, other.stages, strict=True))
    return sum(a.repeats == b.repeats for a, b in pairs), sum(a.channels == b.channels for a, b in pairs)


def implied_phis(width: float, depth: float, size: int, rule: CompoundRule) -> tuple[float, float, float]:
    """The compound coefficient that each published number would have without rounding: of depth, width and input side."""
    ratios = ((depth, rule.alpha), (width, rule.beta), (size / BASE.input_size, rule.gamma))
    depth_phi, width_phi, size_phi = (math.log(ratio) / math.log(base) for ratio, base in ratios)
    return depth_phi, width_phi, size_phi


def compound_rows() -> list[tuple[str, ...]]:
    """EfficientNet-B1...B7 against the compound rule at the same nominal multiply-adds."""
    rule = CompoundRule()
    rows: list[tuple[str, ...]] = [
        (
            'network',
            'published depth, width, input',
            'phi of each',
            'phi of their product',
            'rule there: depth, width, input',
            'equal repeats, channels (of 7 stages)',
        )
    ]
    for name, (width, depth, size) in EFFICIENTNETS.items():
        phis = implied_phis(width, depth, size, rule)
        phi = rule.phi(Factors(depth, width, size / BASE.input_size).macs)
        factors = rule.at_phi(phi)
        made = BASE.scaled(factors, rule.rounding)
        repeats, channels = agreement(made.table, ARCHS[name])
        rows.append(
            (
                name,
                f'{depth:g}, {width:g}, {size}',
                ', '.join(f'{value:.2f}' for value in phis),
                f'{phi:.2f}',
                f'{factors.depth:.3f}, {factors.width:.3f}, {made.input_size}',
                f'{repeats}, {channels}',
            )
        )
    return rows


def left_out(index: int) -> tuple[float, float] | None:
    """Resolution and depth of the published network ``index`` after the other four; None where it lies beyond them."""
    others = [sample for i, sample in enumerate(PUBLISHED_SAMPLES) if i != index]
    try:
        return TinyRule(others).shape(PUBLISHED_SAMPLES[index].ratio)
    except ValueError:
        return None


def tiny_rows() -> list[tuple[str, ...]]:
    """TinyNet-A...E against the tiny rule: fitted on all five, on the other four, and with the width found by building."""
    rule = TinyRule()
    rows: list[tuple[str, ...]] = [
        (
            'network',
            'c',
            'published depth, width, input',
            'fit of all five: depth, input',
            'fit of the other four: depth, input',
            'sqrt(c / (r^2 d))',
            'width of the built network with the published multiply-adds',
            'equal repeats, channels',
        )
    ]
    order = sorted(range(len(PUBLISHED_SAMPLES)), key=lambda i: -PUBLISHED_SAMPLES[i].ratio)
    for index, (name, (width, depth, size)) in zip(order, TINYNETS.items(), strict=True):
        sample = PUBLISHED_SAMPLES[index]
        resolution, fitted_depth = rule.shape(sample.ratio)
        others = left_out(index)
        member = scale_to_macs(BASE, rule, cost(StageTable(ARCHS[name])).macs)
        made = member.description
        assert isinstance(made, StageTable)
        repeats, channels = agreement(made.table, ARCHS[name])
        nominal = math.sqrt(sample.ratio / (sample.resolution**2 * sample.depth))
        rows.append(
            (
                name,
                f'{sample.ratio:.3f}',
                f'{depth:g}, {width:g}, {size}',
                f'{fitted_depth:.3f}, {resolution * BASE.input_size:.0f}',
                f'{others[1]:.3f}, {others[0] * BASE.input_size:.0f}' if others else 'beyond them',
                f'{nominal:.3f}',
                f'{member.factors.width:.3f} ({100 * member.error:+.1f} %)',
                f'{repeats}, {channels}',
            )
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is the heading."""
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|' + '---|' * len(rows[0]))
    return '\n'.join(lines)


def tables() -> str:
    """Both tables with their headings."""
    return (
        f'### EfficientNet and the compound rule\n\n{markdown(compound_rows())}\n\n'
        f'### TinyNet and the tiny rule\n\n{markdown(tiny_rows())}'
    )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit('usage: python -m eff_plugins.scaling.published docs/scaling.md')
    path = Path(sys.argv[1])
    before, rest = path.read_text().split(BEGIN)
    after = rest.split(END)[1]
    path.write_text(f'{before}{BEGIN}\n{tables()}\n{END}{after}')


if __name__ == '__main__':
    main()
