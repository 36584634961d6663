"""mIoU against measured milliseconds of a trained SegBlocks segmentor at several budgets, without retraining.

The threshold is calibrated on training pictures. Each picture of val is then segmented by the plain network (``dense``) and,
at each budget, with learned and with random decisions, one after the other, so that times are compared in pairs. All are
prepared alike: BatchNorm folded, channels-last, weights packed. With several checkpoints, of one config and several seeds,
all are means over them. ``static`` is a segmentor without blocks that was trained alike. The intervals are those of the
difference in mIoU (paired bootstrap over the pictures), in points, from the plain network, from random decisions at the same
budget and from the static segmentor.

    python benchmarks/segblocks_camvid.py CONFIG CHECKPOINT ... --static CONFIG CHECKPOINT ... --out CSV
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
from eff_plugins.evaluation.bootstrap import paired_interval, resampled
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import Latency, device_name, paired_ratio, threads

IGNORED = 255


class Setting:
    """One way of running the model, and what came of it."""

    def __init__(self, policy: str, budget: float | None, knob: float, classes: int) -> None:
        self.policy, self.budget, self.knob, self.classes = policy, budget, knob, classes
        self.confusions: list[np.ndarray] = []  # (classes, classes) of each picture
        self.ms: list[float] = []
        self.shares: list[float] = []
        self.densities: list[float] = []

    def apply(self, model: Any) -> None:
        """Switch the model to it."""
        dynamic.set_execution(model, 'dense' if self.budget is None else 'sparse')
        dynamic.set_policy(model, self.policy)
        for decide in dynamic.module.decisions(model):
            setattr(decide, 'threshold' if self.policy == 'learned' else 'density', self.knob)

    def miou(self, times: np.ndarray) -> float:
        """Mean over the classes that occur, in per cent, of the pictures taken ``times`` (N,) each."""
        confusion = np.tensordot(times, np.stack(self.confusions), 1)
        hit = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - hit
        return 100 * float(np.mean(hit[union > 0] / union[union > 0]))


def segment(model: Any, x: Tensor, labels: Tensor, setting: Setting) -> None:
    """Time the model on one picture and add up what it got right."""
    start = time.perf_counter_ns()
    logits = model(x, mode='tensor')
    setting.ms.append((time.perf_counter_ns() - start) / 1e6)
    logits = torch.nn.functional.interpolate(logits, x.shape[2:], mode='bilinear')
    found = logits.argmax(1)[:, : labels.shape[1], : labels.shape[2]]
    valid = labels != IGNORED
    pairs = (labels[valid] * setting.classes + found[valid]).numpy()
    counts = np.bincount(pairs, minlength=setting.classes**2)
    setting.confusions.append(counts.reshape(setting.classes, setting.classes))


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
        found = dynamic.calibrate(model, pictures, lambda network, x: network(x, mode='tensor'), args.budgets)
        settings += [Setting(policy, budget, found.knob(budget), classes) for budget in args.budgets]
    return settings


def load(config: str, checkpoint: str) -> tuple[Any, Any]:
    """Config and prepared segmentor; pictures come one at a time, those of training as those of val do."""
    cfg = adapt(load_config(config))
    for name in ('train', 'val'):
        cfg[f'{name}_dataloader'] = in_process(cfg[f'{name}_dataloader']) | dict(batch_size=1)
    cfg.train_dataloader.dataset.pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.train_dataloader.sampler.shuffle = False
    model: Any = MODELS.build(dict(cfg.model, _scope_='mmseg'))
    model.load_state_dict(safe_load(checkpoint)['state_dict'])
    return cfg, prepare(model.eval(), Preparation(prepack=True))


@torch.no_grad()
def measure(checkpoint: str, args: argparse.Namespace) -> tuple[list[Setting], float]:
    """All settings of one checkpoint, and the plain network's multiply-adds a picture."""
    with threads(1):
        cfg, model = load(args.config, checkpoint)
        train = [x for x, _ in inputs(Runner.build_dataloader(cfg.train_dataloader), model, args.calibrate)]
        settings = calibrated(model, train, args, model.decode_head.num_classes)
        totals: dict[tuple[int, ...], float] = {}
        for x, labels in inputs(Runner.build_dataloader(cfg.val_dataloader), model, args.pictures):
            if tuple(x.shape) not in totals:
                totals[tuple(x.shape)] = dynamic.network_macs(model, lambda x=x: model(x, mode='tensor'), 1)
            for number, setting in enumerate(settings):
                setting.apply(model)
                torch.manual_seed(len(setting.ms))
                segment(model, x, labels, setting)
                if number:
                    torch.manual_seed(len(setting.ms) - 1)
                    with dynamic.record(model) as stats:
                        model(x, mode='tensor')
                    setting.shares.append(float(stats.share(totals[tuple(x.shape)])))
                    setting.densities.append(float(stats.entries[0].density.mean()))
    return settings, sum(totals.values()) / len(totals)


