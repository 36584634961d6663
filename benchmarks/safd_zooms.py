"""A trained SAFD: average precision, multiply-adds and time of its zooms, of the fixed pyramid, random and single zooms.

The times are the thread's processor time, mean a picture, loading and post-processing included; all rows are of the same
pictures, one after the other. With several checkpoints, of one config and several seeds, all are means over them.
``--static`` adds the row of a detector of all sizes, which sees them as they are. The intervals are those of the difference
in AP50 from the fixed pyramid (paired bootstrap over the pictures).

    python benchmarks/safd_zooms.py CONFIG CHECKPOINT ... --static CONFIG CHECKPOINT ... --out CSV
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.runner import Runner

from eff_plugins import dynamic
from eff_plugins.engine.calibration import in_process
from eff_plugins.engine.runs import build_runner, friendly, load_config, table
from eff_plugins.evaluation.bootstrap import CocoPictures, paired_interval, resampled
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import threads
from eff_plugins.profiling.macs import count_macs


def cases(model: Any) -> dict[str, Callable[[], None]]:
    """What each row switches on."""
    policy, pyramid = model.policy, model.policy.pyramid.clone()

    def only(level: int | None, kind: str) -> None:
        policy.pyramid.copy_(pyramid)
        if level is not None:
            policy.pyramid.zero_()
            policy.pyramid[level] = True
        policy.kind = kind

    def random(density: float) -> None:
        only(None, 'random')
        policy.density = density

    def learned(threshold: float) -> None:
        only(None, 'learned')
        policy.threshold = threshold

    found: dict[str, Callable[[], None]] = {
        f'learned, threshold {threshold}': lambda threshold=threshold: learned(threshold)  # type: ignore[misc]
        for threshold in (0.4, 0.6, 0.8)
    }
    found['pyramid'] = lambda: only(None, 'all')
    found |= {f'random {density}': lambda density=density: random(density) for density in (0.25, 0.5)}  # type: ignore[misc]
    for level in pyramid.nonzero().flatten().tolist():
        found[f'zoom of level {level}'] = lambda level=level: only(level, 'all')  # type: ignore[misc]
    return found


def tester(config: str, checkpoint: str, args: argparse.Namespace) -> Runner:
    """What tests a checkpoint on the pictures, one at a time in this process."""
    folder = tempfile.mkdtemp()
    cfg = load_config(config, folder, args.cfg_options)
    cfg.load_from = checkpoint
    cfg.test_dataloader = in_process(cfg.test_dataloader) | dict(batch_size=1)
    cfg.test_evaluator.outfile_prefix = f'{folder}/found'
    if args.count:
        cfg.test_dataloader.dataset.indices = args.count
    return build_runner(cfg)


def measured(runner: Runner, seed: int) -> dict[str, Any]:
    """Average precision, of each draw of the pictures, too, and the time a picture."""
    torch.manual_seed(seed)
    with threads(1):
        start = time.thread_time()
        metrics = runner.test()
        spent = time.thread_time() - start
    pictures = CocoPictures.of(runner.test_evaluator.metrics[0], [0.5])
    return dict(
        AP50=metrics.get('coco/bbox_mAP_50', 0.0),
        AP=metrics.get('coco/bbox_mAP', 0.0),
        cpu_ms=1000 * spent / pictures.pictures,
        pictures=pictures.pictures,
        draws=resampled(lambda times: pictures.ap(times)[0], pictures.pictures),
    )


def zooms(checkpoint: str, seed: int, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(row, what was found) of one checkpoint."""
    runner = tester(args.config, checkpoint, args)
    model: Any = dynamic.set_execution(runner.model, 'sparse')
    for number in range(len(model.spn.centres)):  # counts each size once, so that the counting is not timed
        model.zoom_macs(torch.zeros(3, *args.size), number)
    for name, switch in cases(model).items():
        switch()
        with dynamic.record(model) as stats:
            found = measured(runner, seed)
        yield name, found | dict(macs=torch.cat([entry.macs for entry in stats.entries]))


def static(checkpoint: str, seed: int, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """As :func:`zooms`, of one detector of all sizes."""
    runner = tester(args.static[0], checkpoint, args)
    with torch.no_grad():
        picture = torch.zeros(1, 3, *args.size)
        macs = count_macs(runner.model.eval(), lambda: runner.model(picture, mode='tensor'))['']
    yield 'static', measured(runner, seed) | dict(macs=torch.tensor([float(macs)]))


def row(name: str, seeds: list[dict[str, Any]], pyramid: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""
    macs = torch.cat([seed['macs'] for seed in seeds])
    low, high = paired_interval([seed['draws'] for seed in seeds], [seed['draws'] for seed in pyramid])
    return {
        'policy': name,
        'AP50': f'{np.mean([seed["AP50"] for seed in seeds]):.3f}',
        'AP': f'{np.mean([seed["AP"] for seed in seeds]):.3f}',
        'AP50_seeds': ' '.join(f'{seed["AP50"]:.3f}' for seed in seeds),
        'minus_pyramid_low': f'{low:+.3f}',
        'minus_pyramid_high': f'{high:+.3f}',
        'cpu_ms': f'{np.mean([seed["cpu_ms"] for seed in seeds]):.1f}',
        'pictures': seeds[0]['pictures'],
        'macs_mean': round(float(macs.mean())),
        'macs_std': round(float(macs.std(correction=0))),
        'command': f'python {shlex.join(sys.argv)}',
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT')
    parser.add_argument(
        '--static', nargs='+', default=[], metavar=('CONFIG', 'CHECKPOINT'), help='detectors of all sizes, as trained'
    )
    parser.add_argument('--size', type=int, nargs=2, default=(320, 320), help="pictures' height and width")
    parser.add_argument('--count', type=int, help='pictures, by default all of val')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, of both configs')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    if len(args.static) == 1:
        parser.error('--static takes a config and one or more checkpoints')
    found: dict[str, list[dict[str, Any]]] = {}
    for measure, checkpoints in ((zooms, args.checkpoints), (static, args.static[1:])):
        for seed, checkpoint in enumerate(checkpoints):
            for name, one in measure(checkpoint, seed, args):
                found.setdefault(name, []).append(one)
    rows = [row(name, seeds, found['pyramid']) for name, seeds in found.items()]
    print(table([tuple(rows[0])[:-1], *(tuple(str(v) for v in r.values())[:-1] for r in rows)]))
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
