"""Train a model of any of the four frameworks, or a classifier: the config says which."""

import argparse
from pathlib import Path

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.runs import add_common_arguments, build_runner, check_checkpoint, friendly, load_config, use_amp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CKPT', help='go on from CKPT or the newest one')
    parser.add_argument('--amp', action='store_true', help='mixed precision (bf16 on a CPU)')
    add_common_arguments(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
    if args.amp:
        use_amp(cfg)
    if args.resume:
        cfg.resume = True
        if args.resume != 'auto':
            check_checkpoint(args.resume)
            cfg.load_from = args.resume
        elif (Path(cfg.work_dir) / 'last_checkpoint').is_file():
            cfg.load_from = None  # mmengine would resume from the weights that the run had started from
        elif cfg.get('load_from'):
            cfg.resume = False  # nothing to go on from yet: start as the config says
    build_runner(cfg).train()


if __name__ == '__main__':
    friendly(main)
