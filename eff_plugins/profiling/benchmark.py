"""Time networks, alone or against a second one, and write what was found: the core of ``tools/benchmark.py``."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eff_plugins.deploy.prepare import Preparation
from eff_plugins.dynamic.module import is_dynamic
from eff_plugins.engine.runs import table, write_json
from eff_plugins.files import atomic
from eff_plugins.profiling.candidates import Candidate, Cost, Dynamic, Static
from eff_plugins.profiling.latency import (
    Latency,
    Ratio,
    device_name,
    mean_of_medians,
    mean_ratio,
    paired_ratio,
    threads,
    time_interleaved,
)
from eff_plugins.profiling.plots import plot
from eff_plugins.profiling.subjects import DATA, Subject, is_config
from eff_plugins.profiling.variants import Plan, Variant

# A row of every benchmark of the suite. What has no meaning is None: a static network has no policy, budget or density.
SCHEMA = (
    'model',
    'execution',
    'policy',
    'budget',
    'batch_size',
    'input_size',
    'device',
    'threads',
    'dtype',
    'torch',
    'macs_mean',
    'macs_std',
    'latency_ms_p50',
    'latency_ms_p90',
    't_dense_ms',
    'realised_saving',
    'density',
)
# Distinct batches among the repeats: a cost that depends on the input is seen, a static one is not confused by it.
DISTINCT = 3


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        batch_sizes: Pictures a call, one row each.
        threads: Of torch, on a CPU.
        size: Side of the input in pixels; None leaves it to the subject.
        repeats: Measurements a row.
        warmup: Calls before them that do not count.
        data: A member of ``DATA``, or a config whose test set is used.
        how: How every network is prepared.

    Raises:
        ValueError: A value out of range; the message names it.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    threads: int = 1
    size: int | None = None
    repeats: int = 30
    warmup: int = 5
    data: str = 'real'
    how: Preparation = field(default_factory=Preparation)

    def __post_init__(self) -> None:
        for name, values in (
            ('batch-size', self.batch_sizes),
            ('threads', (self.threads,)),
            ('size', (self.size,)),
            ('repeats', (self.repeats,)),
        ):
            for value in values:
                if value is not None and value < 1:
                    raise ValueError(f'{name} {value}: must be at least 1')
        if not self.batch_sizes:
            raise ValueError('batch-size: at least one is needed')
        if self.warmup < 0:
            raise ValueError(f'warmup {self.warmup}: must not be negative')
        if self.data not in DATA and not is_config(self.data):
            raise ValueError(f'data {self.data!r}: must be one of {", ".join(DATA)}, or a config')


@dataclass(frozen=True)
class Result:
    """One network, or one variant of a dynamic one, at one batch size.

    Attributes:
        row: Columns of ``SCHEMA``; multiply-adds are those of one picture, milliseconds those of one batch.
        against: Name of the network that it was timed against.
        ratio: Its time over that one's, paired.
        parameters: Of the prepared network; in dense execution without those of the policies.
        realised: 95 % interval of ``realised_saving``; None where a batch was timed once.
    """

    row: dict[str, Any]
    against: str | None = None
    ratio: Ratio | None = None
    parameters: int = 0
    realised: tuple[float, float] | None = None


def compare(subject: Subject, other: Subject | None, settings: Settings, plan: Plan | None = None) -> list[Result]:
    """Time ``subject``, all its variants where it is dynamic, interleaved with ``other`` where there is one.

    A dynamic network is timed in turn with its dense form, the plain host network with the same weights, equally prepared.

    Args:
        subject: What is to be timed.
        other: A second network.
        settings: How.
        plan: What of a dynamic network.

    Returns:
        A result for each network or variant and each batch size.

    Raises:
        ValueError: ``plan`` asks a static network to decide, or for a budget out of reach.
    """
    plan = plan or Plan()
    how = settings.how
    check_plan(subject, plan, how)
    results = []
    with threads(settings.threads):
        dynamic = is_dynamic(subject.model)
        group = Dynamic(subject, how, plan, settings.size) if dynamic else Static(subject, how)
        groups = [group] if other is None else [group, Static(other, how)]
        most = min(DISTINCT, settings.repeats)
        data = [  # of all sizes, before anything is timed
            [g.subject.batches(batch_size, settings.size, settings.data, most, how) for g in groups]
            for batch_size in settings.batch_sizes
        ]
        for batch_size, inputs in zip(settings.batch_sizes, data, strict=True):
            count = min(map(len, inputs))
            found = [c for g, x in zip(groups, inputs, strict=True) for c in g.candidates(x[:count], batch_size)]
            results += _results(found, _time(found, count, settings), other, batch_size, settings)
    return results


def check_plan(subject: Subject, plan: Plan, how: Preparation) -> None:
    """Whether ``subject`` can do what ``plan`` asks.

    Raises:
        ValueError: A static network is to decide or a dynamic one to be compiled, which would begin anew with each variant;
            or see :meth:`Plan.variants`.
    """
    if is_dynamic(subject.model):
        if how.compile:
            raise ValueError(f'{subject.name}: a dynamic network is timed eagerly; leave --compile out')
        try:
            plan.variants(subject.checkpoint is not None)
        except ValueError as error:
            raise ValueError(f'{subject.name}: {error}') from error
    elif not plan.is_plain:
        raise ValueError(
            f'{subject.name} contains no dynamic module: its only execution is dense, and it has no budget'
        )


def _time(candidates: list[Candidate], count: int, settings: Settings) -> list[list[Latency]]:
    """Each candidate's latencies on each batch; those of one round stand in one place."""
    timed: list[list[Latency]] = [[] for _ in candidates]
    for i in range(count):
        # of 10 repeats over 3 batches: 4, 3, 3
        repeats = settings.repeats // count + (i < settings.repeats % count)
        found = time_interleaved(
            {str(j): candidate.call(i) for j, candidate in enumerate(candidates)},
            repeats,
            settings.warmup if i == 0 else 1,
            settings.how.device,
            before={str(j): candidate.ready[i] for j, candidate in enumerate(candidates)},
        )
        for j, batches in enumerate(timed):
            batches.append(found[str(j)])
    return timed


