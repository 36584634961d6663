"""The embedded sets in the cache folder: made at the first use, by one process, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from eff_plugins.cache import cache_folder

from .storage import write_json

# kind -> (module, function)
KINDS: dict[str, tuple[str, str]] = {
    'detection': ('pictures', 'generate_detection'),
    'segmentation': ('pictures', 'generate_segmentation'),
    'classification': ('pictures', 'generate_classification'),
    'motion': ('clips', 'generate_motion'),
    'points': ('shapes', 'generate_points'),
    'views': ('shapes', 'generate_views'),
}


def generator(kind: str) -> Callable[..., None]:
    """The function that makes a kind of set.

    Raises:
        ValueError: Unknown kind; the known ones are named.
    """
    if kind not in KINDS:
        raise ValueError(f'unknown kind of digits {kind!r}; known: {", ".join(KINDS)}')
    module, name = KINDS[kind]
    return getattr(import_module(f'.{module}', __package__), name)


def _full_arguments(make: Callable[..., None], split: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        bound = inspect.signature(make).bind('', split, **arguments)
    except TypeError as error:
        known = [name for name in inspect.signature(make).parameters if name not in ('root', 'split')]
        raise ValueError(f'{make.__name__}: {error}; arguments: {", ".join(known)}') from None
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name != 'root'}


def _version(kind: str) -> str:
    """Hash of the code that makes a kind of set: a changed generator never meets an old set."""
    digest = hashlib.sha256()
    for name in ('sources', 'scenes', 'storage', KINDS[kind][0]):
        digest.update(Path(__file__).with_name(f'{name}.py').read_bytes())
    return digest.hexdigest()[:12]


def ensure_digits(kind: str, split: str, **arguments: Any) -> Path:
    """Folder of an embedded set, made at the first use.

    Processes that ask for the same set at once wait for the one that makes it. The set appears by a rename, so a folder
    that exists is complete.

    Args:
        kind: ``'detection'``, ``'segmentation'``, ``'classification'``, ``'motion'``, ``'points'`` or ``'views'``.
        split: ``'train'`` or ``'val'``.
        **arguments: Arguments of the generator, such as ``seed``, ``count`` and ``size``.

    Raises:
        ValueError: Unknown kind, split or argument.
        OSError: The cache folder cannot be written; the message names it.
    """
    make = generator(kind)
    full = _full_arguments(make, split, arguments)
    record = json.dumps({'kind': kind, **full, 'version': _version(kind)}, sort_keys=True)
    target = cache_folder('digits') / f'{kind}-{split}-{hashlib.sha256(record.encode()).hexdigest()[:12]}'
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target):
            if not target.is_dir():
                _make(make, full, target, json.loads(record))
    except PermissionError as error:
        raise PermissionError(
            f'{target.parent}: cannot be written ({error}); set EFF_PLUGINS_CACHE to a folder that can'
        ) from error
    return target


def _make(make: Callable[..., None], arguments: dict[str, Any], target: Path, record: dict) -> None:
    for left_over in target.parent.glob(f'.{target.name}.*.part'):  # of a killed process: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{target.name}.', suffix='.part', dir=target.parent))
    try:
        make(partial, **arguments)
        write_json(partial / 'generator.json', record)
        partial.chmod(0o755)
        with contextlib.suppress(FileExistsError):
            try:
                partial.rename(target)
            except OSError:
                # without locks (see _lock) another process may have been faster: its set has the same bytes
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Hold the set's lock file; the system frees it when the process dies. Without ``fcntl`` there is no waiting."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with target.with_name(f'.{target.name}.lock').open('w') as stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
