"""Evaluate a checkpoint, a dynamic network at a budget; print a table and, on request, write it and draw predictions."""

import argparse

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.execution import Operation, add_dynamic_arguments, test_as
from eff_plugins.engine.runs import (
    add_common_arguments,
    check_checkpoint,
    friendly,
    load_config,
    metrics_record,
    show_predictions,
    table,
    write_json,
)
from eff_plugins.files import check_writable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', metavar='JSON', help='write the metrics here')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    add_common_arguments(parser)
    add_dynamic_arguments(parser)
    args = parser.parse_args()
    operation = Operation.from_arguments(args)
    check_checkpoint(args.checkpoint)
    if args.out:
        check_writable(args.out)
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        show_predictions(cfg, args.show_dir)
    runner, hook, metrics = test_as(cfg, operation)
    if runner.rank != 0:
        return
    how = hook.record(runner)
    rows = [(name, f'{value:.4f}' if isinstance(value, float) else str(value)) for name, value in metrics.items()]
    print('\n' + table([('metric', 'value'), *rows]))
    if hook.spent is not None:
        asked = '' if operation.budget is None else f' of a budget of {operation.budget:.3f}'
        # masked execution computes everything, to show what sparse execution would give and spend
        what = (
            'executed share of the dense network'
            if how['execution'] == 'sparse'
            else 'share that sparse execution spends'
        )
        taken = ''.join(f', choice {k} {part:.3f}' for k, part in enumerate(hook.spent.choices))
        print(
            f'{what}: {hook.spent.share:.3f}{asked}, density {hook.spent.density:.3f}{taken} '
            f'({how["execution"]}, {how["policy"]})'
        )
    if args.out:
        write_json(args.out, metrics_record(metrics, args.config, args.checkpoint, how))


if __name__ == '__main__':
    friendly(main)
