"""Embedded data: real handwritten digits over photographs, generated, nothing downloaded.

The generators live in :mod:`.pictures`, :mod:`.clips` and :mod:`.shapes`; :func:`ensure_digits` keeps their sets in a
cache. ``python -m eff_plugins.datasets.digits --help`` writes a set to a folder.
"""

from .cache import KINDS, ensure_digits, generator

__all__ = ['KINDS', 'ensure_digits', 'generator']