@torch.no_grad()
def measure_static(config: str, checkpoint: str, args: argparse.Namespace) -> Setting:
    """A segmentor without blocks."""
    with threads(1):
        cfg, model = load(config, checkpoint)
        setting = Setting('static', None, 1.0, model.decode_head.num_classes)
        for x, labels in inputs(Runner.build_dataloader(cfg.val_dataloader), model, args.pictures):
            segment(model, x, labels, setting)
    return setting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT')
    parser.add_argument('--budgets', type=float, nargs='+', default=[0.55, 0.7, 0.85])
    parser.add_argument('--calibrate', type=int, default=24, help='training pictures')
    parser.add_argument('--pictures', type=int, help='of val; by default all')
    parser.add_argument(
        '--static', nargs='+', default=[], metavar='CONFIG CHECKPOINT', help='a segmentor without blocks'
    )
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    if len(args.static) == 1:
        parser.error('--static needs a config and at least one checkpoint')
    measured = [measure(checkpoint, args) for checkpoint in args.checkpoints]
    seeds = [settings for settings, _ in measured]
    found = {(one[0].policy, one[0].budget): list(one) for one in zip(*seeds, strict=True)}
    if args.static:
        found['static', None] = [measure_static(args.static[0], checkpoint, args) for checkpoint in args.static[1:]]
    report(found, measured[0][1], args)


def report(found: dict[tuple[str, float | None], list[Setting]], total: float, args: argparse.Namespace) -> None:
    """Print and write a row a setting, each measured with every seed."""
    rows = []
    count = len(found['all', None][0].ms)
    mious = {key: [resampled(seed.miou, count) for seed in seeds] for key, seeds in found.items()}
    dense = Latency(tuple(ms for seed in found['all', None] for ms in seed.ms))
    for (policy, budget), seeds in found.items():
        latency = Latency(tuple(ms for seed in seeds for ms in seed.ms))
        share = float(np.mean([share for seed in seeds for share in seed.shares or [1.0]]))
        each = [seed.miou(np.ones(count, int)) for seed in seeds]
        row = dict(
            model=Path(args.config).stem,
            execution='dense' if budget is None else 'sparse',
            policy=policy,
            budget=budget,
            share=round(share, 4),
            density=round(float(np.mean([density for seed in seeds for density in seed.densities or [1.0]])), 3),
            mIoU=round(float(np.mean(each)), 2),
            mIoU_seeds=' '.join(f'{miou:.2f}' for miou in each),
        )
        for name, other in (('dense', ('all', None)), ('random', ('random', budget)), ('static', ('static', None))):
            ends = paired_interval(mious[policy, budget], mious[other]) if other in mious else (None, None)
            low, high = (None if end is None else round(end, 2) for end in ends)
            row |= {f'minus_{name}_low': low, f'minus_{name}_high': high}
        times = {}
        if policy != 'static':  # which is the plain network again, and not timed in turn with the others
            ratio = paired_ratio(latency, dense)
            times = dict(
                latency_ms_p50=round(latency.p50, 2),
                latency_ms_p90=round(latency.p90, 2),
                t_dense_ms=round(dense.p50, 2),
                ratio=round(ratio.median, 4),
                ratio_low=round(ratio.low, 4),
                ratio_high=round(ratio.high, 4),
                realised_saving=None if budget is None else round((1 - ratio.median) / (1 - share), 3),
            )
        rows.append(
            row
            | dict(pictures=count, macs_mean=round(share * total))
            | times
            | dict(
                device=device_name('cpu'),
                threads=1,
                torch=torch.__version__,
                command=f'python {shlex.join(sys.argv)}',
            )
        )
    if args.out:
        write_csv(args.out, rows)
    shown = ('policy', 'budget', 'share', 'mIoU', 'mIoU_seeds', 'latency_ms_p50', 'ratio', 'realised_saving')
    print(table([shown, *([str(row.get(key)) for key in shown] for row in rows)]))


if __name__ == '__main__':
    friendly(main)
