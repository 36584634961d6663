"""Metrics of a trained dynamic network against its multiply-adds: any config, several budgets, without retraining.

A row with everything on (``all``, the network as it was trained, short of its decisions), then one for each policy and
budget. Thresholds are calibrated once a policy, on pictures of the training split. With several checkpoints, of one config
and several seeds, all are means over them. Of boxes, the intervals are those of the difference in AP (paired bootstrap over
the pictures), in points, from everything on and from random decisions at the same budget.

    python benchmarks/budget_curve.py configs/lasnet/lasnet_effnet-lite0_bccd.py CHECKPOINT ... --budgets 0.95 0.9 --out CSV
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.execution import Operation, test_as
from eff_plugins.engine.runs import add_common_arguments, check_checkpoint, friendly, load_config, table
from eff_plugins.evaluation.bootstrap import CocoPictures, paired_interval, resampled
from eff_plugins.profiling.benchmark import write_csv


class Tested(NamedTuple):
    """One test: what was spent, the metrics, and of boxes AP on each draw of the pictures."""

    spent: dict[str, float]
    metrics: dict[str, float]
    pictures: int
    ap: np.ndarray | None


def test(args: argparse.Namespace, checkpoint: str, operation: Operation, folder: str) -> Tested:
    """Test one checkpoint."""
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    cfg.load_from = checkpoint
    boxes = isinstance(cfg.test_evaluator, dict) and cfg.test_evaluator['type'] == 'CocoMetric'
    if boxes:
        cfg.test_evaluator.outfile_prefix = f'{folder}/found'
    runner, hook, metrics = test_as(cfg, operation)
    assert hook.spent is not None
    spent = dict(executed_share=hook.spent.share, density=hook.spent.density)
    metrics = {name: value for name, value in metrics.items() if isinstance(value, float)}
    ap = None
    if boxes:
        pictures = CocoPictures.of(runner.test_evaluator.metrics[0])
        ap = resampled(lambda times: pictures.ap(times).mean(), pictures.pictures)
    return Tested(spent, metrics, len(runner.test_dataloader.dataset), ap)


def minus(seeds: list[Tested], others: list[Tested] | None, name: str) -> dict[str, Any]:
    """Columns of the interval of a difference, empty where there is nothing to compare with."""
    ends: tuple[Any, ...] = ('', '')
    if others is not None and seeds[0].ap is not None:
        ends = tuple(
            round(100 * end, 2) for end in paired_interval([one.ap for one in seeds], [one.ap for one in others])
        )
    return {f'minus_{name}_low': ends[0], f'minus_{name}_high': ends[1]}


def means(seeds: list[dict[str, float]]) -> dict[str, float]:
    """Over the seeds, of each figure."""
    return {name: round(float(np.mean([one[name] for one in seeds])), 4) for name in seeds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT')
    parser.add_argument('--budgets', type=float, nargs='+', required=True)
    parser.add_argument('--policies', nargs='+', default=['learned', 'random'])
    parser.add_argument('--calibration-samples', type=int, default=64)
    parser.add_argument('--out', type=Path, required=True, metavar='CSV')
    add_common_arguments(parser)
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        check_checkpoint(checkpoint)
    torch.set_num_threads(1)
    found: dict[tuple[str, float | None], list[Tested]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for policy in ('all', *args.policies):
            for budget in [None] if policy == 'all' else args.budgets:
                found[policy, budget] = []
                for seed, checkpoint in enumerate(args.checkpoints):
                    torch.manual_seed(seed)
                    kept = None if budget is None else str(Path(folder) / f'{policy}-{seed}.json')
                    operation = Operation('sparse', budget, policy, kept, args.calibration_samples)
                    found[policy, budget].append(test(args, checkpoint, operation, folder))
    rows = []
    for (policy, budget), seeds in found.items():
        main_metric = next(iter(seeds[0].metrics))
        rows.append(
            dict(config=Path(args.config).stem, policy=policy, budget='' if budget is None else budget)
            | means([one.spent for one in seeds])
            | means([one.metrics for one in seeds])
            | {f'{main_metric}_seeds': ' '.join(f'{one.metrics[main_metric]:.3f}' for one in seeds)}
            | minus(seeds, None if policy == 'all' else found['all', None], 'all')
            | minus(seeds, None if policy == 'random' else found.get(('random', budget)), 'random')
            | dict(pictures=seeds[0].pictures, command=f'python {shlex.join(sys.argv)}')
        )
    shown = [name for name in rows[0] if name not in ('config', 'command')]
    print(table([tuple(shown), *(tuple(str(row[name]) for name in shown) for row in rows)]))
    write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
