"""Draw a trained model's results, and where a dynamic one computed, on your own pictures (or videos, or point clouds)."""

import argparse
from pathlib import Path

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.execution import Operation, add_dynamic_arguments
from eff_plugins.engine.infer import Inferencer, grid
from eff_plugins.engine.runs import check_checkpoint, friendly, load_config
from eff_plugins.files import check_folder, check_writable
from eff_plugins.visualization.pictures import write_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('inputs', nargs='+', metavar='FILE')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the drawings')
    parser.add_argument('--grid', metavar='PNG', help='also tile the drawings (of one size) into this picture')
    add_dynamic_arguments(parser)
    args = parser.parse_args()
    operation = Operation.from_arguments(args)
    check_checkpoint(args.checkpoint)
    if absent := [path for path in args.inputs if not Path(path).is_file()]:
        raise FileNotFoundError(f'{", ".join(absent)}: no such file')
    check_folder(args.out)
    if args.grid:
        check_writable(args.grid)
    run = Inferencer(load_config(args.config), args.checkpoint, operation)
    drawn, faults = [], []
    for path in args.inputs:
        target = Path(args.out) / f'{Path(path).stem}.png'
        if target in drawn:
            target = Path(args.out) / f'{Path(path).stem}_{len(drawn)}.png'
        try:
            run.draw(path, run(path), target)
        except ValueError as error:  # the other files are none the worse for it
            faults.append(str(error) if path in str(error) else f'{path}: {error}')
            continue
        drawn.append(target)
        print(f'{path} -> {target}')
    if args.grid and drawn:
        import cv2

        pictures = [cv2.imread(str(path)) for path in drawn]
        examples = {f'{p.shape[1]}x{p.shape[0]}': path for p, path in zip(pictures, drawn, strict=True)}
        if len(examples) > 1:
            sizes = ' and '.join(f'{path} is {size}' for size, path in examples.items())
            raise ValueError(f'--grid needs drawings of one size: {sizes}')
        write_picture(args.grid, grid(pictures, columns=min(4, len(pictures)))[..., ::-1])
        print(f'grid -> {args.grid}')
    if faults:
        raise ValueError('; '.join(faults))


if __name__ == '__main__':
    friendly(main)
