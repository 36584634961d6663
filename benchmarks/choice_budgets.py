"""A trained RANet or DRNet at several budgets against each of its fixed choices and random ones at the same cost.

The knob is fitted on pictures that did not train the network (those of the training file behind the config's ``indices``),
and ``val`` is read once. The multiply-adds are those executed, policy included. ``fixed_at_equal_macs`` is the accuracy of
the fixed exits or resolutions, interpolated at the row's multiply-adds, ``random_at_equal_macs`` that of the random policy;
the intervals are those of the differences (paired bootstrap over the pictures). With several checkpoints, of one config and
several seeds, all are means over them; what ``--kept`` wrote of a checkpoint can take its place.

    python benchmarks/choice_budgets.py CONFIG CHECKPOINT ... --kept DIR --out CSV
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
from torch import Tensor

from eff_plugins import dynamic
from eff_plugins.compat.loading import safe_load
from eff_plugins.dynamic.module import decisions
from eff_plugins.engine.runs import friendly, load_config, table
from eff_plugins.evaluation.bootstrap import mean_interval
from eff_plugins.files import atomic
from eff_plugins.hub.load import load_strict
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.registry import DATASETS, MODELS

CONTROLS = ('fixed', 'random')
Result = tuple[np.ndarray, float]  # which pictures are right, mean multiply-adds a picture


def batches(model: Any, config: dict, pipeline: list[dict], part: slice) -> tuple[list[Tensor], Tensor]:
    """Inputs of the model in batches of 100, and labels (N,), of a data set's part."""
    dataset = DATASETS.build({k: v for k, v in config.items() if k != 'indices'} | {'pipeline': pipeline})
    rows = [dataset[i] for i in range(*part.indices(len(dataset)))]
    groups = [rows[i : i + 100] for i in range(0, len(rows), 100)]
    inputs = [model.data_preprocessor({'inputs': [r['inputs'] for r in group]}, False)['inputs'] for group in groups]
    return inputs, torch.tensor([r['data_samples'].gt_label for r in rows])


def evaluate(model: Any, inputs: list[Tensor], labels: Tensor) -> Result:
    """Run the sparse model over all pictures."""
    logits, macs = [], []
    with torch.no_grad():
        for x in inputs:
            with dynamic.record(model) as stats:
                logits.append(model(x))
            macs += [entry.macs for entry in stats.entries]
    return (torch.cat(logits).argmax(1) == labels).numpy(), float(torch.cat(macs).mean())


def mixed_at(results: list[Result], macs: float) -> np.ndarray:
    """(N,) share of ``results`` that are right on each picture, neighbours mixed so that they cost ``macs``."""
    ordered = sorted(results, key=lambda result: result[1])
    costs = [cost for _, cost in ordered]
    weights = [np.interp(macs, costs, np.eye(len(costs))[k]) for k in range(len(costs))]
    return sum(weight * right for weight, (right, _) in zip(weights, ordered, strict=True))  # type: ignore[return-value]


def measure(model: Any, cfg: Any, budgets: list[float]) -> tuple[dict[tuple[str, str], Result], float]:
    """(policy, setting) -> result, and the dense network's multiply-adds."""
    pipeline = cfg.val_dataloader.dataset.pipeline
    train = cfg.train_dataloader.dataset
    fitting, _ = batches(model, train, pipeline, slice(train.indices, None))
    inputs, labels = batches(model, cfg.val_dataloader.dataset, pipeline, slice(None))
    dynamic.set_execution(model, 'sparse')
    results: dict[tuple[str, str], Result] = {}
    for number in range(decisions(model)[0].count):  # type: ignore[arg-type]
        dynamic.set_policy(model, 'fixed', number)
        results['fixed', str(number)] = evaluate(model, inputs, labels)
    for kind in ('learned', 'random'):
        torch.manual_seed(0)
        dynamic.set_policy(model, kind)
        # blind choices cost the same on any picture
        calibration = dynamic.calibrate(model, fitting if kind == 'learned' else fitting[:1])
        for budget in budgets:
            if budget >= calibration.shares[-1]:
                dynamic.set_budget(model, budget)
                results[kind, str(budget)] = evaluate(model, inputs, labels)
    return results, dynamic.network_macs(model, lambda: model(inputs[0][:1]), 1)


def to_bits(right: np.ndarray) -> str:
    """Which pictures are right, a character each."""
    return ''.join('01'[hit] for hit in right.tolist())


def from_bits(bits: str) -> np.ndarray:
    """What :func:`to_bits` wrote."""
    return np.array(list(bits)) == '1'


def keep(path: Path, results: dict[tuple[str, str], Result], dense: float) -> None:
    """Write what :func:`measure` found, picture by picture."""
    rows = [
        dict(policy=kind, setting=setting, macs=macs, right=to_bits(right))
        for (kind, setting), (right, macs) in results.items()
    ]
    with atomic(path) as partial:
        partial.write_text(json.dumps(dict(dense=dense, rows=rows), indent=1) + '\n')


def kept(path: Path) -> tuple[dict[tuple[str, str], Result], float]:
    """What :func:`keep` wrote."""
    found = json.loads(path.read_text())
    results = {(r['policy'], r['setting']): (from_bits(r['right']), r['macs']) for r in found['rows']}
    return results, found['dense']


def compared(results: dict[tuple[str, str], Result]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """As ``results``, with the (N,) share of fixed and of random choices at equal cost that are right on each picture."""
    controls = [[found for (kind, _), found in results.items() if kind == control] for control in CONTROLS]
    return {
        key: (right, macs, *(mixed_at(control, macs) for control in controls)) for key, (right, macs) in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument(
        '--kept', type=Path, metavar='DIR', help='write there what each checkpoint found, picture by picture'
    )
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    cfg = load_config(args.config)
    found = []
    for seed, checkpoint in enumerate(args.checkpoints):
        if checkpoint.endswith('.json'):
            results, dense = kept(Path(checkpoint))
        else:
            model: Any = MODELS.build(cfg.model)
            load_strict(model, safe_load(checkpoint)['state_dict'], checkpoint)
            results, dense = measure(model.eval(), cfg, args.budgets)
            if args.kept:
                keep(args.kept / f'{Path(args.config).stem}-{seed}.json', results, dense)
        found.append(compared(results))
    count = len(next(iter(found[0].values()))[0])
    rows = []
    for kind, setting in found[0]:
        seeds = [results[kind, setting] for results in found if (kind, setting) in results]
        right, macs, *controls = (np.mean([seed[part] for seed in seeds], 0) for part in range(2 + len(CONTROLS)))
        row = {
            'policy': kind,
            'setting': setting,
            'macs_mean': round(float(macs)),
            'share': f'{macs / dense:.3f}',
            'accuracy': f'{right.mean():.4f}',
            'accuracy_seeds': ' '.join(f'{seed[0].mean():.3f}' for seed in seeds),
        }
        for name, control in zip(CONTROLS, controls, strict=True):
            low, high = mean_interval(right - control)
            row |= {
                f'{name}_at_equal_macs': f'{control.mean():.4f}',
                f'minus_{name}_low': f'{low:+.4f}',
                f'minus_{name}_high': f'{high:+.4f}',
            }
        rows.append(row | {'pictures': count, 'command': f'python {shlex.join(sys.argv)}'})
    print(table([tuple(rows[0])[:-1], *(tuple(str(v) for v in r.values())[:-1] for r in rows)]))
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
