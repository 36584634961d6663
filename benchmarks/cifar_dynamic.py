"""Train a dynamic CIFAR ResNet with a learned and with a random policy, and read both at several budgets.

Both trainings start from the same published weights, learn from the same teacher and see the same batches; the random
policy spends, from step to step of the training and in evaluation, what is asked of the learned one, without looking.
Thresholds and densities are fitted on the pictures of the training file that train nothing (behind the config's
``indices``); ``val`` is read once. Intervals are those of paired bootstrap over the pictures, the seeds' mean each. What a
finished training gave, picture by picture, is kept in ``--kept``: a second start goes on where the first was stopped.

    python benchmarks/cifar_dynamic.py configs/lasnet/lasnet-r32_cifar10.py --train-budget 0.5 --budgets 0.6 0.5 --out CSV
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from choice_budgets import batches, from_bits, to_bits
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from torch import Tensor

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins import dynamic
from eff_plugins.dynamic.budget import set_knob
from eff_plugins.dynamic.sampling import Schedule
from eff_plugins.engine.budget import BudgetHook
from eff_plugins.engine.runs import build_runner, friendly, load_config, table
from eff_plugins.evaluation.bootstrap import mean_interval
from eff_plugins.files import atomic
from eff_plugins.profiling.benchmark import write_csv

HELD_OUT = 400
Result = tuple[np.ndarray, float, float]  # which pictures are right, executed share of the dense network, mean density


def held_out(model: Any, cfg: Config) -> list[Tensor]:
    return batches(model, cfg.train_dataloader.dataset, cfg.val_dataloader.dataset.pipeline, slice(-HELD_OUT, None))[0]


class RandomBudget(Hook):
    """In place of ``BudgetHook``: blind decisions that spend its scheduled budget."""

    def __init__(self, budget: Schedule, calibration: dynamic.Calibration) -> None:
        self.budget, self.calibration = budget, calibration

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        budget = self.budget(runner.iter / max(runner.max_iters, 1))
        set_knob(runner.model, self.calibration.knob(budget))


def train(cfg: Config, policy: str, hook: dict) -> Any:
    """The trained model, in evaluation mode; ``hook`` is the one of ``cfg`` that trains towards a budget."""
    if policy == 'random':
        cfg.custom_hooks.remove(hook)
    runner = build_runner(cfg)
    model = runner.model
    if policy == 'random':
        model.init_weights()
        dynamic.set_execution(dynamic.set_policy(model.eval(), 'random'), 'masked')
        found = dynamic.calibrate(model, held_out(model, cfg)[:1])
        runner.register_hook(RandomBudget(BudgetHook(hook['budget']).budget, found))
    runner.train()
    return model.eval()


def evaluate(model: Any, inputs: list[Tensor], labels: Tensor) -> Result:
    right, shares, densities = [], [], []
    total = dynamic.network_macs(model, lambda: model(inputs[0]), len(inputs[0]))
    with torch.no_grad():
        for x, wanted in zip(inputs, labels.split(100), strict=True):
            with dynamic.record(model) as stats:
                right.append(model(x).argmax(1) == wanted)
            shares.append(float(stats.share(total)) * len(x))
            densities.append(float(torch.stack(list(stats.densities().values())).mean()) * len(x))
    count = sum(map(len, inputs))
    return torch.cat(right).numpy(), sum(shares) / count, sum(densities) / count


def points(differences: np.ndarray) -> tuple[float, ...]:
    """95 % interval of the mean of ``differences`` (N,), in points."""
    return tuple(round(100 * end, 2) for end in mean_interval(differences))


def run(config: str, policy: str, seed: int, args: argparse.Namespace) -> dict[float, Result]:
    """Budget -> result of one training, or of the dense network at 1.0 for the policy ``'all'``."""
    name = f'{Path(config).stem}-{policy}' + ('' if policy == 'all' else f'-{args.train_budget:g}-{seed}')
    kept = args.kept / f'{name}.json'
    if kept.exists():
        found = json.loads(kept.read_text())
        options = found.pop('options')
        if policy != 'all' and options != args.cfg_options:
            raise ValueError(
                f'{kept} was trained with --cfg-options {options}, not {args.cfg_options}: give another --kept'
            )
        if missing := [b for b in args.budgets if policy != 'all' and str(b) not in found]:
            raise ValueError(f'{kept} holds no budget {missing[0]}: remove it, or give another --kept, to train anew')
        return {float(b): (from_bits(r['right']), r['share'], r['density']) for b, r in found.items()}
    cfg = load_config(config, str(args.work_dir / name), args.cfg_options)
    cfg.randomness = dict(seed=seed)
    hook = next(hook for hook in cfg.custom_hooks if hook['type'] == 'eff_plugins.BudgetHook')
    constant = not isinstance(hook['budget'], dict)
    hook['budget'] = args.train_budget if constant else dict(hook['budget'], end=args.train_budget)
    if policy == 'all':
        model = build_runner(cfg).model.eval()
        model.init_weights()
        dynamic.set_policy(model, 'all')
    else:
        model = train(cfg, policy, hook)
        dynamic.calibrate(model, held_out(model, cfg), budgets=args.budgets)
    inputs, labels = batches(model, cfg.val_dataloader.dataset, cfg.val_dataloader.dataset.pipeline, slice(None))
    results = {}
    for budget in [1.0] if policy == 'all' else args.budgets:
        if policy != 'all':
            dynamic.set_budget(model, budget)
        torch.manual_seed(seed)
        results[budget] = evaluate(dynamic.set_execution(model, 'sparse'), inputs, labels)
    rows = {b: dict(share=s, density=d, right=to_bits(r)) for b, (r, s, d) in results.items()}
    with atomic(kept) as partial:
        partial.write_text(json.dumps({'options': args.cfg_options, **rows}, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.7, 0.6, 0.5], help='to read the networks at')
    parser.add_argument('--train-budget', type=float, default=0.6, help='where the trainings end')
    parser.add_argument('--policies', nargs='+', choices=('learned', 'random'), default=['learned', 'random'])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/cifar_dynamic'))
    parser.add_argument(
        '--kept',
        type=Path,
        default=Path('work_dirs/cifar_dynamic'),
        metavar='DIR',
        help='results of finished trainings, which are not trained again; another one for other --cfg-options',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    torch.set_num_threads(1)

    dense = run(args.config, 'all', 0, args)[1.0][0]
    found = {policy: [run(args.config, policy, seed, args) for seed in args.seeds] for policy in args.policies}
    rows = []
    for budget in args.budgets:
        means = {policy: np.mean([seed[budget][0] for seed in seeds], 0) for policy, seeds in found.items()}
        for policy, right in means.items():
            low, high = points(right - dense)
            better = points(right - means['random']) if 'random' in means else ('', '')
            seeds = [seed[budget] for seed in found[policy]]
            rows.append(
                dict(
                    config=Path(args.config).stem,
                    policy=policy,
                    trained_towards=args.train_budget,
                    budget=budget,
                    executed_share=round(float(np.mean([share for _, share, _ in seeds])), 4),
                    density=round(float(np.mean([density for _, _, density in seeds])), 4),
                    top1=round(100 * float(right.mean()), 2),
                    top1_seeds=' '.join(f'{100 * r.mean():.1f}' for r, _, _ in seeds),
                    dense_top1=round(100 * float(dense.mean()), 2),
                    minus_dense_low=low,
                    minus_dense_high=high,
                    minus_random_low=better[0],
                    minus_random_high=better[1],
                    pictures=len(dense),
                    command=f'python {shlex.join(sys.argv)}',
                )
            )
    shown = ('policy', 'trained_towards', 'budget', 'executed_share', 'top1', 'top1_seeds', 'dense_top1')
    print(table([shown, *([str(row[key]) for key in shown] for row in rows)]))
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
