"""Lines: one metric along a numeric axis, or the share of its samples at or under each value.

Along an axis: measured, fitted, and what the roofline allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import Any

from orchestrator.measure.figures import Distribution, Scaling
from orchestrator.measure.grouping import grouped
from orchestrator.measure.metric import Samples
from orchestrator.report.analyse.cell import TrialRow
from orchestrator.report.analyse.labels import axis_name
from orchestrator.report.analyse.measured import believable, in_several_units, metric_of
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.drawn import (
    MAX_LINES,
    PALETTE,
    Drawn,
    Reports,
    cut,
    drawn,
    having,
    is_numeric,
    new_plot,
    rest_of,
    whiskers,
)
from orchestrator.report.show.parts import scale_for
from orchestrator.report.show.units import Scale, scale_of

# What follows a predicted metric's name -> how its line is drawn, and against which ceilings.
_ROOFLINES = {"": ("dash", "measured ceilings"), ".datasheet": ("dot", "data sheet")}


def predicted_names(metric: str) -> tuple[str, ...]:
    """The metrics that say what arithmetic expects ``metric`` to be."""
    return tuple(f"predicted_{metric}{suffix}" for suffix in _ROOFLINES)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Slope of the least-squares line through log x, log y; None below three positive points."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    if len(points) < 3 or len({x for x, _ in points}) < 3:
        return None
    slope = linear_regression(*zip(*points, strict=True)).slope
    return 0.0 if abs(slope) < 0.005 else slope


def draw_scaling(figure: Scaling, table: SweepTable, reports: Reports) -> Drawn | None:
    """A line for each combination of the other axes; its prediction dashed beside it."""
    if figure.over not in table.axes or not is_numeric(table, figure.over):
        return None
    rows = [r for r in having(table, figure.metric) if r.axes[figure.over] is not None]
    series = grouped(rows, lambda row: rest_of(row, figure.over))
    if not any(len(members) > 1 for members in series.values()):
        return None
    scale = scale_for(rows, figure.metric)
    plot = new_plot()
    said: set[str] = set()
    for at, (name, members) in enumerate(list(series.items())[:MAX_LINES]):
        members = sorted(members, key=lambda row: row.axes[figure.over])
        colour = PALETTE[at % len(PALETTE)]
        _add_measured(plot, figure, members, name or table.title(figure.metric), scale, colour)
        names = predicted_names(figure.metric)
        for expected, (dash, ceilings) in zip(names, _ROOFLINES.values(), strict=True):
            if _add_predicted(plot, figure.over, members, expected, name, scale, colour, dash):
                said.add(f"{'dashed' if dash == 'dash' else 'dotted'}: roofline by {ceilings}")
    values = [float(row.axes[figure.over]) for row in rows]
    wide = min(values) > 0 and max(values) / min(values) >= 8
    plot.update_layout(
        xaxis_title=axis_name(figure.over),
        yaxis_title=scale.heading(table.title(figure.metric)),
        xaxis_type="log" if wide else "linear",
        yaxis_type="log" if wide or said else "linear",
        yaxis_rangemode="normal" if wide or said else "tozero",
        showlegend=True,
    )
    if not wide and len(set(values)) <= 8:
        plot.update_layout(xaxis_tickvals=sorted(set(values)))
    beside = f" Also shown: {' and '.join(sorted(said))}." if said else ""
    return drawn(
        f"{table.title(figure.metric)} over {axis_name(figure.over)}",
        "Median with its 95 % interval; ∝ x^k: least-squares exponent from three points on."
        + beside
        + cut(len(series), MAX_LINES),
        plot,
    )


def _add_measured(
    plot: Any, figure: Scaling, members: Sequence[TrialRow], name: str, scale: Scale, colour: str
) -> None:
    xs = [float(row.axes[figure.over]) for row in members]
    cells = [row.cells[figure.metric] for row in members]
    ys = [cell.median or 0.0 for cell in cells]
    fitted = exponent(xs, ys)
    plot.add_scatter(
        name=name + (f"  ∝ x^{fitted:.2f}" if fitted is not None else ""),
        legendgroup=name,
        x=xs,
        y=[y / scale.factor for y in ys],
        mode="lines+markers",
        line={"color": colour},
        error_y=whiskers(cells, scale),
        hovertemplate="%{x}: %{y:.4g} " + scale.symbol,
    )


def _add_predicted(
    plot: Any,
    over: str,
    members: Sequence[TrialRow],
    metric: str,
    name: str,
    scale: Scale,
    colour: str,
    dash: str,
) -> bool:
    """Draw what arithmetic expects, where it says anything; one legend entry serves both lines."""
    found = [
        (float(row.axes[over]), cell.median)
        for row in members
        if (cell := row.cells.get(metric)) is not None and cell.median is not None
    ]
    if len(found) < 2:
        return False
    plot.add_scatter(
        name=f"{name} predicted".strip(),
        legendgroup=name,
        showlegend=False,
        x=[x for x, _ in found],
        y=[y / scale.factor for _, y in found],
        mode="lines",
        line={"color": colour, "dash": dash, "width": 1.5},
        hovertemplate="predicted at %{x}: %{y:.4g} " + scale.symbol,
    )
    return True


ECDF_POINTS = 200


def draw_distribution(figure: Distribution, table: SweepTable, reports: Reports) -> Drawn | None:
    """The empirical distribution of the pooled samples, a line a trial."""
    lines: list[tuple[str, list[float]]] = []
    for row in table.ok:
        counted = believable(reports.get(row.hash, ()))
        if in_several_units(counted, figure.metric):
            continue
        found = (metric_of(report, figure.metric) for report in counted)
        samples = [v for metric in found if isinstance(metric, Samples) for v in metric.values]
        if len(samples) > 1:
            lines.append((row.label, sorted(samples)))
    if not lines:
        return None
    unit = next(
        m.unit
        for row in table.rows
        for report in reports.get(row.hash, ())
        if (m := metric_of(report, figure.metric)) is not None
    )
    scale = scale_of([values[len(values) // 2] for _, values in lines], unit)
    plot = new_plot()
    for label, values in lines[:MAX_LINES]:
        n = len(values)
        # Every sample where there are few; else quantiles, both ends among them.
        at = sorted({round(i * (n - 1) / (ECDF_POINTS - 1)) for i in range(ECDF_POINTS)})
        plot.add_scatter(
            name=label,
            x=[values[i] / scale.factor for i in at],
            y=[(i + 1) / n for i in at],
            mode="lines",
            line_shape="hv",
            hovertemplate="%{y:.1%} within %{x:.4g} " + scale.symbol,
        )
    plot.update_layout(
        xaxis_title=scale.heading(table.title(figure.metric)),
        yaxis_title="share of samples",
        yaxis_tickformat=".0%",
        showlegend=True,
    )
    return drawn(
        f"{table.title(figure.metric)}: every sample",
        "Share of samples at or under a value; steep is steady, a step is two modes."
        + cut(len(lines), MAX_LINES),
        plot,
    )
