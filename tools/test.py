"""Evaluate a checkpoint; print a table of results and, on request, write them and draw predictions."""

import argparse

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.runs import (
    add_common_arguments,
    build_runner,
    check_checkpoint,
    friendly,
    load_config,
    metrics_record,
    show_predictions,
    table,
    write_json,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', metavar='JSON', help='write the metrics here')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    add_common_arguments(parser)
    args = parser.parse_args()
    check_checkpoint(args.checkpoint)
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    cfg.load_from = args.checkpoint
    if args.show_dir:
        show_predictions(cfg, args.show_dir)
    runner = build_runner(cfg)
    metrics = runner.test()
    if runner.rank != 0:
        return
    rows = [(name, f'{value:.4f}' if isinstance(value, float) else str(value)) for name, value in metrics.items()]
    print('\n' + table([('metric', 'value'), *rows]))
    if args.out:
        write_json(args.out, metrics_record(metrics, args.config, args.checkpoint))


if __name__ == '__main__':
    friendly(main)
