"""A trained RANet at several budgets against each of its fixed exits and against random exits at the same cost.

Thresholds are fitted on pictures that did not train it (those of the training file behind the config's ``indices``), and
``val`` is read once. The multiply-adds are those executed, classifiers on the way included. ``fixed_at_equal_macs`` is the
accuracy of the fixed exits, interpolated at the row's multiply-adds, and the interval is that of the difference (paired
bootstrap over the pictures).

    python benchmarks/ranet_budgets.py CONFIG CHECKPOINT --out benchmarks/results/ranet_cifar10.csv
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eff_plugins import dynamic
from eff_plugins.compat.loading import safe_load
from eff_plugins.engine.runs import friendly, load_config, table
from eff_plugins.hub.load import load_strict
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.registry import DATASETS, MODELS

Result = tuple[np.ndarray, float]  # which pictures are right, mean multiply-adds a picture


def arrays(config: dict, split: slice) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, H, W) uint8 and labels (N,) of a data set's part, without augmentation."""
    dataset = DATASETS.build({key: value for key, value in config.items() if key != 'indices'} | {'pipeline': []})
    rows = [dataset[i] for i in range(*split.indices(len(dataset)))]
    images = torch.from_numpy(np.stack([r['img'] for r in rows])).permute(0, 3, 1, 2)
    return images, torch.tensor([r['gt_label'] for r in rows])


def evaluate(model: Any, batches: list[Tensor], labels: Tensor) -> Result:
    """Run the sparse model over all pictures."""
    logits, macs = [], []
    with torch.no_grad():
        for x in batches:
            with dynamic.record(model) as stats:
                logits.append(model(x))
            macs += [entry.macs for entry in stats.entries]
    return (torch.cat(logits).argmax(1) == labels).numpy(), float(torch.cat(macs).mean())


def fixed_at(fixed: list[Result], macs: float) -> np.ndarray:
    """(N,) share of fixed exits that are right on each picture, mixed so that they cost ``macs``."""
    costs = [cost for _, cost in fixed]
    weights = [np.interp(macs, costs, np.eye(len(costs))[k]) for k in range(len(costs))]
    return sum(weight * right for weight, (right, _) in zip(weights, fixed, strict=True))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    cfg = load_config(args.config)
    model: Any = MODELS.build(cfg.model)
    load_strict(model, safe_load(args.checkpoint)['state_dict'], args.checkpoint)
    model.eval()
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset

    def batches(images: Tensor) -> list[Tensor]:
        return [model.data_preprocessor({'inputs': list(part)}, False)['inputs'] for part in images.split(100)]

    fitting, _ = arrays(train, slice(train.indices, None))
    images, labels = arrays(val, slice(None))
    inputs = batches(images)
    dynamic.set_execution(model, 'sparse')
    results: list[tuple[str, str, Result]] = []
    for number in range(model.backbone.policy.count):
        dynamic.set_policy(model, 'fixed', number)
        results.append(('fixed', str(number), evaluate(model, inputs, labels)))
    fixed = [result for _, _, result in results]
    for kind in ('learned', 'random'):
        torch.manual_seed(0)
        dynamic.calibrate(dynamic.set_policy(model, kind), batches(fitting))
        for budget in args.budgets:
            dynamic.set_budget(model, budget)
            results.append((kind, str(budget), evaluate(model, inputs, labels)))
    rows = []
    dense = fixed[-1][1]
    draws = np.random.default_rng(0).integers(0, len(labels), (4000, len(labels)))
    for kind, setting, (right, macs) in results:
        difference = right - fixed_at(fixed, macs)
        low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
        rows.append(
            {
                'policy': kind,
                'setting': setting,
                'macs_mean': round(macs),
                'share': f'{macs / dense:.3f}',
                'accuracy': f'{right.mean():.4f}',
                'fixed_at_equal_macs': f'{fixed_at(fixed, macs).mean():.4f}',
                'difference': f'{difference.mean():+.4f}',
                'low': f'{low:+.4f}',
                'high': f'{high:+.4f}',
                'pictures': len(labels),
                'command': f'python {shlex.join(sys.argv)}',
            }
        )
    print(table([tuple(rows[0])[:-1], *(tuple(str(v) for v in r.values())[:-1] for r in rows)]))
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
