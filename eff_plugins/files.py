"""Files that appear whole or not at all. Needs nothing but Python, since the set-up commands use it, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_writable(path: str | Path) -> None:
    """Whether a file can be written at ``path``, to know before the time for its content is spent; nothing is made.

    Raises:
        OSError: It cannot; the message names the path.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f'{path} is a folder; name a file')
    check_folder(Path(path).parent)


def check_folder(path: str | Path) -> None:
    """Whether files can be written into the folder ``path``, which need not exist; nothing is made.

    Raises:
        OSError: They cannot; the message names the path.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f'{path} cannot be a folder for results: {place} is a file')
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f'{path} cannot be written: no permission to write into {place}')


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A hidden path beside ``path`` to write to; it is renamed to ``path`` when the block ends, and removed if it raises.

    Readers see the old file or the new one, never a part, and two processes that write the same file do not mix. The folder
    is made. The ending is kept, because libraries choose a format by it.

    ::

        with atomic('rows.csv') as partial:
            partial.write_text('a,b')

    Raises:
        OSError: The folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f'.{os.getpid()}.{target.name}')
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
