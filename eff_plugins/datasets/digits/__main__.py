"""Write an embedded set to a folder: ``python -m eff_plugins.datasets.digits --kind detection --split train --out DIR``."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from .cache import KINDS, generator


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m eff_plugins.datasets.digits', description=__doc__)
    parser.add_argument('--kind', choices=tuple(KINDS), default='detection')
    parser.add_argument('--split', choices=('train', 'val'), default='train')
    parser.add_argument('--out', required=True, type=Path, help='new or empty folder')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, help='number of items (default: by kind and split)')
    parser.add_argument('--size', type=int, help='side of a picture in pixels')
    for name, text in (('digits', 'digits a picture'), ('digit-size', "length of a digit's longer side in pixels")):
        parser.add_argument(f'--{name}', type=int, nargs=2, metavar=('LEAST', 'GREATEST'), help=text)
    parser.add_argument('--frames', type=int, help='frames a clip')
    parser.add_argument('--points', type=int, help='points a cloud')
    parser.add_argument('--views', type=int, help='views an object')
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a wrong argument ends in one line and status 2."""
    parser = _parser()
    options = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    make = generator(options.pop('kind'))
    out, split = options.pop('out'), options.pop('split')
    known = inspect.signature(make).parameters
    foreign = [f'--{name.replace("_", "-")}' for name in options if name not in known]
    if foreign:
        parser.error(f'{make.__name__} has no {", ".join(foreign)}')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        parser.error(f'--out {out}: exists and is not an empty folder')
    try:
        make(out, split, **options)
    except ValueError as error:
        parser.error(str(error))
    print(f'wrote {out}', file=sys.stderr)


if __name__ == '__main__':
    main()
