"""Time networks, alone or against a second one, and write what was found: the core of ``tools/benchmark.py``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eff_plugins.deploy.prepare import Preparation
from eff_plugins.engine.runs import table, write_json
from eff_plugins.files import atomic
from eff_plugins.profiling.latency import Latency, Ratio, paired_ratio, threads, time_interleaved
from eff_plugins.profiling.macs import count_macs
from eff_plugins.profiling.subjects import DATA, Subject

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
        data: A member of ``DATA``.
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
        if self.data not in DATA:
            raise ValueError(f'data {self.data!r}: must be one of {", ".join(DATA)}')


@dataclass(frozen=True)
class Result:
    """One network at one batch size.

    Attributes:
        row: Columns of ``SCHEMA``; multiply-adds are those of one picture, milliseconds those of one batch.
        against: Name of the network that it was timed against.
        ratio: Its time over that one's, paired.
        parameters: Of the prepared network.
    """

    row: dict[str, Any]
    against: str | None = None
    ratio: Ratio | None = None
    parameters: int = 0


def compare(subject: Subject, other: Subject | None, settings: Settings) -> list[Result]:
    """Time ``subject``, interleaved with ``other`` where there is one: a result for each of them and each batch size."""
    how = settings.how
    subjects = [subject] if other is None else [subject, other]
    # The counter of multiply-adds has to see the operators, which compilation hides.
    eager = [s.prepare(replace(how, compile=False)) for s in subjects]
    prepared = [s.prepare(how) for s in subjects] if how.compile else eager
    results = []
    with threads(settings.threads):
        for batch_size in settings.batch_sizes:
            count = min(DISTINCT, settings.repeats)
            inputs = [s.batches(batch_size, settings.size, settings.data, count, how) for s in subjects]
            count = min(map(len, inputs))
            timed: list[list[float]] = [[] for _ in subjects]
            for i in range(count):
                calls = {str(j): _call(s, prepared[j], inputs[j][i], how) for j, s in enumerate(subjects)}
                # of 10 repeats over 3 batches: 4, 3, 3
                repeats = settings.repeats // count + (i < settings.repeats % count)
                found = time_interleaved(calls, repeats, settings.warmup if i == 0 else 1, how.device)
                for j in range(len(subjects)):
                    timed[j] += found[str(j)].ms
            latencies = [Latency(tuple(ms)) for ms in timed]
            for j, s in enumerate(subjects):
                ratio = paired_ratio(latencies[0], latencies[1]) if other is not None and j == 0 else None
                macs = [_macs(eager[j], _call(s, eager[j], batch, how)) / batch_size for batch in inputs[j]]
                row = _row(s.name, s.input_size(inputs[j][0]), macs, latencies[j], batch_size, settings)
                results.append(Result(row, other.name if ratio and other else None, ratio, _parameters(eager[j])))
    return results


def _call(subject: Subject, model: nn.Module, batch: Any, how: Preparation) -> Callable[[], Any]:
    return lambda: subject.call(model, batch, how)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def _macs(model: nn.Module, run: Callable[[], Any]) -> int:
    return count_macs(model, run).get('', 0)


def _row(
    name: str, size: tuple[int, int] | None, macs: list[float], latency: Latency, batch_size: int, settings: Settings
) -> dict[str, Any]:
    how = settings.how
    values: dict[str, Any] = dict.fromkeys(SCHEMA)
    values |= dict(
        model=name,
        execution='dense',
        batch_size=batch_size,
        input_size=None if size is None else size[0] if size[0] == size[1] else f'{size[0]}x{size[1]}',
        device=device_name(how.device),
        threads=settings.threads,
        dtype=how.dtype,
        torch=torch.__version__,
        macs_mean=float(np.mean(macs)),
        macs_std=float(np.std(macs)),
        latency_ms_p50=latency.p50,
        latency_ms_p90=latency.p90,
    )
    return values


def device_name(device: str) -> str:
    """The processor's name where the system tells it, else ``device``."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return device
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), device)


def report(results: Sequence[Result]) -> str:
    """A table to read."""
    rows = [('model', 'batch', 'input', 'params (M)', 'MACs (G)', 'p50 (ms)', 'p90 (ms)', 'samples/s', 'ratio [95 %]')]
    for result in results:
        row = result.row
        ratio = result.ratio
        rows.append(
            (
                row['model'],
                str(row['batch_size']),
                str(row['input_size'] or '-'),
                f'{result.parameters / 1e6:.2f}',
                f'{row["macs_mean"] / 1e9:.3f}',
                f'{row["latency_ms_p50"]:.2f}',
                f'{row["latency_ms_p90"]:.2f}',
                f'{1000 * row["batch_size"] / row["latency_ms_p50"]:.1f}',
                f'{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]' if ratio else '',
            )
        )
    return table(rows)


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
    plot(results, files[2])
    return files


def _csv_row(result: Result) -> dict[str, Any]:
    ratio = result.ratio
    return result.row | dict(
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


def plot(results: Sequence[Result], path: str | Path) -> None:
    """Latency a picture against multiply-adds, a colour for each batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for batch_size in sorted({result.row['batch_size'] for result in results}):
        rows = [result.row for result in results if result.row['batch_size'] == batch_size]
        axes.scatter(
            [row['macs_mean'] / 1e9 for row in rows],
            [row['latency_ms_p50'] / batch_size for row in rows],
            label=f'batch {batch_size}',
            s=22,
        )
    largest = max(result.row['batch_size'] for result in results)
    for row in (result.row for result in results if result.row['batch_size'] == largest):
        point = (row['macs_mean'] / 1e9, row['latency_ms_p50'] / largest)
        axes.annotate(Path(row['model']).stem, point, xytext=(4, 3), textcoords='offset points', fontsize=7)
    row = results[0].row
    axes.set(
        xscale='log',
        yscale='log',
        xlabel='multiply-adds a picture (G)',
        ylabel='latency a picture (ms), median',
        title=f'{row["device"]}, {row["dtype"]}, threads {row["threads"]}, torch {row["torch"]}',
    )
    axes.grid(alpha=0.3, which='both')
    axes.legend()
    with atomic(path) as partial:
        figure.savefig(partial, dpi=130)
