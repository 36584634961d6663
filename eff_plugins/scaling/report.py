"""Show a family of scaled networks: a table, a plot, and an ``arch.json`` for each member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eff_plugins.engine.runs import table, write_json
from eff_plugins.files import atomic
from eff_plugins.profiling.latency import Latency
from eff_plugins.scaling.descriptions import Description
from eff_plugins.scaling.rules import Factors, Rule
from eff_plugins.scaling.search import Member, cost


def member_name(base: str, rule: Rule, member: Member) -> str:
    """A file's stem such as ``efficientnet_b0_fast_0.4G``."""
    target = f'{member.target / 1e9:g}G' if member.unit == 'macs' else f'{member.target:g}ms'
    return f'{Path(base).stem}_{rule.name}_{target}'


def arch_file(member: Member, base: str, rule: Rule) -> dict[str, Any]:
    """Content of the member's ``arch.json``; ``search`` says where it comes from."""
    search = dict(
        base=base,
        **rule.describe(),
        factors=asdict(member.factors),
        target=member.target,
        reached=member.reached,
        unit=member.unit,
        tolerance=member.tolerance,
    )
    return {**member.description.arch(), 'search': search}


def family_rows(
    base: tuple[str, Description], members: Mapping[str, Member], times: Mapping[str, Latency] | None = None
) -> list[dict[str, Any]]:
    """A row a network, the base first.

    Args:
        base: Its name and description.
        members: Name -> member.
        times: Name -> latency of base and members; None where nothing was timed.

    Returns:
        Rows of plain values: name, input_size, depth, width, resolution (the rule's factors), params, macs, activations,
        latency_ms_p50 (None where not timed), target, unit, reached, error.
    """
    rows = []
    for name, member in [(base[0], None), *members.items()]:
        description = member.description if member else base[1]
        counted = cost(description)
        factors = member.factors if member else Factors(1.0, 1.0, 1.0)
        rows.append(
            dict(
                name=name,
                input_size=description.input_size,
                depth=factors.depth,
                width=factors.width,
                resolution=factors.resolution,
                **asdict(counted),
                latency_ms_p50=times[name].p50 if times else None,
                target=member and member.target,
                unit=member and member.unit,
                reached=member and member.reached,
                error=member and member.error,
            )
        )
    return rows


def family_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows to read."""
    heading = (
        'network',
        'input',
        'depth',
        'width',
        'resolution',
        'params (M)',
        'MACs (G)',
        'acts (M)',
        'p50 (ms)',
        'to target',
    )
    lines = [heading]
    for row in rows:
        lines.append(
            (
                row['name'],
                str(row['input_size']),
                *(f'{row[key]:.3f}' for key in ('depth', 'width', 'resolution')),
                f'{row["params"] / 1e6:.2f}',
                f'{row["macs"] / 1e9:.4f}',
                f'{row["activations"] / 1e6:.2f}',
                '-' if row['latency_ms_p50'] is None else f'{row["latency_ms_p50"]:.2f}',
                '-' if row['error'] is None else f'{100 * row["error"]:+.1f} %',
            )
        )
    return table(lines)


def plot_family(rows: Sequence[Mapping[str, Any]], title: str, path: str | Path) -> None:
    """Parameters, activations, input side and (where timed) latency against multiply-adds, as multiples of the base's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    base, ordered = rows[0], sorted(rows, key=lambda row: row['macs'])
    shown = {
        'params': 'parameters',
        'activations': 'activations',
        'input_size': 'input side',
        'latency_ms_p50': 'latency',
    }
    for key, label in shown.items():
        if base[key] is not None:
            x, y = ([row[k] / base[k] for row in ordered] for k in ('macs', key))
            axes.plot(x, y, marker='o', markersize=4, label=label)
    for row in ordered:
        axes.axvline(row['macs'] / base['macs'], color='0.85', linewidth=0.8, zorder=0)
    axes.set(
        xscale='log',
        yscale='log',
        xlabel=f"multiply-adds over the base's ({base['macs'] / 1e9:.3g} G)",
        ylabel='multiple of the base',
        title=title,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f'{value:g}')
        axis.set_minor_formatter(lambda value, _: f'{value:g}')
    axes.grid(alpha=0.3, which='both')
    axes.legend()
    with atomic(path) as partial:
        figure.savefig(partial, dpi=130)


def write_family(
    folder: str | Path,
    base: str,
    rule: Rule,
    members: Mapping[str, Member],
    rows: Sequence[Mapping[str, Any]],
    command: str,
) -> list[Path]:
    """Write ``NAME.json`` a member (an ``arch.json``), ``family.json`` (the rows and the command) and ``family.png``."""
    files = []
    for name, member in members.items():
        files.append(Path(folder) / f'{name}.json')
        write_json(files[-1], arch_file(member, base, rule))
    summary = {'base': base, **rule.describe(), 'command': command, 'rows': list(rows)}
    files += [Path(folder) / 'family.json', Path(folder) / 'family.png']
    write_json(files[-2], summary)
    parameters = ', '.join(f'{key} {value}' for key, value in rule.describe().items() if key != 'rule')
    plot_family(rows, f'{base}, {rule.name} rule ({parameters})', files[-1])
    return files
