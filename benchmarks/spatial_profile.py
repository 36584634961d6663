"""Where a spatially dynamic network spends its time: each part beside the plain network's, and what that makes a second.

Network, decisions and inputs are those of ``tools/benchmark.py CONFIG --execution dense sparse --policy learned all --budgets
...``. The parts' clocks run inside the forward pass, so that the sum is a little more than what that tool reports.

* ``convolutions``: the library's, of whole maps.
* ``rows``: the native kernels at chosen positions, planning included where it is the same call; ``plan``: planning elsewhere.
* ``policy``: scores; ``interpolation``: SFSI's.
* ``rest``: pooling, padding, classifier, sums and activations that are not fused, and Python.

    OMP_NUM_THREADS=1 python benchmarks/spatial_profile.py configs/lasnet/lasnet-r50_8xb128_in1k.py ... --out CSV
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation
from eff_plugins.dynamic.rows import RowExecutor
from eff_plugins.engine.runs import friendly, table
from eff_plugins.ops.dense import PackedConv2d
from eff_plugins.ops.native import kernels
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.candidates import Candidate, Dynamic
from eff_plugins.profiling.latency import device_name, no_garbage_collection, threads
from eff_plugins.profiling.subjects import find_subject
from eff_plugins.profiling.variants import Plan

# of eff_plugins.ops.native.Kernels
NATIVE = {
    'convolve': 'rows',
    'run_branch': 'rows',
    'plan_rows': 'plan',
    'other_rows': 'plan',
    'rows_above': 'plan',
    'patch_scores': 'policy',
    'conv_scores': 'policy',
    'interpolate': 'interpolation',
}
PARTS = ('convolutions', 'rows', 'plan', 'policy', 'interpolation', 'rest')
WARMUP = 3


class Clocks:
    """Nanoseconds and multiply-adds of each part of one forward pass; what runs inside a part belongs to it."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.macs = 0.0  # of the library's convolutions outside of policies
        self._inside = False

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` with its time taken."""

        @wraps(function)  # functions are overridden by their name
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside = True
            start = time.perf_counter_ns()
            try:
                result = function(*args, **kwargs)
            finally:
                self.spent[part] += time.perf_counter_ns() - start
                self._inside = False
            if part == 'convolutions':
                self.macs += result.numel() / result.shape[1] * args[0].weight.numel()
            return result

        return timed

    @contextmanager
    def running(self, models: list[torch.nn.Module], dtype: torch.dtype) -> Iterator[None]:
        """Take the parts' times of every call of the models in the block.

        Raises:
            ValueError: There are no native kernels here, whose parts these are.
        """
        natives = {kernels(), kernels(dtype=dtype)}  # plans are of no type
        if None in natives:
            raise ValueError(
                f'no native kernels for {dtype} here: see docs/install.md; torch.profiler shows what plain torch does'
            )
        patches = [
            patch.object(native, name, self.around(part, getattr(native, name)))
            for native in natives
            for name, part in NATIVE.items()
        ]
        patches.append(patch.object(PackedConv2d, 'fused', self.around('convolutions', PackedConv2d.fused)))
        # policies that say what they are are read, not called
        patches.append(patch.object(RowExecutor, 'read', self.around('policy', RowExecutor.read)))
        modules = [m for model in models for m in model.modules()]
        policies = [m for m in modules if getattr(m, 'is_policy', False) and not hasattr(m, 'linear')]
        patches += [patch.object(m, 'forward', self.around('policy', m.forward)) for m in policies]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def take(self, run: Callable[[], Any]) -> dict[str, float]:
        """Milliseconds of each part of one call."""
        self.spent.clear()
        self.macs = 0.0
        start = time.perf_counter_ns()
        run()
        total = time.perf_counter_ns() - start
        self.spent['rest'] = total - sum(self.spent.values())
        return {part: self.spent[part] / 1e6 for part in PARTS}


@torch.no_grad()
def profile(config: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each part of the plain network and of each variant."""
    how = Preparation(prepack=True, dtype=args.dtype)
    subject = find_subject(config, size=args.size)
    network = Dynamic(subject, how, Plan(('dense', 'sparse'), ('learned', 'all'), tuple(args.budgets)))
    batches = subject.batches(args.batch_size, args.size, 'real', 1, how)
    clocks = Clocks()
    with clocks.running([network.model, network.dense], how.torch_dtype), no_garbage_collection():
        candidates = network.candidates(batches, args.batch_size)
        taken: list[list[dict[str, float]]] = [[] for _ in candidates]
        macs = [0.0] * len(candidates)
        for _ in range(args.repeats + WARMUP):
            for i, candidate in enumerate(candidates):
                candidate.ready[0]()
                taken[i].append(clocks.take(candidate.call(0)))
                macs[i] = clocks.macs / args.batch_size
    rows = []
    for candidate, times, library in zip(candidates, taken, macs, strict=True):
        rows += part_rows(config, candidate, times[WARMUP:], library, args)
    return rows


def part_rows(
    config: str, candidate: Candidate, times: list[dict[str, float]], library: float, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each part that took time."""
    variant = candidate.variant
    assert variant is not None
    total, policy = candidate.macs(args.batch_size).mean, 0.0
    if variant.execution == 'sparse':
        candidate.ready[0]()
        with dynamic.record(candidate.counted) as stats:
            candidate.call(0)()
        policy = sum(entry.policy_macs for entry in stats.entries)
    macs = {'convolutions': library, 'policy': policy, 'rows': total - library - policy}
    rows, network_ms = [], float(np.median([sum(taken.values()) for taken in times]))
    for part in PARTS:
        ms = float(np.median([taken[part] for taken in times]))
        if ms < 0.005:
            continue
        done = macs.get(part, 0.0)
        rows.append(
            {
                'model': config,
                'execution': variant.execution,
                'policy': variant.policy,
                'budget': variant.budget,
                'batch_size': args.batch_size,
                'dtype': args.dtype,
                'input_size': args.size,
                'part': part,
                'ms': f'{ms:.2f}',
                'macs': round(done) if done else None,
                'macs_per_second': f'{done * args.batch_size / ms / 1e6:.1f}e9' if done else None,
                'network_ms': f'{network_ms:.2f}',
                'network_macs': round(total),
                'device': device_name('cpu'),
                'threads': 1,
                'torch': torch.__version__,
                'load_average': f'{os.getloadavg()[0]:.1f}',
                'command': f'python {shlex.join(sys.argv)}',
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.5])
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--dtype', default='float32', help='float32 or bfloat16')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    with threads(1):
        rows = [row for config in args.configs for row in profile(config, args)]
    shown = ('model', 'policy', 'budget', 'part', 'ms', 'macs_per_second', 'network_ms')
    print(table([shown, *(['' if row[key] is None else str(row[key]) for key in shown] for row in rows)]))
    if args.out:
        write_csv(args.out, rows)
        print(f'wrote {args.out}')


if __name__ == '__main__':
    friendly(main)
