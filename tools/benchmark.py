"""Time networks, alone or interleaved with a second one, dynamic ones at several budgets; write json, csv and a plot."""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import DictAction

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.deploy import Preparation
from eff_plugins.dynamic.module import is_dynamic
from eff_plugins.engine.runs import friendly
from eff_plugins.files import check_folder
from eff_plugins.profiling.benchmark import Settings, check_plan, compare, report, write_results
from eff_plugins.profiling.latency import busy_note
from eff_plugins.profiling.subjects import Subject, find_subject, split_specs
from eff_plugins.profiling.variants import Plan


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'models',
        nargs='+',
        metavar='MODEL|CONFIG [CKPT]',
        help='name of eff_plugins.list_models(), timm:NAME, tv:NAME (torchvision) or a config, which a checkpoint may follow',
    )
    parser.add_argument(
        '--against',
        metavar='MODEL',
        help="second model, timed in turn with each; 'oracle': each one's own of timm or torchvision",
    )
    parser.add_argument('--batch-size', type=int, nargs='+', default=[1, 8], metavar='B')
    parser.add_argument('--size', type=int, help='side of the input (default: 224, or what a config says)')
    parser.add_argument('--threads', type=int, default=1, help='of torch, on a CPU')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--dtype', default='float32', help='float32 or bfloat16')
    parser.add_argument('--channels-last', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--fuse', action=argparse.BooleanOptionalAction, default=True, help='fold BatchNorm')
    parser.add_argument(
        '--prepack',
        action=argparse.BooleanOptionalAction,
        help="pack the convolutions' weights for this processor, fuse activations and sums (default: for dynamic networks)",
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile (of a config: the backbone)')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--warmup', type=int, default=5)
    parser.add_argument(
        '--data',
        default='real',
        metavar='real|random|CONFIG',
        help="'real': a config's test set, else photographs; 'random': noise; a config: its test set",
    )
    dynamic = parser.add_argument_group('dynamic networks')
    dynamic.add_argument('--execution', nargs='+', default=[], metavar='E', help='of dense, masked, sparse; rows each')
    dynamic.add_argument(
        '--policy',
        nargs='+',
        default=[],
        metavar='P',
        help="of learned (default), random, all (on); without a checkpoint blind decisions at the budget, 'synthetic'",
    )
    dynamic.add_argument(
        '--budgets', type=float, nargs='+', default=[], metavar='B', help="shares of the dense network's multiply-adds"
    )
    dynamic.add_argument(
        '--calibration', metavar='JSON', help='of the learned policy (tools/test.py writes it); default: calibrate'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides for configs')
    parser.add_argument('--out', metavar='DIR', help='write benchmark.json, benchmark.csv and benchmark.png here')
    return parser.parse_args()


def oracle_of(spec: str) -> str:
    """The published implementation that a named network is checked against."""
    from eff_plugins.models.image.zoo import variant

    oracle = variant(spec).oracle
    if oracle is None:
        raise ValueError(f'{spec}: neither timm nor torchvision has this network; name another one with --against')
    return oracle


def prepacks(args: argparse.Namespace, subject: Subject) -> bool:
    """Whether to prepack; by default where a dynamic network must not look good by beating unpacked convolutions."""
    if args.prepack is not None:
        return args.prepack
    return args.fuse and args.device == 'cpu' and is_dynamic(subject.model)


def main() -> None:
    args = parse()
    how = Preparation(
        fuse=args.fuse, channels_last=args.channels_last, compile=args.compile, dtype=args.dtype, device=args.device
    )
    settings = Settings(tuple(args.batch_size), args.threads, args.size, args.repeats, args.warmup, args.data, how)
    plan = Plan(tuple(args.execution), tuple(args.policy), tuple(args.budgets), args.calibration)
    if args.calibration and not Path(args.calibration).is_file():
        raise FileNotFoundError(f'{args.calibration}: no such calibration; tools/test.py --calibration writes one')
    if args.out:
        check_folder(args.out)
    pairs = []
    for spec, checkpoint in split_specs(args.models):
        subject = find_subject(spec, checkpoint, args.cfg_options, args.size)
        check_plan(subject, plan, how)
        against = oracle_of(spec) if args.against == 'oracle' else args.against
        pairs.append((subject, find_subject(against, size=args.size) if against else None))
    extra = {'fused': args.fuse, 'channels_last': args.channels_last, 'compiled': args.compile, 'data': args.data}
    extra['prepacked'] = 'dynamic' if args.prepack is None else args.prepack
    extra['command'] = f'python {shlex.join(sys.argv)}'
    results = []
    for subject, other in pairs:
        own = replace(settings, how=replace(how, prepack=prepacks(args, subject)))
        try:
            results += compare(subject, other, own, plan)
        except Exception as error:
            if results:  # what has been timed is not lost
                print(report(results))
            if isinstance(error, (ValueError, OSError)):
                raise ValueError(f'{subject.name}: {str(error).removeprefix(f"{subject.name}: ")}') from error
            raise
        files = write_results(results, args.out, extra) if args.out else []
        for note in dict.fromkeys((*subject.notes, *(other.notes if other else ()))):
            print(f'note: {note}')
    print(report(results))
    if how.device == 'cpu' and (note := busy_note(args.threads)):
        print(f'note: {note}')
    if files:
        print('wrote ' + ', '.join(map(str, files)))


if __name__ == '__main__':
    friendly(main)
