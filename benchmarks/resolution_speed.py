"""Time RANet's exits and DRNet's resolutions against their dense networks, and DRNet against a static network of either size.

All have random weights and decisions made for the purpose (``synthetic``): what is timed is the learned policy's own path,
classifiers on the way and predictor included. Both sides have BatchNorm folded, channels-last order and one thread, and are
timed in turn; DRNet and its static networks have packed weights, which RANet's small convolutions gain nothing from.
``realised_saving`` is the saved share of the time over that of the multiply-adds.

* RANet, batch 1: every picture leaves at one exit.
* RANet, larger batches: thresholds spread each batch over the exits (shares proportional to q^k); it is regrouped at each.
* DRNet: all pictures at one resolution, or equal shares of all. ``of_static`` is its saving over that of the static network
  between the same resolutions, computed at that mixture.

``cpu_...`` columns are the thread's own processor time, which other processes on a shared machine disturb far less.

    python benchmarks/resolution_speed.py --out benchmarks/results/resolution_speed.csv
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from static_speed import OnTwoClocks
from torch import Tensor, nn

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.choices import geometric_shares
from eff_plugins.dynamic.exits import confidence, fit_thresholds
from eff_plugins.engine.runs import friendly, load_config, table
from eff_plugins.models.resolution.drnet import DRNet
from eff_plugins.models.resolution.norm import at_resolution
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import Latency, device_name, paired_ratio, threads, time_interleaved
from eff_plugins.profiling.subjects import pictures
from eff_plugins.registry import MODELS

CONFIGS = Path(__file__).parents[1] / 'configs' / 'ranet'
# name -> (config, side of its pictures)
RANETS = {
    'ranet-lg2-scales123': ('ranet-lg2-scales123_cifar10.py', 32),
    'ranet-even8-scales1234': ('ranet-even8-scales1234_8xb128_in1k.py', 224),
}
HOST = dict(
    backbone=dict(type='ResNeXt', arch='resnet50', out_indices=(3,)),
    head=dict(type='LinearClsHead', in_channels=2048, num_classes=1000),
)
SHOWN = ('model', 'case', 'batch_size', 'macs_mean', 'latency_ms_p50', 't_dense_ms', 'realised_saving', 'cpu_realised_saving',
         'of_static', 'cpu_of_static')  # fmt: skip


class Timed:
    """Latencies of several calls in one interleaved run, by the wall clock and by the thread's processor time."""

    def __init__(self, calls: dict[str, Callable[[], Any]], repeats: int) -> None:
        clocks = {name: OnTwoClocks(_Call(call), torch.empty(0)) for name, call in calls.items()}
        self.wall = time_interleaved(clocks, repeats, warmup=2, min_ms=0)
        self.cpu = {name: Latency(tuple(clock.cpu_ms[-repeats:])) for name, clock in clocks.items()}

    def ratio(self, name: str, against: str) -> tuple[float, float]:
        """Median of the paired ratios of the two clocks."""
        wall = paired_ratio(self.wall[name], self.wall[against]).median
        return wall, paired_ratio(self.cpu[name], self.cpu[against]).median


class _Call(nn.Module):
    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call()


def row(name: str, case: str, x: Tensor, timed: Timed, macs: Tensor, dense: float, args: argparse.Namespace) -> dict:
    """A row of the suite's schema for the call ``case`` beside the call ``'dense'``."""
    wall, cpu = timed.ratio(case, 'dense')
    saved = 1 - float(macs.mean()) / dense
    return {
        'model': name,
        'case': case,
        'execution': 'sparse',
        'policy': 'synthetic',
        'budget': f'{1 - saved:.4f}',
        'batch_size': len(x),
        'input_size': x.shape[-1],
        'device': device_name('cpu'),
        'threads': 1,
        'dtype': 'float32',
        'torch': torch.__version__,
        'macs_mean': round(float(macs.mean())),
        'macs_std': round(float(macs.std(correction=0))),
        'latency_ms_p50': f'{timed.wall[case].p50:.3f}',
        'latency_ms_p90': f'{timed.wall[case].p90:.3f}',
        't_dense_ms': f'{timed.wall["dense"].p50:.3f}',
        # the last exit saves nothing: it costs the classifiers on the way more than the dense network
        'realised_saving': f'{(1 - wall) / saved:.3f}' if saved > 0.02 else '',
        'density': f'{1 - saved:.4f}',
        'cpu_ms_p50': f'{timed.cpu[case].p50:.3f}',
        'cpu_dense_ms': f'{timed.cpu["dense"].p50:.3f}',
        'cpu_realised_saving': f'{(1 - cpu) / saved:.3f}' if saved > 0.02 else '',
        'of_static': '',
        'cpu_of_static': '',
        'rounds': args.repeats,
        'load_average': f'{os.getloadavg()[0]:.1f}',
        'command': f'python {shlex.join(sys.argv)}',
    }


