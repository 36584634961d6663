"""Does latency follow activations rather than multiply-adds? Measured over networks scaled in different ways.

Published RegNetX and RegNetY networks, and EfficientNet-B0 and RegNetY-400MF scaled to the same multiply-adds by width
alone (alpha 1), by the fast rule (0.8), uniformly (1/3), without width (0) and, for EfficientNet, by its compound rule. All
are timed in turn at their own input sizes, BatchNorm folded, channels-last, one CPU thread. Two times are kept: the wall's
and the process's own (CPU time), which other work on the machine disturbs far less. Reported: correlation of the
logarithms, rank correlation and the log-log fit of each against multiply-adds, against activations, and against both.

``OMP_NUM_THREADS=1 python benchmarks/scaling_latency.py --out benchmarks/results/scaling_latency.csv``
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.deploy import Preparation
from eff_plugins.engine.runs import table
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import busy_note, device_name, threads, time_interleaved
from eff_plugins.scaling import CompoundRule, Description, FastRule, Rule, cost, read_base, scale_to_macs
from eff_plugins.scaling.latency import deployed_call

PUBLISHED = (
    'regnetx_200mf',
    'regnetx_400mf',
    'regnetx_800mf',
    'regnety_200mf',
    'regnety_400mf',
    'regnety_800mf',
    'efficientnet_b0',
)
RULES: dict[str, Rule] = {
    'width': FastRule(1.0),
    'fast': FastRule(0.8),
    'uniform': FastRule(1 / 3),
    'depth-resolution': FastRule(0.0),
    'compound': CompoundRule(),
}
BASES = {'efficientnet_b0': tuple(RULES), 'regnety_400mf': tuple(name for name in RULES if name != 'compound')}


def networks(ratios: Sequence[float]) -> dict[str, tuple[str, Description]]:
    """Name -> (group, description): published ones, and each base scaled by each rule to the ratios of its multiply-adds."""
    found = {name: ('published', read_base(name)) for name in PUBLISHED}
    for base_name, rules in BASES.items():
        base = read_base(base_name)
        for rule in rules:
            for ratio in ratios:
                member = scale_to_macs(base, RULES[rule], ratio * cost(base).macs)
                found[f'{base_name}_{rule}_x{ratio:g}'] = (f'{base_name} x{ratio:g}', member.description)
    return found


def measure(found: Mapping[str, Description], batch_size: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Name -> median and 90th percentile of the wall's milliseconds, and median of the CPU's."""
    spent: dict[str, list[float]] = {name: [] for name in found}

    def timed(name: str, call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time_ns()
            call()
            spent[name].append((time.process_time_ns() - start) / 1e6)

        return run

    how = Preparation()
    with threads(1):
        calls = {name: timed(name, deployed_call(network, batch_size, how)) for name, network in found.items()}
        wall = time_interleaved(calls, repeats, warmup=3)
    return {name: (wall[name].p50, wall[name].p90, float(np.median(spent[name][3:]))) for name in found}


def fit(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], latency: str
) -> tuple[float, float, list[float], float]:
    """Least squares of log latency on the logarithms of ``keys``.

    Returns:
        Correlation of the logarithms (of the fit, where there are two keys), rank correlation of fit and latency, exponents,
        and the rms residual in per cent.
    """
    from scipy.stats import spearmanr

    x = np.array([[math.log(row[key]) for key in keys] + [1.0] for row in rows])
    y = np.log([row[latency] for row in rows])
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    fitted = x @ solution
    correlation = float(np.corrcoef(fitted, y)[0, 1])
    residual = 100 * math.expm1(float(np.sqrt(np.mean((y - fitted) ** 2))))
    return correlation, float(spearmanr(fitted, y).statistic), [float(value) for value in solution[:-1]], residual


def within_groups(rows: Sequence[Mapping[str, Any]], key: str, latency: str) -> tuple[float, int]:
    """Rank correlation of ``key`` and latency among networks of one base and equal multiply-adds; mean, number of groups."""
    from scipy.stats import spearmanr

    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row['group'], []).append(row)
    alike = [group for name, group in groups.items() if name != 'published' and len(group) >= 3]
    values = [
        float(spearmanr([row[key] for row in group], [row[latency] for row in group]).statistic) for group in alike
    ]
    return float(np.mean(values)), len(values)


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The fits over all networks, and over each kind alone."""
    kinds = {
        'all': rows,
        'RegNet': [row for row in rows if row['name'].startswith('regnet')],
        'EfficientNet': [row for row in rows if row['name'].startswith('efficientnet')],
    }
    lines: list[tuple[str, ...]] = [
        ('networks', 'n', 'time', 'against', 'Pearson (log)', 'Spearman', 'exponents', 'rms residual')
    ]
    for kind, chosen in kinds.items():
        for latency in ('latency_ms_p50', 'cpu_ms_p50'):
            for keys in (('macs',), ('activations',), ('macs', 'activations')):
                correlation, rank, exponents, residual = fit(chosen, keys, latency)
                figures = (
                    f'{correlation:.3f}',
                    f'{rank:.3f}',
                    ', '.join(f'{e:.2f}' for e in exponents),
                    f'{residual:.1f} %',
                )
                lines.append((kind, str(len(chosen)), latency.split('_')[0], ' and '.join(keys), *figures))
    text = table(lines)
    for latency in ('latency_ms_p50', 'cpu_ms_p50'):
        mean, count = within_groups(rows, 'activations', latency)
        text += f'\nat equal multiply-adds: rank correlation of {latency} and activations {mean:.2f} (mean of {count} groups)'
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--ratios', type=float, nargs='+', default=[0.5, 2.0], help="multiples of each base's multiply-adds"
    )
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--out', type=Path)
    args = parser.parse_args()
    found = networks(args.ratios)
    times = measure({name: network for name, (_, network) in found.items()}, args.batch_size, args.repeats)
    rows = []
    for name, (group, description) in found.items():
        counted = cost(description)
        rows.append(
            dict(
                name=name,
                group=group,
                input_size=description.input_size,
                params=counted.params,
                macs=counted.macs,
                activations=counted.activations,
                latency_ms_p50=round(times[name][0], 3),
                latency_ms_p90=round(times[name][1], 3),
                cpu_ms_p50=round(times[name][2], 3),
                batch_size=args.batch_size,
                threads=1,
                repeats=args.repeats,
                device=device_name('cpu'),
                torch=torch.__version__,
                command=f'python {shlex.join(sys.argv)}',
            )
        )
    keys = ('name', 'input_size', 'macs', 'activations', 'latency_ms_p50', 'cpu_ms_p50')
    print(table([keys, *(tuple(str(row[key]) for key in keys) for row in rows)]))
    print(report(rows))
    if note := busy_note(1):
        print(f'note: {note}')
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    main()
