"""Write a classifier's checkpoint under timm's or torchvision's keys.

``python -m eff_plugins.hub.export mobilenetv2_100 work_dirs/mine/epoch_9.pth mine.safetensors --to timm``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from eff_plugins.compat import require
from eff_plugins.compat.loading import safe_load
from eff_plugins.files import atomic

from .convert import from_ours
from .weights import SOURCES


def export(name: str, checkpoint: str | Path, out: str | Path, to: str) -> None:
    """Convert a checkpoint of our ``ImageClassifier`` and write it as ``.pth`` or ``.safetensors``.

    Args:
        name: Variant of the zoo.
        checkpoint: File with our keys.
        out: File to write; nothing is left of it where the conversion fails.
        to: ``'timm'``, ``'tv'`` or ``'pypi'``: whose keys.

    Raises:
        ValueError: Keys are missing or unexpected (all are listed), the family has no keys of ``to``, or ``out`` has
            another suffix.
    """
    out = Path(out)
    if out.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{out}: the file to write must end with .pth or .safetensors')
    loaded = safe_load(checkpoint)
    state = from_ours(name, loaded.get('state_dict', loaded), to)
    with atomic(out) as partial:
        if out.suffix == '.pth':
            torch.save(state, partial)
        else:
            tensors = {key: value.contiguous() for key, value in state.items()}
            require('safetensors.torch', 'hub.export').save_file(tensors, partial)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status is 1 where nothing was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', help='variant, one of eff_plugins.list_models()')
    parser.add_argument('checkpoint', help="a classifier's checkpoint with our keys")
    parser.add_argument('out', help='file to write, .pth or .safetensors')
    parser.add_argument('--to', choices=SOURCES, required=True, help='whose keys')
    args = parser.parse_args(argv)
    try:
        export(args.name, args.checkpoint, args.out, args.to)
    except (ValueError, OSError, RuntimeError) as error:
        print(f'export: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