def _pooled(batches: list[Latency]) -> Latency:
    return Latency(tuple(ms for batch in batches for ms in batch.ms))


def _results(
    candidates: list[Candidate], timed: list[list[Latency]], other: Subject | None, batch_size: int, settings: Settings
) -> list[Result]:
    costs = [candidate.macs(batch_size) for candidate in candidates]
    pooled = [_pooled(batches) for batches in timed]
    results = []
    for j, candidate in enumerate(candidates):
        if not candidate.wanted:
            continue
        rival = pooled[-1] if other is not None and j < len(candidates) - 1 else None
        row = _row(candidate, costs[j], pooled[j], batch_size, settings)
        realised = None
        if candidate.variant is not None:  # its dense form is the first
            own, dense = mean_of_medians(timed[j]), mean_of_medians(timed[0])
            row.update(latency_ms_p50=own, t_dense_ms=dense, density=candidate.density)
            if candidate.variant.execution != 'dense' and (saved := 1 - costs[j].mean / costs[0].mean) > 0:
                row['realised_saving'] = (1 - own / dense) / saved
                if min(len(batch.ms) for batch in timed[j]) > 1:  # one round has no spread
                    share = mean_ratio(timed[j], timed[0])
                    realised = (1 - share.high) / saved, (1 - share.low) / saved
        ratio = paired_ratio(pooled[j], rival) if rival else None
        results.append(Result(row, other.name if rival and other else None, ratio, candidate.parameters, realised))
    return results


def _row(candidate: Candidate, cost: Cost, latency: Latency, batch_size: int, settings: Settings) -> dict[str, Any]:
    how, variant = settings.how, candidate.variant or Variant()
    size = candidate.subject.input_size(candidate.batches[0])
    values: dict[str, Any] = dict.fromkeys(SCHEMA)
    values |= dict(
        model=candidate.subject.name,
        execution=variant.execution,
        policy=variant.policy,
        budget=variant.budget,
        batch_size=batch_size,
        input_size=None if size is None else size[0] if size[0] == size[1] else f'{size[0]}x{size[1]}',
        device=device_name(how.device),
        threads=settings.threads,
        dtype=how.dtype,
        torch=torch.__version__,
        macs_mean=cost.mean,
        macs_std=cost.std,
        latency_ms_p50=latency.p50,
        latency_ms_p90=latency.p90,
    )
    return values


def report(results: Sequence[Result]) -> str:
    """A table to read; with the columns of dynamic networks where there is one."""
    dynamic = any(result.row['t_dense_ms'] is not None for result in results)
    heading = ['model', 'batch', 'input', 'params (M)', 'MACs (G)', 'p50 (ms)', 'p90 (ms)', 'samples/s', 'ratio [95 %]']
    if dynamic:
        heading[1:1] = ['execution', 'policy', 'budget', 'density']
        heading[-1:-1] = ['dense (ms)', 'realised saving [95 %]']
    rows = [heading]
    for result in results:
        row, ratio = result.row, result.ratio
        cells = [
            Path(row['model']).stem if is_config(row['model']) else row['model'],
            str(row['batch_size']),
            str(row['input_size'] or '-'),
            f'{result.parameters / 1e6:.2f}',
            f'{row["macs_mean"] / 1e9:.3f}',
            f'{row["latency_ms_p50"]:.2f}',
            f'{row["latency_ms_p90"]:.2f}',
            f'{1000 * row["batch_size"] / row["latency_ms_p50"]:.1f}',
            f'{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]' if ratio else '',
        ]
        if dynamic:
            cells[1:1] = [row['execution'], row['policy'] or '-', _number(row['budget'], 2), _number(row['density'], 3)]
            saving = _number(row['realised_saving'], 3)
            if result.realised:
                saving += f' [{result.realised[0]:.3f}, {result.realised[1]:.3f}]'
            cells[-1:-1] = [_number(row['t_dense_ms'], 2), saving]
        rows.append(cells)
    return table(rows)


def _number(value: float | None, digits: int) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def write_results(results: Sequence[Result], folder: str | Path, extra: Mapping[str, Any]) -> list[Path]:
    """Write ``benchmark.json`` (rows of ``SCHEMA``), ``benchmark.csv`` (with ratios and ``extra``) and ``benchmark.png``.

    Args:
        results: Of :func:`compare`.
        folder: Made where it does not exist.
        extra: Further columns of the csv that all rows share, such as the command.

    Returns:
        The files.
    """
    files = [Path(folder) / f'benchmark.{ending}' for ending in ('json', 'csv', 'png')]
    write_json(files[0], [result.row for result in results])
    write_csv(files[1], [_csv_row(result) | dict(extra) for result in results])
    plot([result.row for result in results], files[2])
    return files


def _csv_row(result: Result) -> dict[str, Any]:
    ratio = result.ratio
    low, high = result.realised or (None, None)
    return result.row | dict(
        realised_low=low,
        realised_high=high,
        parameters=result.parameters,
        against=result.against,
        ratio=ratio and round(ratio.median, 4),
        ratio_low=ratio and round(ratio.low, 4),
        ratio_high=ratio and round(ratio.high, 4),
    )


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys atomically; None is an empty cell."""
    with atomic(path) as partial, partial.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
