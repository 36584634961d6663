"""From which density on a whole convolution is faster than one at chosen rows: measured on this device, and kept.

A kernel that computes single rows never does more work than the whole convolution, but it may do it more slowly. Where a
layer's rows reach its break-even density the executor computes the whole layer instead.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins.cache import cache_folder
from eff_plugins.dynamic.module import executing
from eff_plugins.dynamic.policies import Policy
from eff_plugins.files import atomic
from eff_plugins.ops.native import Kernels, build_name, kernels
from eff_plugins.ops.rows import RowConv, run_rows
from eff_plugins.profiling.latency import device_name, shortest

# Where nothing was measured: the native kernel is as fast as the library's whole convolutions, plain torch is not.
DEFAULTS = {'native': 1.1, 'torch': 0.5}  # above 1: never


class BreakEven:
    """Break-even densities of one device, backed by a file in the cache.

    Args:
        path: The file; one is made for this processor, its kernels and the number of threads where it is None.

    Attributes:
        revision: Another object whenever a density may have changed.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else cache_folder('break_even') / f'{_device()}.json'
        self._known: dict[str, float] = {}
        self.revision = object()
        if self.path.is_file():
            try:
                self._known = {str(key): float(value) for key, value in json.loads(self.path.read_text()).items()}
            except (ValueError, AttributeError):
                self._known = {}  # a broken cache is measured anew

    def density(self, conv: RowConv, size: tuple[int, int], packed: bool) -> float:
        """From this share of its rows on ``conv`` (input (H, W)) is computed whole.

        Args:
            conv: The convolution.
            size: (H, W) of its input.
            packed: Whether the whole convolution has prepacked weights.
        """
        native = conv.weight.is_cpu and kernels(dtype=_computed(conv)) is not None
        return self._known.get(key_of(conv, size, packed), DEFAULTS['native' if native else 'torch'])

    def knows(self, conv: RowConv, size: tuple[int, int], packed: bool) -> bool:
        """Whether this layer has been measured here."""
        return key_of(conv, size, packed) in self._known

    def add(self, densities: dict[str, float]) -> None:
        """Keep measured densities, also on disk."""
        self._known |= densities
        self.revision = object()
        with atomic(self.path) as partial:
            partial.write_text(json.dumps(dict(sorted(self._known.items())), indent=1) + '\n')


def key_of(conv: RowConv, size: tuple[int, int], packed: bool) -> str:
    """What break-even depends on, apart from the device."""
    count, depth, kh, kw = conv.weight.shape
    form = 'packed' if packed else 'eager'
    kind = str(_computed(conv)).removeprefix('torch.')
    spacing = f's{conv.stride[0]}x{conv.stride[1]}-d{conv.dilation[0]}x{conv.dilation[1]}'
    return f'{depth * conv.groups}-{count}-{kh}x{kw}-{spacing}-g{conv.groups}-{size[0]}x{size[1]}-{kind}-{form}'


def _computed(conv: RowConv) -> torch.dtype:
    return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else conv.weight.dtype


def _device() -> str:
    return _device_with(kernels(), kernels(dtype=torch.bfloat16), torch.get_num_threads())


@cache  # asked for at each layer
def _device_with(single: Kernels | None, half: Kernels | None, threads: int) -> str:
    names = '-'.join('torch' if native is None else native.name for native in (single, half))
    device = f'{platform.machine()}-{device_name("cpu")}-{names}-{build_name()}-{threads}-threads'
    return re.sub(r'[^\w.@-]+', '-', device)


_tables: dict[str, BreakEven] = {}


def break_even() -> BreakEven:
    """The table of this device and the present number of threads."""
    device = _device()
    if device not in _tables:
        _tables[device] = BreakEven()
    return _tables[device]


def break_even_of(conv: RowConv, whole: Callable[[Tensor], Tensor], x: Tensor, repeats: int = 11) -> float:
    """Measure one layer: the density at which its rows take as long as the whole; above 1 where they never do.

    The time of rows is proportional to their number, up to an overhead of microseconds.

    Args:
        conv: The convolution at rows.
        whole: The same layer on a whole map.
        x: (B, C, H, W), channels-last.
        repeats: Of each measurement, of which the shortest counts.
    """
    out = whole(x).contiguous(memory_format=torch.channels_last)
    every = torch.arange(out[:, 0].numel(), dtype=torch.int32)
    dense, rows = shortest([lambda: whole(x), lambda: run_rows(x, conv, every, out)], repeats)
    return dense / rows


@torch.no_grad()
def measure_break_even(model: nn.Module, run: Callable[[], Any], table: BreakEven | None = None) -> dict[str, float]:
    """Measure every layer of ``model`` that may be computed at rows; what is known is left out.

    Args:
        model: A dynamic network in evaluation mode, as it will be run (folded, packed).
        run: Runs it once, on inputs of the size that it will be run on.
        table: In place of the device's own.

    Returns:
        Layer -> break-even density, of the layers that were measured now.

    Raises:
        ValueError: The model is not on a CPU.
    """
    if any(parameter.device.type != 'cpu' for parameter in model.parameters()):
        raise ValueError('break-even densities are measured on a CPU; this model is on another device')
    kept = table or break_even()
    seen: list[tuple[RowConv, Callable[[Tensor], Tensor], bool, tuple[int, ...], torch.dtype, bool]] = []
    watching = [module for module in model.modules() if hasattr(module, 'watch')]
    steps = [module for module in model.modules() if isinstance(module, Policy) and 'all' in module.KINDS]
    kinds = [step.kind for step in steps]
    try:
        for step in steps:
            step.kind = 'all'
        for module in watching:
            module.watch = seen.append  # type: ignore[assignment]
        with executing(model, 'sparse'):
            run()
    finally:
        for step, kind in zip(steps, kinds, strict=True):
            step.kind = kind
        for module in watching:
            module.watch = None  # type: ignore[assignment]
    found: dict[str, float] = {}
    for conv, whole, packed, shape, dtype, cast in seen:
        size = (shape[2], shape[3])
        with torch.autocast('cpu', enabled=cast):  # as it was when the layer ran
            key = key_of(conv, size, packed)
            if key not in found and not kept.knows(conv, size, packed):
                sample = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
                found[key] = break_even_of(conv, whole, sample)
    if found:
        kept.add(found)
    return found
