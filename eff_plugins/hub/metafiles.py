"""Write ``metafile.yml`` and ``README.md`` of every family of the zoo: ``python -m eff_plugins.hub.metafiles --write``.

Figures, sources and weights are those of the zoo and of ``published.json``, so that they cannot drift; without ``--write``
the files are compared. A variant belongs to the collection of :data:`PAPERS` whose prefix its name begins with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eff_plugins.models.image.zoo import Variant, variant_of, variants

from .weights import weights_of

ROOT = Path(__file__).parents[2]
COMMAND = 'python -m eff_plugins.hub.metafiles --write'


@dataclass(frozen=True)
class Paper:
    """A collection of variants.

    Attributes:
        prefix: What the variants' names begin with.
        folder: Folder in ``configs``.
        name: As the paper writes it.
        title: Title, authors and place of the paper.
        url: Where it is.
    """

    prefix: str
    folder: str
    name: str
    title: str
    url: str


PAPERS = (
    Paper(
        'mobilenetv2',
        'mobilenet',
        'MobileNetV2',
        'MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., CVPR 2018)',
        'https://arxiv.org/abs/1801.04381',
    ),
    Paper(
        'mobilenetv3',
        'mobilenet',
        'MobileNetV3',
        'Searching for MobileNetV3 (Howard et al., ICCV 2019)',
        'https://arxiv.org/abs/1905.02244',
    ),
    Paper(
        'mnasnet',
        'mnasnet',
        'MnasNet',
        'MnasNet: Platform-Aware Neural Architecture Search for Mobile (Tan et al., CVPR 2019)',
        'https://arxiv.org/abs/1807.11626',
    ),
    Paper(
        'fbnet',
        'fbnet',
        'FBNet',
        'FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search (Wu et al., CVPR 2019)',
        'https://arxiv.org/abs/1812.03443',
    ),
    Paper(
        'fbnetv2',
        'fbnet',
        'FBNetV2',
        'FBNetV2: Differentiable Neural Architecture Search for Spatial and Channel Dimensions (Wan et al., CVPR 2020)',
        'https://arxiv.org/abs/2004.05565',
    ),
    Paper(
        'proxylessnas',
        'proxylessnas',
        'ProxylessNAS',
        'ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware (Cai et al., ICLR 2019)',
        'https://arxiv.org/abs/1812.00332',
    ),
    Paper(
        'efficientnet',
        'efficientnet',
        'EfficientNet',
        'EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan & Le, ICML 2019)',
        'https://arxiv.org/abs/1905.11946',
    ),
    Paper(
        'efficientnetv2',
        'efficientnet',
        'EfficientNetV2',
        'EfficientNetV2: Smaller Models and Faster Training (Tan & Le, ICML 2021)',
        'https://arxiv.org/abs/2104.00298',
    ),
    Paper(
        'tinynet',
        'tinynet',
        'TinyNet',
        "Model Rubik's Cube: Twisting Resolution, Depth and Width for TinyNets (Han et al., NeurIPS 2020)",
        'https://arxiv.org/abs/2010.14819',
    ),
    Paper(
        'googlenet',
        'googlenet',
        'GoogLeNet',
        'Going Deeper with Convolutions (Szegedy et al., CVPR 2015)',
        'https://arxiv.org/abs/1409.4842',
    ),
    Paper(
        'shufflenetv1',
        'shufflenet',
        'ShuffleNet',
        'ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices (Zhang et al., CVPR 2018)',
        'https://arxiv.org/abs/1707.01083',
    ),
    Paper(
        'shufflenetv2',
        'shufflenet',
        'ShuffleNetV2',
        'ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design (Ma et al., ECCV 2018)',
        'https://arxiv.org/abs/1807.11164',
    ),
    Paper(
        'resnet',
        'resnext',
        'ResNet',
        'Deep Residual Learning for Image Recognition (He et al., CVPR 2016)',
        'https://arxiv.org/abs/1512.03385',
    ),
    Paper(
        'resnext',
        'resnext',
        'ResNeXt',
        'Aggregated Residual Transformations for Deep Neural Networks (Xie et al., CVPR 2017)',
        'https://arxiv.org/abs/1611.05431',
    ),
    Paper(
        'regnet',
        'regnet',
        'RegNet',
        'Designing Network Design Spaces (Radosavovic et al., CVPR 2020)',
        'https://arxiv.org/abs/2003.13678',
    ),
    Paper(
        'regnetz',
        'regnet',
        'RegNetZ',
        'Fast and Accurate Model Scaling (Dollár et al., CVPR 2021)',
        'https://arxiv.org/abs/2103.06877',
    ),
)


def paper_of(name: str) -> Paper:
    """The collection of a variant: the longest prefix counts.

    Raises:
        ValueError: There is none yet.
    """
    found = [paper for paper in PAPERS if name.startswith(paper.prefix)]
    if not found:
        raise ValueError(f'{name}: its paper is not in PAPERS of {__file__}; add a row')
    return max(found, key=lambda paper: len(paper.prefix))


def _families() -> dict[str, dict[str, Variant]]:
    """Folder -> its variants."""
    families: dict[str, dict[str, Variant]] = {}
    for name, row in variants().items():
        families.setdefault(paper_of(name).folder, {})[name] = row
    return families


def _configs(folder: Path) -> dict[str, str]:
    """Path relative to the repository -> the variant whose backbone the config builds."""
    from mmengine.config import Config

    found = {}
    for path in sorted(folder.glob('*.py')):
        name = variant_of(Config.fromfile(path).model.backbone)
        if name is None:
            raise ValueError(f'{path}: its backbone is none of the zoo')
        found[str(path.relative_to(folder.parents[1]))] = name
    return found


def _entry(name: str, row: Variant) -> dict[str, Any]:
    weights = [dict(URI=w.uri, Licence=w.licence) for w in weights_of(name)]
    return {
        'Name': name,
        'In Collection': paper_of(name).name,
        'Metadata': {
            'Parameters (M)': row.params,
            'Multiply-adds (G)': row.macs,
            'Input': f'{row.input_size}x{row.input_size}',
            'Source of the figures': row.source,
            'Weights': weights or 'none',
        },
    }


def metafile(folder: Path, members: dict[str, Variant]) -> str:
    """The text of ``metafile.yml`` of a family.

    Args:
        folder: ``configs/<family>``, whose configs are listed, too.
        members: The family's variants.
    """
    papers = {paper_of(name).name: paper_of(name) for name in members}
    readme = f'configs/{folder.name}/README.md'
    models = [_entry(name, row) for name, row in members.items()]
    for path, name in _configs(folder).items():
        results = [{'Task': 'Image Classification', 'Dataset': 'ImageNet-1k'}]
        models.append(
            {
                'Name': Path(path).stem,
                'In Collection': paper_of(name).name,
                'Config': path,
                'Metadata': {'Backbone': name},
                'Results': results,
            }
        )
    content = {
        'Collections': [
            {'Name': p.name, 'Paper': {'Title': p.title, 'URL': p.url}, 'README': readme} for p in papers.values()
        ],
        'Models': models,
    }
    body = yaml.safe_dump(content, sort_keys=False, width=1000, allow_unicode=True)
    return f'# Written by {COMMAND}\n{body}'


def readme(folder: Path, members: dict[str, Variant]) -> str:
    """The text of a family's ``README.md``: papers, configs, and a table of its variants."""
    papers = {paper_of(name).name: paper_of(name) for name in members}
    lines = [f'# {", ".join(papers)}', '', f'<!-- Written by {COMMAND} -->', '']
    lines += [f'- {p.title}, {p.url}' for p in papers.values()]
    lines += ['', '| variant | parameters (M) | multiply-adds (G) | input | weights |', '|---|---|---|---|---|']
    for name, row in members.items():
        uris = ', '.join(f'`{w.uri}`' for w in weights_of(name)) or 'none'
        lines.append(f'| {name} | {row.params:.4g} | {row.macs:.4g} | {row.input_size} | {uris} |')
    some = next((name for name in members if weights_of(name)), None)
    loading = f"`eff_plugins.get_model('{some or next(iter(members))}'{', pretrained=True' if some else ''})`"
    lines += [
        '',
        'Figures are the published ones of the classifier with 1000 classes; their sources and the licences of the weights',
        f'are in [metafile.yml](metafile.yml). {loading} gives a classifier; see',
        '[weights](../../docs/weights.md).',
    ]
    return '\n'.join([*lines, *_training(folder)]) + '\n'


