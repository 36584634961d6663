"""Files that appear whole or not at all. Needs nothing but Python, since the set-up commands use it, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
