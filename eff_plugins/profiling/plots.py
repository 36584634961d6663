"""The pictures of a benchmark: latency against multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eff_plugins.files import atomic

Row = Mapping[str, Any]


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Latency a picture against multiply-adds, a colour for each batch size, and for each variant of a dynamic network.

    Args:
        rows: Of a benchmark.
        path: Of the picture; it is written atomically.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if any(row['t_dense_ms'] is not None for row in rows):
        _draw_dynamic(axes, rows)
    else:
        _draw_static(axes, rows)
    row = rows[0]
    axes.set(
        xlabel='multiply-adds a picture (G)',
        ylabel='latency a picture (ms), median',
        title=f'{row["device"]}, {row["dtype"]}, threads {row["threads"]}, torch {row["torch"]}',
    )
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=8)
    with atomic(path) as partial:
        figure.savefig(partial, dpi=130)


def _point(row: Row) -> tuple[float, float]:
    return row['macs_mean'] / 1e9, row['latency_ms_p50'] / row['batch_size']


def _draw_static(axes: Any, rows: Sequence[Row]) -> None:
    """Networks of any size, on logarithmic axes."""
    for batch_size in sorted({row['batch_size'] for row in rows}):
        points = [_point(row) for row in rows if row['batch_size'] == batch_size]
        axes.scatter(*zip(*points, strict=True), label=f'batch {batch_size}', s=22)
    largest = max(row['batch_size'] for row in rows)
    for row in rows:
        if row['batch_size'] == largest:
            axes.annotate(Path(row['model']).stem, _point(row), xytext=(4, 3), textcoords='offset points', fontsize=7)
    axes.set(xscale='log', yscale='log')


def _draw_dynamic(axes: Any, rows: Sequence[Row]) -> None:
    """The variants of a network from nothing up: where latency followed multiply-adds they would lie on the dotted lines."""
    series: dict[tuple, list[Row]] = {}
    for row in rows:
        series.setdefault((Path(row['model']).stem, row['batch_size'], row['execution'], row['policy']), []).append(row)
    for (model, batch_size, execution, policy), members in series.items():
        members.sort(key=_point)
        label = f'{model}, batch {batch_size}, {execution}' + (f', {policy}' if policy else '')
        (line,) = axes.plot(*zip(*map(_point, members), strict=True), marker='o', ms=4, lw=1.2, label=label)
        for row in members:
            if row['budget'] is not None:
                axes.annotate(f'{row["budget"]:g}', _point(row), xytext=(4, -9), textcoords='offset points', fontsize=7)
        if execution == 'dense':
            macs, latency = _point(members[-1])
            axes.plot([0, macs], [0, latency], ls=':', lw=0.9, color=line.get_color())
    axes.set(xlim=(0, None), ylim=(0, None))
