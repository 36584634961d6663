"""Time one network of each family against timm's or torchvision's, equally prepared, and write one row a family.

Both have the same weights, BatchNorm folded, channels-last order and one thread, and are timed in turn. The smallest
variant that has a counterpart stands for its family: there, what is not arithmetic weighs most. Rounds are added until the
95 % interval of the median ratio is narrow enough; the requirement is an upper bound of at most 1.03. ``cpu_ratio`` is the
same ratio of the thread's own processor time, which other processes on a shared machine disturb far less.

    python benchmarks/static_speed.py --out benchmarks/results/static_speed.csv
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eff_plugins  # noqa: F401  (first: its fixes must be in place before timm or torchvision is imported)
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.deploy.export import max_difference
from eff_plugins.engine.runs import friendly, table
from eff_plugins.models.image.zoo import variant
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import Latency, Ratio, device_name, paired_ratio, threads, time_interleaved
from eff_plugins.profiling.macs import count_macs
from eff_plugins.profiling.subjects import pictures
from eff_plugins.testing.families import families
from eff_plugins.testing.oracles import same_weights

LIMIT = 1.03
WIDTH = 0.02  # of the interval at which no further rounds are run


class OnTwoClocks:
    """A call that also keeps the processor time that its own thread spent in it."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.cpu_ms: list[float] = []

    def __call__(self) -> None:
        start = time.thread_time_ns()
        self.model(self.x)
        self.cpu_ms.append((time.thread_time_ns() - start) / 1e6)


def ratios(
    models: tuple[nn.Module, nn.Module], x: Tensor, step: int, most: int
) -> tuple[tuple[Latency, Latency], Ratio, Ratio]:
    """Latencies of both, their ratio by the wall clock and by processor time; ``step`` rounds at a time, ``most`` in all."""
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    while True:
        calls = [OnTwoClocks(model, x) for model in models]
        functions: dict[str, Callable[[], Any]] = {'ours': calls[0], 'theirs': calls[1]}
        found = time_interleaved(functions, step, warmup=3, min_ms=0)
        for i, name in enumerate(functions):
            wall[i].extend(found[name].ms)
            cpu[i].extend(calls[i].cpu_ms[-step:])
        latencies = Latency(tuple(wall[0])), Latency(tuple(wall[1]))
        ratio = paired_ratio(*latencies)
        if ratio.high - ratio.low <= WIDTH or len(wall[0]) >= most:
            return latencies, ratio, paired_ratio(Latency(tuple(cpu[0])), Latency(tuple(cpu[1])))


def family_rows(family: str, name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    described = variant(name)
    how = Preparation()
    ours, theirs = (prepare(model, how) for model in same_weights(name)[:2])
    rows = []
    for batch_size in args.batch_size:
        x = how.inputs(pictures(batch_size, described.input_size, 'real', 1)[0])
        with torch.no_grad(), threads(1):
            difference = max_difference(ours(x), theirs(x))
            macs = [count_macs(model, partial(model, x))[''] / batch_size for model in (ours, theirs)]
            (mine, other), wall, cpu = ratios((ours, theirs), x, args.repeats, args.max_repeats)
        rows.append(
            {
                'family': family,
                'model': name,
                'against': described.oracle,
                'batch_size': batch_size,
                'input_size': described.input_size,
                'macs': round(macs[0]),
                'macs_against': round(macs[1]),
                'difference': f'{difference:.1e}',
                'latency_ms_p50': f'{mine.p50:.3f}',
                'latency_ms_p90': f'{mine.p90:.3f}',
                'against_ms_p50': f'{other.p50:.3f}',
                'against_ms_p90': f'{other.p90:.3f}',
                'ratio': f'{wall.median:.4f}',
                'ratio_low': f'{wall.low:.4f}',
                'ratio_high': f'{wall.high:.4f}',
                'cpu_ratio': f'{cpu.median:.4f}',
                'cpu_ratio_high': f'{cpu.high:.4f}',
                'rounds': len(mine.ms),
                'load_average': f'{os.getloadavg()[0]:.1f}',
                'device': device_name('cpu'),
                'threads': 1,
                'dtype': how.dtype,
                'torch': torch.__version__,
                'command': f'python {shlex.join(sys.argv)}',
            }
        )
    return rows


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.is_file():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('families', nargs='*', help='families, or names of variants (default: all families)')
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1, 8])
    parser.add_argument('--repeats', type=int, default=100, help='rounds at a time')
    parser.add_argument('--max-repeats', type=int, default=600, help='rounds after which a wide interval is accepted')
    parser.add_argument('--out', type=Path, metavar='CSV', help='rows of what is timed replace those of the same model')
    args = parser.parse_args()
    with_oracle = {f: [n for n in names if variant(n).oracle] for f, names in families().items()}
    if args.families:
        chosen = {}
        for word in args.families:
            family = next((f for f, names in with_oracle.items() if word == f or word in names), None)
            if family is None or not with_oracle[family]:
                raise ValueError(f'{word}: no family or variant with a counterpart; families: {", ".join(with_oracle)}')
            chosen[word if word in with_oracle[family] else with_oracle[family][0]] = family
    else:
        chosen = {names[0]: family for family, names in with_oracle.items() if names}
    rows = [row for row in read_rows(args.out) if row['model'] not in chosen]
    fresh = []
    for name, family in chosen.items():
        for row in family_rows(family, name, args):
            print('  '.join(str(row[k]) for k in ('model', 'against', 'batch_size', 'ratio', 'ratio_high')), flush=True)
            fresh.append(row)
            if args.out:
                write_csv(args.out, sorted(rows + fresh, key=lambda r: (r['family'], r['model'], int(r['batch_size']))))
    shown = (
        'family',
        'model',
        'against',
        'batch_size',
        'latency_ms_p50',
        'against_ms_p50',
        'ratio',
        'ratio_high',
        'cpu_ratio',
    )
    print(table([shown, *([str(row[key]) for key in shown] for row in fresh)]))
    slow = [f'{row["model"]} at batch {row["batch_size"]}' for row in fresh if float(row['ratio_high']) > LIMIT]
    if slow:
        raise ValueError(f'upper bound above {LIMIT}: {", ".join(slow)}')


if __name__ == '__main__':
    friendly(main)
