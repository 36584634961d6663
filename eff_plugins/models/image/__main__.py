"""``python -m eff_plugins.models.image --table``: every named image network beside what was published and its oracle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from eff_plugins.compat import MissingExtraError
from eff_plugins.files import atomic
from eff_plugins.hub import build_classifier, list_models
from eff_plugins.models.image.zoo import Variant, variant
from eff_plugins.profiling.macs import count_macs, count_parameters

SIZES = [(193, 225), (96, 128)]  # (H, W) of the comparison: odd and no multiple of any stride, and even
HEADINGS = (
    'name', 'params M', 'published', 'diff %', 'MACs G', 'published', 'diff %', 'input', 'oracle', 'max abs diff',
    'relative',
)  # fmt: skip
WIDTHS = (22, 9, 9, 6, 9, 9, 6, 5, 32, 12, 8)
INTRODUCTION = f"""# Image networks

Written by `python -m eff_plugins.models.image --table --out docs/zoo.md`. Parameters (millions) and multiply-adds (MACs,
billions, of one picture of `input` pixels square) are those of the classifier with 1000 classes. The last two columns
compare every map and the logits with the oracle's (`timm:`, or `tv:` for torchvision) for pictures of
{' and '.join(f'{height} x {width}' for height, width in SIZES)}, with the same random weights and norm statistics in
both: the largest absolute difference, and the largest one relative to a map's largest value.

Where there is no oracle the published figures are the evidence: they agree within 1 %, or within half a unit of the last
digit that was published. Lite's published multiply-adds count more than convolutions and linear layers; FBNet-C's and
MnasNet-small's are of slightly other networks than timm's, which ours equal.

"""


@dataclass(frozen=True)
class Row:
    """A network of the table; ``absolute`` and ``relative`` are None where nothing was compared."""

    name: str
    published: Variant
    params: float
    macs: float
    absolute: float | None = None
    relative: float | None = None

    def cells(self) -> tuple[str, ...]:
        """What the columns ``HEADINGS`` show."""
        return (
            self.name,
            f'{self.params:.3f}',
            f'{self.published.params:.2f}',
            f'{100 * (self.params / self.published.params - 1):+.1f}',
            f'{self.macs:.4f}',
            f'{self.published.macs:.3f}',
            f'{100 * (self.macs / self.published.macs - 1):+.1f}',
            str(self.published.input_size),
            self.published.oracle or '-',
            '-' if self.absolute is None else f'{self.absolute:.1e}',
            '-' if self.relative is None else f'{self.relative:.1e}',
        )


def measure(name: str, compare: bool) -> Row:
    """Count a network's parameters and multiply-adds and, with ``compare``, run it beside its oracle."""
    described = variant(name)
    with torch.device('meta'):
        model = build_classifier(name).eval()
        x = torch.empty(1, 3, described.input_size, described.input_size)
        macs = count_macs(model, lambda: model(x))['']
    largest: dict[str, float] = {}
    if compare and described.oracle:
        from eff_plugins.testing.oracles import differences

        largest = differences(name, SIZES)
    return Row(name, described, count_parameters(model) / 1e6, macs / 1e9, **largest)


def terminal_line(cells: tuple[str, ...]) -> str:
    """Cells in columns: names to the left, numbers to the right."""
    left = {0, 8}
    padded = (
        cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return '  '.join(padded).rstrip()


def markdown(rows: list[Row]) -> str:
    """The table as a document, with the sources of the published figures."""
    lines = [
        '| ' + ' | '.join((*HEADINGS, 'published in')) + ' |',
        '|---' + '|---:' * 7 + '|---' + '|---:' * 2 + '|---|',
        *('| ' + ' | '.join((*row.cells(), row.published.source)) + ' |' for row in rows),
    ]
    return INTRODUCTION + '\n'.join(lines) + '\n'


def table(names: list[str], compare: bool) -> Iterator[Row]:
    """Print a heading and a line a network as it is measured; yields the rows."""
    print(terminal_line(HEADINGS))
    print('  '.join('-' * width for width in WIDTHS), flush=True)
    for name in names:
        row = measure(name, compare)
        print(terminal_line(row.cells()), flush=True)
        yield row


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog='python -m eff_plugins.models.image', description='The named image networks; without --table, their names.'
    )
    parser.add_argument('--table', action='store_true', help='measure each network and compare it with its oracle')
    parser.add_argument('--pattern', default='*', help="shell pattern of names, for instance 'regnet*'")
    parser.add_argument(
        '--no-oracle', action='store_true', help='leave out the comparison (needs no timm, torchvision)'
    )
    parser.add_argument('--out', type=Path, help='with --table: write it to this Markdown file, too')
    args = parser.parse_args(arguments)
    names = list_models(args.pattern)
    if not names:
        parser.error(f'no network matches {args.pattern!r}; without options the command lists all names')
    if not args.table:
        print('\n'.join(names))
        return
    try:
        rows = list(table(names, not args.no_oracle))
    except MissingExtraError as error:
        parser.error(f'{error} (or leave out the comparison with --no-oracle)')
    compared = [row.relative for row in rows if row.relative is not None]
    print(f'\n{len(rows)} networks, {len(compared)} compared with an oracle', end='')
    print(f', largest relative difference {max(compared):.1e}' if compared else '')
    if args.out:
        with atomic(args.out) as partial:
            partial.write_text(markdown(rows))
        print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
