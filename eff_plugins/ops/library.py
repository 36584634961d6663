"""Registration of the suite's own operators with torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

_library = torch.library.Library('eff_plugins', 'FRAGMENT')


def register_in_place(schema: str, run: Callable[..., None]) -> None:
    """Make ``torch.ops.eff_plugins.NAME`` of a function that writes into one of its arguments and returns nothing.

    On meta and fake tensors it does nothing: they have shapes, which do not change, and no memory.

    Args:
        schema: ``NAME(Tensor x, ..., Tensor(a!) out) -> ()``.
        run: What it does.
    """
    name = schema.partition('(')[0]
    _library.define(schema)
    _library.impl(name, run, 'CompositeExplicitAutograd')
    _library.impl(name, lambda *_: None, 'Meta')
