"""Metrics of a trained dynamic network against its multiply-adds: any config, several budgets, without retraining.

A row with everything on (``all``, the network as it was trained, short of its decisions), then one for each policy and
budget. Thresholds are calibrated once a policy, on pictures of the training split.

    python benchmarks/budget_curve.py configs/lasnet/lasnet_effnet-lite0_bccd.py CHECKPOINT --budgets 0.95 0.9 0.85 --out CSV
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.execution import Operation, test_as
from eff_plugins.engine.runs import add_common_arguments, check_checkpoint, friendly, load_config, table
from eff_plugins.profiling.benchmark import write_csv


def test(args: argparse.Namespace, operation: Operation) -> dict[str, Any]:
    """The metrics of one test, and what it spent."""
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    cfg.load_from = args.checkpoint
    _, hook, metrics = test_as(cfg, operation)
    assert hook.spent is not None
    spent = dict(executed_share=round(hook.spent.share, 4), density=round(hook.spent.density, 4))
    return spent | {name: round(value, 4) for name, value in metrics.items() if isinstance(value, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--budgets', type=float, nargs='+', required=True)
    parser.add_argument('--policies', nargs='+', default=['learned', 'random'])
    parser.add_argument('--calibration-samples', type=int, default=64)
    parser.add_argument('--out', type=Path, required=True, metavar='CSV')
    add_common_arguments(parser)
    args = parser.parse_args()
    check_checkpoint(args.checkpoint)
    torch.set_num_threads(1)
    model, rows = Path(args.config).stem, []
    with tempfile.TemporaryDirectory() as folder:
        for policy in ('all', *args.policies):
            for budget in [None] if policy == 'all' else args.budgets:
                torch.manual_seed(0)
                kept = None if budget is None else str(Path(folder) / f'{policy}.json')
                found = test(args, Operation('sparse', budget, policy, kept, args.calibration_samples))
                how = dict(config=model, policy=policy, budget='' if budget is None else budget)
                rows.append(how | found | dict(command=f'python {shlex.join(sys.argv)}'))
    shown = [name for name in rows[0] if name not in ('config', 'command')]
    print(table([tuple(shown), *(tuple(str(row[name]) for name in shown) for row in rows)]))
    write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
