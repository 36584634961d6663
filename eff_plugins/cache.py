"""The one folder outside any clone where built wheels, weights and generated data are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """``$EFF_PLUGINS_CACHE/<kind>``, or ``~/.cache/eff_plugins/<kind>`` where the variable is unset or empty.

    Args:
        kind: ``'wheels'``, ``'weights'``, ``'digits'``, ``'native'`` or ``'break_even'``.
    """
    return Path(os.environ.get('EFF_PLUGINS_CACHE') or Path.home() / '.cache' / 'eff_plugins') / kind
