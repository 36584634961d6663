"""Time described networks, prepared as they are deployed: BatchNorm folded, channels-last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from eff_plugins.deploy import Preparation
from eff_plugins.deploy.prepare import prepare
from eff_plugins.profiling.latency import Latency, paired_ratio, threads, time_interleaved
from eff_plugins.scaling.descriptions import Description
from eff_plugins.testing.oracles import randomise


def deployed_call(description: Description, batch_size: int, how: Preparation) -> Callable[[], Any]:
    """What is timed: the prepared classifier with random weights on one batch at its own input size."""
    model = description.classifier()
    randomise(model)  # the default initialisation lets the signal of a deep network fade to slow denormal numbers
    model = prepare(model, how)
    size = description.input_size
    x = how.inputs(torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return lambda: model(x)


def time_descriptions(
    descriptions: Mapping[str, Description],
    repeats: int = 30,
    warmup: int = 3,
    batch_size: int = 1,
    num_threads: int = 1,
    device: str = 'cpu',
) -> dict[str, Latency]:
    """Latency of each network at its own input size, interleaved.

    Args:
        descriptions: Name -> network.
        repeats: Rounds that count.
        warmup: Rounds before them.
        batch_size: Pictures in a batch; the latency is the batch's.
        num_threads: Of torch.
        device: Such as ``'cpu'`` or ``'cuda'``.
    """
    how = Preparation(device=device)
    with threads(num_threads):
        functions = {name: deployed_call(d, batch_size, how) for name, d in descriptions.items()}
        return time_interleaved(functions, repeats, warmup, device)


def measured_ms(
    base: Description, repeats: int = 15, batch_size: int = 1, num_threads: int = 1, device: str = 'cpu'
) -> Callable[[Description], float]:
    """A measure for :func:`eff_plugins.scaling.search.scale_to_ms`: milliseconds of a network.

    A search takes minutes in which a shared machine changes its speed. So the base is timed once, and each network in turn
    with it: the result is the base's median times the median ratio of neighbouring measurements.

    Args:
        base: The network that is timed along.
        repeats: Rounds of each comparison.
        batch_size: Pictures in a batch; the latency is the batch's.
        num_threads: Of torch.
        device: Such as ``'cpu'`` or ``'cuda'``.
    """
    how = Preparation(device=device)
    reference = deployed_call(base, batch_size, how)
    with threads(num_threads):
        base_ms = time_interleaved({'base': reference}, 2 * repeats, 3, device)['base'].p50

    def measure(description: Description) -> float:
        if description == base:
            return base_ms
        pair = {'base': reference, 'candidate': deployed_call(description, batch_size, how)}
        with threads(num_threads):
            times = time_interleaved(pair, repeats, 2, device)
        return base_ms * paired_ratio(times['candidate'], times['base'], resamples=1).median

    return measure
