"""A trained SAFD: average precision, multiply-adds and time of its zooms, of the fixed pyramid, random and single zooms.

The times are the thread's processor time, mean a picture, loading and post-processing included; all rows are of the same
pictures, one after the other. ``--static`` adds the row of a detector of all sizes, which sees them as they are.

    python benchmarks/safd_zooms.py CONFIG CHECKPOINT --static CONFIG CHECKPOINT --out CSV
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction
from mmengine.runner import Runner

from eff_plugins import dynamic
from eff_plugins.engine.calibration import in_process
from eff_plugins.engine.runs import build_runner, friendly, load_config, table
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
    cfg = load_config(config, tempfile.mkdtemp(), args.cfg_options)
    cfg.load_from = checkpoint
    cfg.test_dataloader = in_process(cfg.test_dataloader) | dict(batch_size=1)
    if args.count:
        cfg.test_dataloader.dataset.indices = args.count
    return build_runner(cfg)


def measured(runner: Runner) -> dict[str, Any]:
    """Average precision and the time a picture."""
    torch.manual_seed(0)
    with threads(1):
        start = time.thread_time()
        metrics = runner.test()
        spent = time.thread_time() - start
    pictures = len(runner.test_dataloader.dataset)
    return {
        'AP50': metrics.get('coco/bbox_mAP_50', 0.0),
        'AP': metrics.get('coco/bbox_mAP', 0.0),
        'cpu_ms': f'{1000 * spent / pictures:.1f}',
        'pictures': pictures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument(
        '--static', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='a detector of all sizes, as trained'
    )
    parser.add_argument('--size', type=int, nargs=2, default=(320, 320), help="pictures' height and width")
    parser.add_argument('--count', type=int, help='pictures, by default all of val')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, of both configs')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    command, rows = f'python {shlex.join(sys.argv)}', []
    picture = torch.zeros(3, *args.size)

    def add(name: str, found: dict[str, Any], macs: torch.Tensor) -> None:
        spread = dict(macs_mean=round(float(macs.mean())), macs_std=round(float(macs.std(correction=0))))
        rows.append({'policy': name, **found, **spread, 'command': command})
        print(rows[-1], flush=True)

    runner = tester(args.config, args.checkpoint, args)
    model: Any = dynamic.set_execution(runner.model, 'sparse')
    for number in range(len(model.spn.centres)):  # counts each size once, so that the counting is not timed
        model.zoom_macs(picture, number)
    for name, switch in cases(model).items():
        switch()
        with dynamic.record(model) as stats:
            found = measured(runner)
        add(name, found, torch.cat([entry.macs for entry in stats.entries]))
    if args.static:
        runner = tester(*args.static, args)
        with torch.no_grad():
            macs = count_macs(runner.model.eval(), lambda: runner.model(picture[None], mode='tensor'))['']
        add('static', measured(runner), torch.tensor([float(macs)]))
    print(table([tuple(rows[0])[:-1], *(tuple(str(v) for v in r.values())[:-1] for r in rows)]))
    if args.out:
        write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
