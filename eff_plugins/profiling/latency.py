"""Time functions against each other on a machine that is shared and drifts.

Measurements are interleaved (A B A B ...), so that a slow minute hits all of them alike, and compared in pairs: the ratio of
neighbours is far steadier than the ratio of two means. Medians, because what disturbs a measurement only ever adds to it.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call in each round, in the order of the rounds (never empty)."""

    ms: tuple[float, ...]

    @property
    def p50(self) -> float:
        """Median, ms."""
        return float(np.median(self.ms))

    @property
    def p90(self) -> float:
        """90th percentile, ms."""
        return float(np.percentile(self.ms, 90))


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios and its confidence interval."""

    median: float
    low: float
    high: float


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int = 30,
    warmup: int = 5,
    device: str | torch.device = 'cpu',
    min_ms: float = 1.0,
    before: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, Latency]:
    """Time each function once a round, in turn, without gradients.

    Args:
        functions: Name -> what to time, called without arguments; inputs lie on ``device`` already.
        repeats: Rounds that count.
        warmup: Rounds before them that do not (lazy initialisation, caches, compilation).
        device: On a CUDA device events are used and the queue is drained before and after each measurement.
        min_ms: A shorter function is called several times a measurement until about this many milliseconds have
            passed, because the clock and the call itself would count otherwise; the result is a call's share.
        before: Name -> what makes ready for the function of that name, such as another setting of a shared model; it is
            called before each measurement and does not count.

    Returns:
        Name -> latency, ``repeats`` measurements each; those of one round are neighbours in time.

    Raises:
        ValueError: No functions, or ``repeats`` or ``warmup`` out of range.
    """
    if not functions:
        raise ValueError('functions is empty: there is nothing to time')
    if repeats < 1:
        raise ValueError(f'repeats={repeats}: at least 1 measurement is needed')
    if warmup < 0:
        raise ValueError(f'warmup={warmup} must not be negative')
    measure = _measure_cuda if torch.device(device).type == 'cuda' else _measure_cpu
    samples: dict[str, list[float]] = {name: [] for name in functions}
    ready = dict.fromkeys(functions, _nothing) | dict(before or {})
    calls: dict[str, int] = {}
    with torch.no_grad(), no_garbage_collection():
        for _ in range(warmup):
            for name, function in functions.items():
                ready[name]()
                function()
        for name, function in functions.items():
            ready[name]()
            calls[name] = _calls_for(function, measure, min_ms)
        for _ in range(repeats):
            for name, function in functions.items():
                ready[name]()
                samples[name].append(measure(function, calls[name]))
    return {name: Latency(tuple(values)) for name, values in samples.items()}


def paired_ratio(
    numerator: Latency, denominator: Latency, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Ratio:
    """Median over the rounds of ``numerator / denominator``, with a percentile bootstrap over the rounds.

    Args:
        numerator: From the same :func:`time_interleaved` as ``denominator``.
        denominator: Below 1 the numerator is faster.
        confidence: Of the two-sided interval.
        resamples: Bootstrap draws.
        seed: Of the draws, so that the same measurements give the same interval.

    Raises:
        ValueError: The two were not measured in the same rounds.
    """
    if len(numerator.ms) != len(denominator.ms):
        raise ValueError(f'{len(numerator.ms)} and {len(denominator.ms)} measurements do not pair')
    ratios = np.asarray(numerator.ms) / np.asarray(denominator.ms)
    draws = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.median(ratios[draws], axis=1), [tail, 100 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def shortest(functions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Seconds of each function's shortest call: what another process took away is not the function's.

    Args:
        functions: Called in turn, once a round.
        repeats: Rounds that count, after one that warms up.
    """
    times: list[list[float]] = [[] for _ in functions]
    for i in range(repeats + 1):
        for taken, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            if i:
                taken.append(time.perf_counter() - start)
    return [min(taken) for taken in times]


def mean_of_medians(batches: Sequence[Latency]) -> float:
    """Mean over batches of each one's median, ms: what a network costs whose time depends on its input.

    A median over all batches would be that of some batch in the middle, which mean multiply-adds say nothing about.
    """
    return float(np.mean([batch.p50 for batch in batches]))


def mean_ratio(
    numerator: Sequence[Latency],
    denominator: Sequence[Latency],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Ratio of two means of medians, with a percentile bootstrap over the rounds of each batch, which stay paired.

    Args:
        numerator: Latencies on each batch.
        denominator: On the same batches, in the same rounds.
        confidence: Of the two-sided interval.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        ValueError: The two were not measured in the same rounds.
    """
    if [len(batch.ms) for batch in numerator] != [len(batch.ms) for batch in denominator]:
        raise ValueError('the measurements of the two do not pair')
    rng = np.random.default_rng(seed)
    sums = np.zeros((2, resamples))
    for above, below in zip(numerator, denominator, strict=True):
        draws = rng.integers(0, len(above.ms), (resamples, len(above.ms)))
        sums += [np.median(np.asarray(latency.ms)[draws], axis=1) for latency in (above, below)]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(sums[0] / sums[1], [tail, 100 - tail])
    return Ratio(mean_of_medians(numerator) / mean_of_medians(denominator), float(low), float(high))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads within the block.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f'threads={count}: must be at least 1')
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def busy_note(count: int) -> str:
    """A sentence on the load average where it leaves fewer than ``count`` idle cores, else an empty string."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load + count <= cores:
        return ''
    return f'the machine is busy: load average {load:.1f} on {cores} cores, {count} wanted; paired ratios stand, times do not'


def _nothing() -> None:
    """What most functions need before a measurement."""


def _calls_for(function: Callable[[], Any], measure: Callable[[Callable[[], Any], int], float], min_ms: float) -> int:
    once = max(measure(function, 1), 1e-4)
    return max(1, math.ceil(min_ms / once))


def _measure_cpu(function: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        function()
    return (time.perf_counter_ns() - start) / 1e6 / calls


def _measure_cuda(function: Callable[[], Any], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / calls


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect before, not within, what is timed."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def device_name(device: str) -> str:
    """The processor's name where the system tells it, else ``device``."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return device
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), device)