def ranet_rows(name: str, batch_size: int, args: argparse.Namespace) -> list[dict]:
    config, side = RANETS[name]
    torch.manual_seed(0)
    how = Preparation()
    net = MODELS.build(load_config(str(CONFIGS / config)).model).backbone
    net.init_weights()
    net = dynamic.set_execution(prepare(net, how), 'sparse')  # type: ignore[assignment]
    x = how.inputs(pictures(batch_size, side, 'real', 1)[0])
    count = net.policy.count
    with torch.no_grad():
        confidences = torch.stack([confidence(part) for part in net.anytime(x)], 1)
    if batch_size == 1:
        cases = {f'exit {k}': tuple(0.0 if j == k else 1.0 for j in range(count - 1)) for k in range(count)}
    else:
        cases = {f'q {q}': fit_thresholds(confidences, geometric_shares(count, q)) for q in (0.4, 0.7, 1.0)}

    def run(thresholds: tuple[float, ...]) -> Tensor:
        net.execution, net.policy.thresholds = 'sparse', thresholds
        return net(x)

    def dense() -> Tensor:
        net.execution = 'dense'
        return net(x)

    rows = []
    timed = Timed({'dense': dense, **{case: partial(run, t) for case, t in cases.items()}}, args.repeats)
    for case, thresholds in cases.items():
        with dynamic.record(net) as stats, torch.no_grad():
            run(thresholds)
        (entry,) = stats.entries
        rows.append(row(name, case, x, timed, entry.macs, entry.dense_macs, args))
    return rows


def drnet_rows(batch_size: int, args: argparse.Namespace) -> list[dict]:
    torch.manual_seed(0)
    how = Preparation(prepack=True)
    trained = DRNet(**HOST)
    trained.init_weights()
    sides = trained.resolutions
    net: Any = dynamic.set_execution(prepare(trained, how), 'sparse')
    net.predictor.fc.weight.zero_()
    static = prepare(at_resolution(nn.Sequential(trained.backbone, trained.head), 0), how)
    x = how.inputs(pictures(batch_size, sides[0], 'real', 1)[0])
    smaller = {side: how.inputs(pictures(batch_size, side, 'real', 1)[0]) for side in sides}

    def fixed(index: int) -> Tensor:
        """The predictor runs, and its bias decides."""
        net.choose.kind = 'learned'
        net.predictor.fc.bias.copy_(torch.eye(len(sides))[index] * 100)
        return net(x)

    def mixed() -> Tensor:
        # the same split each round: a library that compiles for each new batch size has met it before
        torch.manual_seed(0)
        net.choose.kind = 'random'
        return net(x)

    calls: dict[str, Callable[[], Any]] = {'dense': partial(static, x)}
    calls |= {f'static {side}': partial(static, smaller[side]) for side in sides[1:]}
    cases: dict[str, Callable[[], Any]] = {f'{side}': partial(fixed, index) for index, side in enumerate(sides)}
    if batch_size > 1:
        cases['mixed'] = mixed
    rows = []
    timed = Timed({**calls, **cases}, args.repeats)
    share = {side: (1.0, 1.0) if side == sides[0] else timed.ratio(f'static {side}', 'dense') for side in sides}
    for case, call in cases.items():
        with dynamic.record(net) as stats, torch.no_grad():
            call()
        (entry,) = stats.entries
        one = row('drnet-resnet50', case, x, timed, entry.macs, entry.dense_macs, args)
        chosen = [share[sides[k]] for k in entry.choice.tolist()]  # type: ignore[union-attr]
        for clock, key in enumerate(('of_static', 'cpu_of_static')):
            saving = 1 - sum(part[clock] for part in chosen) / len(chosen)
            if saving > 0.02:
                one[key] = f'{(1 - timed.ratio(case, "dense")[clock]) / saving:.3f}'
        rows.append(one)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='*', choices=[*RANETS, 'drnet-resnet50', []], help='default: all')
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1, 32])
    parser.add_argument('--repeats', type=int, default=30, help='rounds')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    rows: list[dict] = []
    with torch.no_grad(), threads(1):
        for name in args.models or [*RANETS, 'drnet-resnet50']:
            for batch_size in args.batch_size:
                fresh = ranet_rows(name, batch_size, args) if name in RANETS else drnet_rows(batch_size, args)
                rows += fresh
                print(table([SHOWN, *([str(r[key]) for key in SHOWN] for r in fresh)]), flush=True)
                if args.out:
                    write_csv(args.out, rows)


if __name__ == '__main__':
    friendly(main)
