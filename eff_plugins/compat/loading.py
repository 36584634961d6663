"""Safe checkpoint loading on every route of mmengine, on torch >= 2.6.

mmengine 0.10.7 calls ``torch.load`` without ``weights_only``, so a resume fails since torch 2.6 (open-mmlab/mmengine#1655),
and its http route goes through ``torch.hub``, which still loads with ``weights_only=False``. Both are replaced by
:func:`safe_load`, inside mmengine's loader module only: ``torch.load`` stays as it is for all other code of the process.
"""

from __future__ import annotations

import errno
import io
import os
import pickletools
import re
import sys
import tarfile
import threading
import types
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch

from .patching import patch_module

TRUST_VARIABLE = 'EFF_PLUGINS_TRUST_CHECKPOINTS'
LOADER_MODULE = 'mmengine.runner.checkpoint'
_LOCK = threading.RLock()


class CheckpointError(RuntimeError):
    """A checkpoint cannot be loaded."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds something else than tensors and mmengine's own records; loading it could run code."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is truncated, damaged or no checkpoint at all."""


def safe_load(path: str | os.PathLike[str] | IO[bytes], map_location: Any = 'cpu') -> Any:
    """Load a checkpoint without running code from it.

    Args:
        path: A file written by ``torch.save`` or a ``.safetensors`` file; or an open binary file.
        map_location: As in :func:`torch.load`.

    Returns:
        What the file holds: for mmengine's checkpoints a dict with ``meta``, ``state_dict``, ``message_hub`` ...; for
        ``.safetensors`` the state dict.

    Raises:
        FileNotFoundError: No such file.
        UnsafeCheckpointError: The file holds another object than tensors and mmengine's records. The message names the
            object and the file. Setting ``EFF_PLUGINS_TRUST_CHECKPOINTS=1`` loads it all the same, with a warning.
        CorruptCheckpointError: The file is truncated or no checkpoint.
    """
    name, source = _open_source(path)
    if isinstance(source, str) and source.endswith('.safetensors'):
        return _load_safetensors(source, map_location)
    if os.environ.get(TRUST_VARIABLE) == '1':
        warnings.warn(f'{TRUST_VARIABLE}=1: loading {name} without checks; it can run any code', stacklevel=2)
        return torch.load(source, map_location=map_location, weights_only=False)
    if not hasattr(torch.serialization, 'safe_globals'):
        raise CheckpointError(
            f'{name} cannot be loaded safely by torch {torch.__version__}: update to torch >= 2.6, or set '
            f'{TRUST_VARIABLE}=1 if you trust where the file comes from'
        )
    from .records import resolve

    try:
        with _allow_list(), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            return resolve(torch.load(source, map_location=map_location, weights_only=True), {})
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        # A matter of the machine, not of the file; but torch's reader seeks to places that a cut file does not have (EINVAL)
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        if 'CUDA device' in str(error) or 'CUDA error' in str(error):
            raise
        raise _explain(error, name, source) from None


def _open_source(path: str | os.PathLike[str] | IO[bytes]) -> tuple[str, str | IO[bytes]]:
    if hasattr(path, 'read'):
        return str(getattr(path, 'name', 'the downloaded checkpoint')), path  # type: ignore[return-value]
    name = os.path.expanduser(os.fspath(path))  # type: ignore[arg-type]
    if not os.path.isfile(name):
        raise FileNotFoundError(f'checkpoint {name} can not be found: check the path (load_from, --resume or init_cfg)')
    return name, name


def _load_safetensors(path: str, map_location: Any) -> dict[str, torch.Tensor]:
    from .hosts import require

    require('safetensors', 'safe_load')
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    device = 'cpu' if map_location is None or callable(map_location) or isinstance(map_location, dict) else map_location
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise _corrupt(path, error) from None


@contextmanager
def _allow_list() -> Iterator[None]:
    """Exactly our stand-ins as torch's extra safe globals, whatever other code has added before (such as ``getattr``)."""
    from .records import ALLOWED

    with _LOCK:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([(stand_in, name) for name, stand_in in ALLOWED.items()])
        try:
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


# ---------------------------------------------------------------------------------------------------------------------
# Clear errors
# ---------------------------------------------------------------------------------------------------------------------
def _explain(error: Exception, name: str, source: str | IO[bytes]) -> CheckpointError:
    """Which object was refused, or that the file is damaged."""
    from .records import RefusedError

    cause = error
    while not isinstance(cause, RefusedError) and isinstance(cause.__context__, Exception):
        cause = cause.__context__
    if isinstance(cause, RefusedError):
        return _unsafe(name, cause.offender)
    match = re.search(r'unsupported GLOBAL (\S+) whose|GLOBAL (\S+) was not an allowed', str(error))
    if match:
        # torch drops the "builtins." of builtin functions
        offender = match[1] or match[2]
        return _unsafe(name, offender if '.' in offender else f'builtins.{offender}')
    foreign = _foreign_globals(source)
    if foreign:
        return _unsafe(name, ', '.join(foreign))
    text = str(error)
    if 'TorchScript' in text:
        return _unsafe(name, 'a TorchScript program')
    if '.tar format' in text:
        return _unsafe(name, 'the tar format of torch < 0.4, which has no safe reader; save it again with a new torch')
    match = re.search(r'(Trying to call reduce|Can only (?:create|build|append|extend|SETITEM)).*', text)
    if match:
        return _unsafe(name, match[0])
    return _corrupt(name, error)


