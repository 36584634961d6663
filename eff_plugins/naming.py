"""What an error says about a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], prefix: str = '') -> str:
    """Up to three of ``known`` that resemble ``name``, best first, each behind ``prefix``; ``'none'`` where none does."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return ', '.join(f'{prefix}{other}' for other in near) or 'none'
