"""mIoU against measured milliseconds of a trained SegBlocks segmentor at several budgets, without retraining.

The threshold is calibrated on training pictures. Each picture of val is then segmented by the plain network (``dense``) and,
at each budget, with learned and with random decisions, one after the other, so that times are compared in pairs. All are
prepared alike: BatchNorm folded, channels-last, weights packed.

    python benchmarks/segblocks_camvid.py CONFIG CHECKPOINT --out benchmarks/results/segblocks_camvid.csv
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from eff_plugins import adapt, dynamic
from eff_plugins.compat.loading import safe_load
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.engine.calibration import in_process
from eff_plugins.engine.runs import friendly, load_config, table
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import Latency, device_name, paired_ratio, threads

IGNORED = 255


class Setting:
    """One way of running the model, and what came of it."""

    def __init__(self, policy: str, budget: float | None, knob: float, classes: int) -> None:
        self.policy, self.budget, self.knob = policy, budget, knob
        self.confusion = np.zeros((classes, classes), np.int64)
        self.ms: list[float] = []
        self.shares: list[float] = []
        self.densities: list[float] = []

    def apply(self, model: Any) -> None:
        """Switch the model to it."""
        dynamic.set_execution(model, 'dense' if self.budget is None else 'sparse')
        dynamic.set_policy(model, self.policy)
        for decide in dynamic.module.decisions(model):
            setattr(decide, 'threshold' if self.policy == 'learned' else 'density', self.knob)

    def miou(self) -> float:
        """Mean over the classes that occur, in per cent."""
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        return 100 * float(np.mean(hit[union > 0] / union[union > 0]))


def segment(model: Any, x: Tensor, labels: Tensor, setting: Setting) -> None:
    """Time the model on one picture and add up what it got right."""
    setting.apply(model)
    start = time.perf_counter_ns()
    logits = model(x, mode='tensor')
    setting.ms.append((time.perf_counter_ns() - start) / 1e6)
    logits = torch.nn.functional.interpolate(logits, x.shape[2:], mode='bilinear')
    found = logits.argmax(1)[:, : labels.shape[1], : labels.shape[2]]
    valid = labels != IGNORED
    classes = len(setting.confusion)
    pairs = (labels[valid] * classes + found[valid]).numpy()
    setting.confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def inputs(loader: Any, model: Any, count: int | None) -> Any:
    """(picture, labels) of the loader's first ``count`` items."""
    for data in islice(loader, count):
        batch = model.data_preprocessor(data, False)
        labels = batch['data_samples'][0].gt_sem_seg.data.long()
        yield batch['inputs'].contiguous(memory_format=torch.channels_last), labels


def calibrated(model: Any, pictures: list[Tensor], args: argparse.Namespace, classes: int) -> list[Setting]:
    """The plain network, and each policy at each budget."""
    settings = [Setting('all', None, 1.0, classes)]
    for policy in ('learned', 'random'):
        dynamic.set_policy(model, policy)
        torch.manual_seed(0)
        found = dynamic.calibrate(model, pictures, lambda network, x: network(x, mode='tensor'))
        settings += [Setting(policy, budget, found.knob(budget), classes) for budget in args.budgets]
    return settings


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.55, 0.7, 0.85])
    parser.add_argument('--calibrate', type=int, default=24, help='training pictures')
    parser.add_argument('--pictures', type=int, help='of val; by default all')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    cfg = adapt(load_config(args.config))
    loaded = safe_load(args.checkpoint)
    for name in ('train', 'val'):
        cfg[f'{name}_dataloader'] = in_process(cfg[f'{name}_dataloader']) | dict(batch_size=1)
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.train_dataloader.sampler.shuffle = False
    with threads(1):
        model: Any = MODELS.build(dict(cfg.model, _scope_='mmseg'))
        model.load_state_dict(loaded['state_dict'])
        model = prepare(model.eval(), Preparation(prepack=True))
        train = [x for x, _ in inputs(Runner.build_dataloader(cfg.train_dataloader), model, args.calibrate)]
        settings = calibrated(model, train, args, model.decode_head.num_classes)
        totals: dict[tuple[int, ...], float] = {}
        for x, labels in inputs(Runner.build_dataloader(cfg.val_dataloader), model, args.pictures):
            if tuple(x.shape) not in totals:
                totals[tuple(x.shape)] = dynamic.network_macs(model, lambda x=x: model(x, mode='tensor'), 1)
            for number, setting in enumerate(settings):
                torch.manual_seed(len(setting.ms))
                segment(model, x, labels, setting)
                if number:
                    torch.manual_seed(len(setting.ms) - 1)
                    with dynamic.record(model) as stats:
                        model(x, mode='tensor')
                    setting.shares.append(float(stats.share(totals[tuple(x.shape)])))
                    setting.densities.append(float(stats.entries[0].density.mean()))
    report(settings, sum(totals.values()) / len(totals), args)


def report(settings: list[Setting], total: float, args: argparse.Namespace) -> None:
    """Print and write a row a setting."""
    rows = []
    dense = Latency(tuple(settings[0].ms))
    for setting in settings:
        latency = Latency(tuple(setting.ms))
        share = float(np.mean(setting.shares or [1.0]))
        ratio = paired_ratio(latency, dense)
        rows.append(
            dict(
                model=Path(args.config).stem,
                execution='dense' if setting.budget is None else 'sparse',
                policy=setting.policy,
                budget=setting.budget,
                share=round(share, 4),
                density=round(float(np.mean(setting.densities or [1.0])), 3),
                mIoU=round(setting.miou(), 2),
                pictures=len(setting.ms),
                macs_mean=round(share * total),
                latency_ms_p50=round(latency.p50, 2),
                latency_ms_p90=round(latency.p90, 2),
                t_dense_ms=round(dense.p50, 2),
                ratio=round(ratio.median, 4),
                ratio_low=round(ratio.low, 4),
                ratio_high=round(ratio.high, 4),
                realised_saving=None if setting.budget is None else round((1 - ratio.median) / (1 - share), 3),
                device=device_name('cpu'),
                threads=1,
                torch=torch.__version__,
                command=f'python {shlex.join(sys.argv)}',
            )
        )
    if args.out:
        write_csv(args.out, rows)
    shown = ('policy', 'budget', 'share', 'mIoU', 'latency_ms_p50', 'ratio', 'realised_saving')
    print(table([shown, *([str(row[key]) for key in shown] for row in rows)]))


if __name__ == '__main__':
    friendly(main)
