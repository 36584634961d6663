"""Scale a network to targets of multiply-adds or of measured latency; print the family, write arch files and a plot."""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.runs import friendly
from eff_plugins.profiling.latency import busy_note
from eff_plugins.scaling import CompoundRule, FastRule, Member, Rule, Sample, TinyRule, pareto_front, read_base
from eff_plugins.scaling.latency import measured_ms, time_descriptions
from eff_plugins.scaling.report import family_rows, family_table, member_name, write_family
from eff_plugins.scaling.search import scale_to_macs, scale_to_ms

_UNITS = {'k': 1e3, 'M': 1e6, 'G': 1e9}


def multiply_adds(text: str) -> float:
    """``'0.4G'`` or ``'400M'`` -> 4e8."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of multiply-adds such as 0.4G or 400M') from None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('base', help='a name of eff_plugins.list_models() or an arch.json')
    parser.add_argument('--rule', choices=('compound', 'fast', 'tiny'), default='fast')
    parser.add_argument(
        '--alpha', type=float, help="fast: share of the width, 0 to 1 (0.8); compound: depth's base (1.2)"
    )
    parser.add_argument('--beta', type=float, help="compound: width's base (1.1)")
    parser.add_argument('--gamma', type=float, help="compound: resolution's base (1.15)")
    parser.add_argument(
        '--samples',
        help='tiny: json list of dict(ratio, resolution, depth[, accuracy]) instead of the published networks',
    )
    targets = parser.add_mutually_exclusive_group(required=True)
    targets.add_argument('--targets', nargs='+', type=multiply_adds, metavar='MACS', help='such as 0.2G 400M')
    targets.add_argument('--targets-ms', nargs='+', type=float, metavar='MS', help='measured latency, milliseconds')
    parser.add_argument('--tolerance', type=float, help='relative (0.02 for multiply-adds, 0.05 for latency)')
    parser.add_argument('--measure', action='store_true', help='time the family at the end (always with --targets-ms)')
    parser.add_argument('--repeats', type=int, default=30, help='of the timing')
    parser.add_argument('--batch-size', type=int, default=1, help='of the timing')
    parser.add_argument('--threads', type=int, default=1, help='of torch, in the timing')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='of the timing')
    parser.add_argument('--out', metavar='DIR', help='write an arch.json a network, family.json and family.png here')
    return parser.parse_args()


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule that the arguments describe; one that it does not have is an error."""
    given = {key: getattr(args, key) for key in ('alpha', 'beta', 'gamma', 'samples') if getattr(args, key) is not None}
    known = {'compound': {'alpha', 'beta', 'gamma'}, 'fast': {'alpha'}, 'tiny': {'samples'}}[args.rule]
    foreign = sorted(given.keys() - known)
    if foreign:
        raise ValueError(f'--{foreign[0]} is no argument of the {args.rule} rule; it has: {", ".join(sorted(known))}')
    if args.rule == 'tiny' and args.samples:
        samples = [Sample(**sample) for sample in json.loads(Path(args.samples).read_text())]
        measured = all(sample.accuracy is not None for sample in samples)
        return TinyRule(pareto_front(samples) if measured else samples)
    return {'compound': CompoundRule, 'fast': FastRule, 'tiny': TinyRule}[args.rule](**given)


def main() -> None:
    args = parse()
    rule, base = rule_of(args), read_base(args.base)
    timing = dict(batch_size=args.batch_size, num_threads=args.threads, device=args.device)
    members: dict[str, Member] = {}
    measure = measured_ms(base, max(5, args.repeats // 2), **timing) if args.targets_ms else None
    for target in args.targets or args.targets_ms:
        if measure is None:
            member = scale_to_macs(base, rule, target, 0.02 if args.tolerance is None else args.tolerance)
        else:
            member = scale_to_ms(base, rule, target, measure, 0.05 if args.tolerance is None else args.tolerance)
        name = member_name(args.base, rule, member)
        if name in members:
            raise ValueError(f'two targets give the same name {name}: leave one of them out')
        members[name] = member
    times = None
    if args.measure or args.targets_ms:
        networks = {args.base: base, **{name: member.description for name, member in members.items()}}
        times = time_descriptions(networks, args.repeats, **timing)
    rows = family_rows((args.base, base), members, times)
    print(family_table(rows))
    for name, member in members.items():
        if not member.met:
            why = 'rounding leaves nothing nearer' if member.unit == 'macs' else 'nothing nearer was measured'
            print(f'note: {name} is {100 * member.error:+.1f} % off its target: {why}')
    if times and args.device == 'cpu' and (note := busy_note(args.threads)):
        print(f'note: {note}')
    if args.out:
        command = f'python {shlex.join(sys.argv)}'
        print('wrote ' + ', '.join(map(str, write_family(args.out, args.base, rule, members, rows, command))))


if __name__ == '__main__':
    friendly(main)
