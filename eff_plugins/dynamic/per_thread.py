"""State of a forward pass that belongs to the thread which runs it: a model may serve several threads at once."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary


class PerThread:
    """An attribute with a value of its own in each thread; copies and pickles of its owner start with the default.

    Args:
        default: Value where a thread has set none.
    """

    def __init__(self, default: Any) -> None:
        self.default = default
        self._local = threading.local()

    def _values(self) -> WeakKeyDictionary:
        if not hasattr(self._local, 'values'):
            self._local.values = WeakKeyDictionary()
        return self._local.values

    def __get__(self, owner: Any, kind: type | None = None) -> Any:
        return self if owner is None else self._values().get(owner, self.default)

    def __set__(self, owner: Any, value: Any) -> None:
        self._values()[owner] = value
