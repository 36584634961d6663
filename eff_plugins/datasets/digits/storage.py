"""Files with the same bytes for the same content, and the generator's random streams."""

from __future__ import annotations

import io
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar('T')


def rng_for(kind: str, split: str, seed: int, number: int) -> np.random.Generator:
    """The random stream of one item: it depends on nothing but these four.

    Raises:
        ValueError: ``seed`` is negative.
    """
    if seed < 0:
        raise ValueError(f'seed={seed} must not be negative')
    return np.random.default_rng([zlib.crc32(f'{kind}/{split}'.encode()), seed, number])


def positive(name: str, value: int) -> int:
    """Return ``value`` if it is at least one.

    Raises:
        ValueError: It is not; the message names the argument.
    """
    if value < 1:
        raise ValueError(f'{name}={value} must be at least 1')
    return value


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """Iterate with a progress bar on stderr; in a log file that is one line every ten seconds."""
    from tqdm import tqdm

    return tqdm(items, desc=f'making {label}', unit='', mininterval=0.2 if sys.stderr.isatty() else 10)


def write_json(path: Path, content: Any) -> None:
    """Write compact json with the keys in their order."""
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n')


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Like ``np.savez_compressed``, but with a fixed date inside: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f'{name}.npy', date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=4)


def read_clip(path: str | Path) -> np.ndarray:
    """The ``frames`` of an npz file, (T, H, W, 3) uint8 RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no npz file with such frames; the message names it.
    """
    wanted = "an npz file with 'frames', (T, H, W, 3) uint8"
    try:
        with np.load(path, allow_pickle=False) as content:
            frames = content['frames']
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not {wanted}: {error}') from error
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f'{path} is not {wanted}, but holds {frames.shape} {frames.dtype}')
    return frames
