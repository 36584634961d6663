"""List parameters and multiply-adds of a config's model, stage by stage, on its first test sample or a given size."""

import argparse

import torch

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.calibration import in_process
from eff_plugins.engine.runs import friendly, load_config, table
from eff_plugins.profiling.macs import count_macs, profile_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='backbone alone, on a picture of this size'
    )
    parser.add_argument('--depth', type=int, default=3, help='how many levels of modules to list')
    args = parser.parse_args()
    cfg = load_config(args.config)
    from mmengine.registry import MODELS

    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        if args.shape:
            model = model.backbone
            picture = torch.zeros(1, getattr(model, 'in_channels', 3), *args.shape)
            what, macs = f'backbone at {args.shape[0]}x{args.shape[1]}', count_macs(model, lambda: model(picture))
        else:
            from mmengine.runner import Runner

            try:
                loader = Runner.build_dataloader(in_process(cfg.test_dataloader))
            except FileNotFoundError as error:
                raise FileNotFoundError(f'{error}; --shape H W lists the backbone without data') from error
            batch = next(iter(loader))
            size = len(batch['inputs'])
            what, macs = f'first test batch of {size}', count_macs(model, lambda: model.test_step(batch))
    print(f'{args.config}: {what}')
    print(table([('module', 'params (M)', 'MACs (G)', 'MACs (%)'), *profile_rows(model, macs, args.depth)]))


if __name__ == '__main__':
    friendly(main)
