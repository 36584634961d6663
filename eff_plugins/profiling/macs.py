"""Count multiply-adds by running the model: what is not executed is not counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, run: Callable[[], Any]) -> dict[str, int]:
    """Multiply-adds (MACs) of each module of ``model`` during ``run()``.

    Args:
        model: The model whose modules name the counts.
        run: Runs the model once, for instance ``lambda: model(x)``.

    Returns:
        Module path -> MACs; ``''`` is the whole run. Modules that execute nothing are left out.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    root = type(model).__name__
    counts = {}
    for name, operators in counter.get_flop_counts().items():
        flops = sum(operators.values())
        if name == 'Global':
            counts[''] = flops // 2
        else:
            counts[name.removeprefix(root).lstrip('.')] = flops // 2
    counts[''] = counter.get_total_flops() // 2
    return {name: value for name, value in counts.items() if value}


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def _macs_of(name: str, module: nn.Module, macs: dict[str, int]) -> int:
    """MACs of a module; one that only holds others, and is never called itself, has those of its children."""
    if name in macs:
        return macs[name]
    return sum(_macs_of(f'{name}.{child}', part, macs) for child, part in module.named_children())


def profile_rows(model: nn.Module, macs: dict[str, int], depth: int) -> list[tuple[str, str, str, str]]:
    """Rows (module, parameters in M, MACs in G, share of the MACs in %) down to ``depth`` levels, total last."""
    total = max(macs.get('', 0), 1)
    rows = []
    for name, module in model.named_modules():
        value = _macs_of(name, module, macs)
        if name and name.count('.') < depth and (count_parameters(module) or value):
            rows.append(
                (name, f'{count_parameters(module) / 1e6:.3f}', f'{value / 1e9:.3f}', f'{100 * value / total:.1f}')
            )
    rows.append(('total', f'{count_parameters(model) / 1e6:.3f}', f'{macs.get("", 0) / 1e9:.3f}', '100.0'))
    return rows