def _unsafe(name: str, offender: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f'refused to load {name}: it holds {offender}, which is neither a tensor nor a record of mmengine, and loading it '
        f'could run code. If you trust where the file comes from, set {TRUST_VARIABLE}=1'
    )


def _corrupt(name: str, error: Exception) -> CorruptCheckpointError:
    lines = str(error).strip().splitlines()
    reason = lines[-1] if lines and 'WeightsUnpickler error' in lines[-1] else (lines or [type(error).__name__])[0]
    return CorruptCheckpointError(
        f'{name} is truncated, damaged or no checkpoint ({reason[:200]}). Download or copy it again, or use an older '
        f'checkpoint of the same folder'
    )


def _foreign_globals(source: str | IO[bytes]) -> list[str]:
    """Names in the file's pickles that are not allowed, for the message; the pickles are scanned, never executed."""
    names: set[str] = set()
    try:
        for stream in _pickles(source):
            names |= _scan(stream)
    except Exception:  # only the message suffers
        pass
    if not hasattr(torch.serialization, 'safe_globals'):
        return sorted(names)
    from torch._weights_only_unpickler import _get_allowed_globals

    from .records import ALLOWED

    return sorted(name for name in names if name not in ALLOWED and name not in _get_allowed_globals())


def _pickles(source: str | IO[bytes]) -> Iterator[IO[bytes]]:
    stream: IO[bytes]
    if isinstance(source, str):
        with open(source, 'rb') as file:
            yield from _pickles(file)
        return
    stream = source
    stream.seek(0)
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            for member in archive.namelist():
                if member.endswith('.pkl'):
                    yield io.BytesIO(archive.read(member))
        return
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream) as archive:  # type: ignore[arg-type]
            for entry in archive.getmembers():
                content = archive.extractfile(entry)
                if content is not None:
                    yield content
        return
    except tarfile.TarError:
        stream.seek(0)
    yield stream


def _scan(stream: IO[bytes]) -> set[str]:
    from _compat_pickle import IMPORT_MAPPING

    names: set[str] = set()
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        while True:  # the format before zip is a row of pickles
            for opcode, arg, _ in pickletools.genops(stream):
                found = None
                if opcode.name in ('GLOBAL', 'INST'):
                    module, _, attribute = str(arg).partition(' ')
                    found = f'{IMPORT_MAPPING.get(module, module)}.{attribute}'
                elif opcode.name == 'STACK_GLOBAL':
                    found = '.'.join(strings[-2:])
                elif opcode.name in ('BINGET', 'LONG_BINGET', 'GET'):
                    strings.append(memo.get(int(arg), '?'))  # type: ignore[arg-type]
                elif opcode.name == 'MEMOIZE':
                    memo[len(memo)] = strings[-1] if strings else '?'
                elif isinstance(arg, str):
                    strings.append(arg)
                if found:
                    names.add(found)
    except Exception:
        return names


# ---------------------------------------------------------------------------------------------------------------------
# mmengine's loader
# ---------------------------------------------------------------------------------------------------------------------
def _guarded_load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Stands for ``torch.load`` in mmengine's loader; ``weights_only=False`` of a fork is not obeyed."""
    return safe_load(f, map_location)


def _guarded_load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
    **kwargs: Any,
) -> Any:
    """Stands for ``torch.hub.load_state_dict_from_url``: the same cache and hash check, a safe load."""
    from urllib.parse import urlparse

    folder = model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    name = file_name or os.path.basename(urlparse(url).path)
    target = os.path.join(folder, name)
    if not os.path.exists(target):
        match = re.search(r'-([a-f0-9]*)\.', name) if check_hash else None
        torch.hub.download_url_to_file(url, target, match[1] if match else None, progress=progress)
    return safe_load(target, map_location)


class _GuardedTorch(types.ModuleType):
    """The name ``torch`` inside mmengine's loader: everything is torch's own but ``load``."""

    load = staticmethod(_guarded_load)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _patch(module: types.ModuleType) -> None:
    """Put the guarded loads into mmengine's loader module (the same in the maintained fork)."""
    if isinstance(getattr(module, 'torch', None), _GuardedTorch):
        return
    if not hasattr(module, 'torch') or not hasattr(module, 'CheckpointLoader'):
        warnings.warn(
            f'eff_plugins does not know this {module.__name__}: its checkpoint loading is NOT guarded; load only files '
            f'that you trust, or use mmengine 0.10.7',
            stacklevel=2,
        )
        return
    module.torch = _GuardedTorch('torch')  # type: ignore[attr-defined]
    if hasattr(module, 'load_url'):
        module.load_url = _guarded_load_url  # type: ignore[attr-defined]
    for name in ('mmengine.utils.dl_utils', 'mmengine.utils.dl_utils.hub'):
        other = sys.modules.get(name)
        if other is not None and hasattr(other, 'load_url'):
            other.load_url = _guarded_load_url  # type: ignore[attr-defined]


def install() -> None:
    """Guard mmengine's loader, now or when it is imported; calling it again changes nothing."""
    patch_module(LOADER_MODULE, _patch)
