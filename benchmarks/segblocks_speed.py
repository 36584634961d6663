"""Time SegBlocks or SBNet against its plain backbone, equally prepared; one row a network, size and density.

Both have the same weights: BatchNorm folded, channels-last, weights packed, activations and sums fused. They are timed in
turn on one thread. Decisions are synthetic: as many random blocks in full resolution (with SBNet: computed) as the density
says, other ones in each round; the policy's own time is included. ``realised_saving`` is the share of time that is saved over
the share of multiply-adds that is saved, where any are.

    OMP_NUM_THREADS=1 python benchmarks/segblocks_speed.py --out benchmarks/results/segblocks_speed.csv
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.engine.runs import friendly, table
from eff_plugins.models.image.inverted_residual import InvertedResidualNet
from eff_plugins.models.image.resnet import ResNet
from eff_plugins.models.spatial.sbnet import SBNet
from eff_plugins.models.spatial.segblocks import SegBlocks
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.profiling.latency import device_name, paired_ratio, threads, time_interleaved

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'resnet18': lambda: ResNet(18),
    'resnet50': lambda: ResNet(50),
    'efficientnet_lite0': lambda: InvertedResidualNet('efficientnet_lite0'),
}
WARMUP = 3
KINDS = {'segblocks': SegBlocks, 'sbnet': SBNet}


class AtDensity:
    """The network with another synthetic decision at each call."""

    def __init__(self, network: SegBlocks | SBNet, x: Tensor, density: float) -> None:
        self.network, self.x, self.density = network, x, density
        self.seed = 0

    def __call__(self) -> None:
        self.seed += 1
        torch.manual_seed(self.seed)
        self.network.decide.density = self.density
        self.network(self.x)


@torch.no_grad()
def measure(name: str, size: tuple[int, int], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each density."""
    torch.manual_seed(0)
    static = NETWORKS[name]().eval()
    network: Any = KINDS[args.kind](copy.deepcopy(static), block_size=args.block_size).eval()
    how = Preparation(prepack=True)
    static, network = prepare(static, how), prepare(network, how)
    x = how.inputs(torch.randn(args.batch_size, 3, *size))
    dynamic.set_policy(dynamic.set_execution(network, 'sparse'), 'random')
    dense = dynamic.network_macs(network, lambda: network(x), args.batch_size)
    calls = {density: AtDensity(network, x, density) for density in args.densities}
    dynamic.measure_break_even(network, lambda: network(x))
    functions: dict[str, Callable[[], Any]] = {'dense': lambda: static(x)}
    times = time_interleaved(functions | {str(d): call for d, call in calls.items()}, args.repeats, warmup=WARMUP)
    rows = []
    for density, call in calls.items():
        shares, densities = [], []
        call.seed = WARMUP  # those that were timed
        for _ in range(args.repeats):
            with dynamic.record(network) as stats:
                call()
            shares.append(float(stats.share(dense)))
            densities.append(float(stats.entries[0].density.mean()))
        ratio, share = paired_ratio(times[str(density)], times['dense']), sum(shares) / len(shares)
        rows.append(
            dict(
                model=f'{args.kind}-{args.block_size}_{name}',
                execution='sparse',
                policy='synthetic',
                budget=round(share, 4),
                batch_size=args.batch_size,
                input_size=f'{size[0]}x{size[1]}',
                device=device_name('cpu'),
                threads=args.threads,
                dtype='float32',
                torch=torch.__version__,
                macs_mean=round(share * dense),
                macs_std=round(float(torch.tensor(shares).std()) * dense),
                latency_ms_p50=round(times[str(density)].p50, 2),
                latency_ms_p90=round(times[str(density)].p90, 2),
                t_dense_ms=round(times['dense'].p50, 2),
                ratio=round(ratio.median, 4),
                ratio_low=round(ratio.low, 4),
                ratio_high=round(ratio.high, 4),
                realised_saving=round((1 - ratio.median) / (1 - share), 3) if share < 1 else '',
                density=round(sum(densities) / len(densities), 3),
                load_average=round(os.getloadavg()[0], 1),
                command=f'python {shlex.join(sys.argv)}',
            )
        )
    return rows


def size_of(text: str) -> tuple[int, int]:
    """``360x480`` -> (360, 480)."""
    try:
        high, wide = map(int, text.split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no size such as 360x480') from None
    return high, wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kind', default='segblocks', choices=list(KINDS))
    parser.add_argument('--networks', nargs='+', default=['resnet18', 'efficientnet_lite0'], choices=list(NETWORKS))
    parser.add_argument('--sizes', type=size_of, nargs='+', default=[(360, 480), (512, 1024)], metavar='HxW')
    parser.add_argument('--densities', type=float, nargs='+', default=[0.3, 0.5, 0.7])
    parser.add_argument('--block-size', type=int, default=128)
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    shown = ('model', 'input_size', 'density', 'budget', 'latency_ms_p50', 't_dense_ms', 'ratio', 'realised_saving')
    with threads(args.threads):
        for name in args.networks:
            for size in args.sizes:
                rows += measure(name, size, args)
                if args.out:
                    write_csv(args.out, rows)
                print(table([shown, *([str(row[key]) for key in shown] for row in rows)]), flush=True)


if __name__ == '__main__':
    friendly(main)
