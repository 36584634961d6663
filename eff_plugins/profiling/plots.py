"""The pictures of a benchmark: latency against multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