def _training(folder: Path) -> list[str]:
    """Lines about a family's configs."""
    configs = _configs(folder)
    if not configs:
        return []
    rows = [
        f'| [{Path(path).stem}]({Path(path).name}) | {name} | `bash tools/dist_train.sh {path} 8` |'
        for path, name in configs.items()
    ]
    return [
        '',
        '| config | network | command |',
        '|---|---|---|',
        *rows,
        '',
        'Data: `$EFF_PLUGINS_DATA/imagenet/{train,val}` with one folder a class. The recipe is a common one for small',
        "networks, not the papers'; no accuracy is claimed for it.",
    ]


def files(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file that follows from the zoo, with its text."""
    configs = root / 'configs'
    listed = {path.relative_to(root).as_posix() for path in configs.glob('*/metafile.yml')}
    for name, members in _families().items():
        yield configs / name / 'metafile.yml', metafile(configs / name, members)
        yield configs / name / 'README.md', readme(configs / name, members)
        listed.add(f'configs/{name}/metafile.yml')
    yield root / 'model-index.yml', 'Import:\n' + ''.join(f'  - {path}\n' for path in sorted(listed))


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare; the exit status is 1 where a file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--write', action='store_true', help='write the files')
    group.add_argument('--check', action='store_true', help='compare them (the default)')
    parser.add_argument('--root', type=Path, default=ROOT, help='the repository')
    args = parser.parse_args(argv)
    stale = []
    for path, text in files(args.root):
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(str(path))
        if args.write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if stale and not args.write:
        print(f'out of date: {", ".join(stale)}; run {COMMAND}', file=sys.stderr)
    return 1 if stale and not args.write else 0


if __name__ == '__main__':
    sys.exit(main())
