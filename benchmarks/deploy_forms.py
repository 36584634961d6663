"""Check every deploy form of every image network against eager and write a table of the largest differences.

For each variant, with random weights and norm statistics: the classifier with BatchNorm folded, the same in channels-last,
the folded classifier and the plain backbone (its default maps) exported to ONNX and run by onnxruntime, and on request the
classifier compiled. Differences are relative to the largest value of each output; the limit is 1e-4. Rows of variants that
are not asked for stay in the table.

    python benchmarks/deploy_forms.py --out benchmarks/results/deploy_forms.csv
    python benchmarks/deploy_forms.py 'mobilenet*' --compile
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import eff_plugins  # noqa: F401  (first: its fixes must be in place before timm or torchvision is imported)
from eff_plugins.deploy import Preparation, export_onnx, fuse_conv_bn, onnx_difference, prepare
from eff_plugins.deploy.export import max_difference
from eff_plugins.engine.runs import friendly
from eff_plugins.hub import build_classifier, list_models
from eff_plugins.models.image.zoo import variant
from eff_plugins.profiling.benchmark import write_csv
from eff_plugins.registry import MODELS
from eff_plugins.testing.oracles import randomise

LIMIT = 1e-4
FORMS = ('fused', 'channels_last', 'onnx_classifier', 'onnx_backbone', 'compiled')


def differences(name: str, x: Tensor, compiled: bool) -> dict[str, float | None]:
    """Largest relative difference of each form of ``FORMS``; None for what was not asked for."""
    model = build_classifier(name).eval()
    backbone = MODELS.build(dict(variant(name).backbone)).eval()
    for network in (model, backbone):
        randomise(network)
    fused = fuse_conv_bn(model)
    last = Preparation(fuse=True, channels_last=True)
    found: dict[str, float | None] = dict.fromkeys(FORMS)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wanted = model(x)
        found['fused'] = max_difference(fused(x), wanted)
        found['channels_last'] = max_difference(prepare(model, last)(last.inputs(x)), wanted)
        file = Path(folder) / 'model.onnx'
        found['onnx_classifier'] = onnx_difference(export_onnx(fused, x, file), model, x)
        found['onnx_backbone'] = onnx_difference(export_onnx(backbone, x, file), backbone, x)
        if compiled:
            how = Preparation(compile=True)
            found['compiled'] = max_difference(prepare(model, how)(how.inputs(x)), wanted)
    return found


def read_rows(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.is_file():
        return {}
    with path.open(newline='') as stream:
        return {row['model']: row for row in csv.DictReader(stream)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='*', default=['*'], metavar='PATTERN', help='such as mobilenet* (default: all)')
    parser.add_argument('--size', type=int, nargs=2, default=(97, 129), metavar=('H', 'W'), help='odd sides test most')
    parser.add_argument('--compile', action='store_true', help='also torch.compile, minutes a network on a CPU')
    parser.add_argument('--missing', action='store_true', help='only variants that have no row in --out yet')
    parser.add_argument('--out', type=Path, metavar='CSV')
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in list_models() if any(fnmatch.fnmatch(name, pattern) for pattern in args.models)]
    if not names:
        raise ValueError(f'no model matches {" ".join(args.models)}; eff_plugins.list_models() lists all')
    rows = read_rows(args.out)
    above = []
    x = torch.randn(1, 3, *args.size, generator=torch.Generator().manual_seed(0))
    for name in names:
        if args.missing and name in rows:
            continue
        found = differences(name, x, args.compile)
        worst = max(value for value in found.values() if value is not None)
        above += [name] if worst > LIMIT else []
        shown = {form: '' if value is None else f'{value:.1e}' for form, value in found.items()}
        print(f'{name:24} ' + '  '.join(f'{form} {value or "-"}' for form, value in shown.items()), flush=True)
        rows[name] = {
            'model': name,
            'input_size': 'x'.join(map(str, args.size)),
            **shown,
            'torch': torch.__version__,
            'command': f'python {shlex.join(sys.argv)}',
        }
        if args.out:
            write_csv(args.out, [rows[key] for key in sorted(rows)])
        torch._dynamo.reset()  # what was compiled or exported is not kept
    if above:
        raise ValueError(f'above the limit of {LIMIT}: {", ".join(above)}')


if __name__ == '__main__':
    friendly(main)
