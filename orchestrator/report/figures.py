"""Draws a sweep's figures with plotly: one function a kind, each a few traces and no styling.

Colours, fonts and the dark theme are the page's (:mod:`orchestrator.report.html`); plotly is
imported when the first figure is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.figures import (
    Bars,
    Breakdown,
    Distribution,
    Figure,
    Pareto,
    Scaling,
)
from orchestrator.measure.metric import Samples
from orchestrator.report.answer import pareto_front
from orchestrator.report.labels import axis_name, axis_value, metric_title
from orchestrator.report.rows import SweepTable, TrialRow, believable, better_when, metric_of
from orchestrator.report.units import Scale, scale_of, with_ci

Reports = Mapping[str, Sequence[AttemptReport]]

# A page must open on a laptop: beyond these a figure says what it left out.
MAX_LINES = 24
MAX_BARS = 60
ECDF_POINTS = 200


@dataclass(frozen=True)
class Drawn:
    """A figure ready for the page: its title, a caption, and plotly's data and layout."""

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def default_figures(table: SweepTable) -> list[Figure]:
    """Figures of a task that declares none: bars of the first headline metrics, scaling, Pareto."""
    measured = [row for row in table.rows if row.outcome == "ok"]
    spread = [
        name
        for name in table.metrics
        if any(row.cells[name].median is not None for row in measured)
    ]
    figures: list[Figure] = []
    memory = next((n for n in spread if n.endswith("_bytes")), None)
    if spread and memory is not None and memory != spread[0]:
        quality = ("perplexity", "kl_to_reference", "top1_agreement")
        figures.append(Pareto(memory, spread[0], next((n for n in spread if n in quality), None)))
    figures.extend(Bars(name) for name in spread[:4])
    for axis in table.axes:
        if _is_numeric(table, axis):
            figures.extend(Scaling(name, axis) for name in spread[:2])
    if any(name in ("tpot_s", "ttft_s") for name in spread):
        figures.append(Distribution("itl_s"))
    return figures


def draw(figure: Figure, table: SweepTable, reports: Reports) -> Drawn | None:
    """One figure, or None where the sweep has nothing for it."""
    drawers: dict[type, Callable[[Any, SweepTable, Reports], Drawn | None]] = {
        Bars: _bars,
        Scaling: _scaling,
        Distribution: _distribution,
        Pareto: _pareto,
        Breakdown: _breakdown,
    }
    return drawers[type(figure)](figure, table, reports)


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Slope of the least-squares line through log x, log y; None below three positive points."""
    points = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True) if x > 0 and y > 0]
    if len(points) < 3 or len({x for x, _ in points}) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    over = sum((x - mean_x) * (y - mean_y) for x, y in points)
    slope = over / sum((x - mean_x) ** 2 for x, _ in points)
    return 0.0 if abs(slope) < 0.005 else slope


def _bars(figure: Bars, table: SweepTable, reports: Reports) -> Drawn | None:
    rows = _with(table, figure.metric)[:MAX_BARS]
    if not rows:
        return None
    go = _plotly()
    scale = _scale(rows, figure.metric)
    first = table.axes[0] if table.axes else None
    plot = go.Figure()
    series: dict[str, list[TrialRow]] = {}
    for row in rows:
        series.setdefault(_rest(row, first), []).append(row)
    for name, members in series.items():
        cells = [row.cells[figure.metric] for row in members]
        medians = [cell.median or 0.0 for cell in cells]
        highs = [
            cell.ci_high if cell.ci_high is not None else m
            for cell, m in zip(cells, medians, strict=True)
        ]
        lows = [
            cell.ci_low if cell.ci_low is not None else m
            for cell, m in zip(cells, medians, strict=True)
        ]
        plot.add_bar(
            name=name,
            x=[axis_value(row.axes[first]) if first else row.label for row in members],
            y=[m / scale.factor for m in medians],
            error_y={
                "type": "data",
                "array": [(h - m) / scale.factor for h, m in zip(highs, medians, strict=True)],
                "arrayminus": [
                    (m - low) / scale.factor for low, m in zip(lows, medians, strict=True)
                ],
            },
            customdata=[[row.label, row.hash[:12]] for row in members],
            hovertemplate="%{customdata[0]}<br>%{y:.4g} " + scale.symbol + "<br>%{customdata[1]}",
        )
    plot.update_layout(
        barmode="group",
        yaxis_title=_axis_title(figure.metric, scale),
        xaxis_title=axis_name(first) if first else "",
        xaxis_type="category",
        showlegend=len(series) > 1,
    )
    cut = _cut(len(_with(table, figure.metric)), MAX_BARS)
    return _drawn(
        f"{metric_title(figure.metric)} by trial",
        f"Median; whiskers: 95 % interval. {_better(figure.metric, rows)}{cut}",
        plot,
    )


def _scaling(figure: Scaling, table: SweepTable, reports: Reports) -> Drawn | None:
    if figure.over not in table.axes or not _is_numeric(table, figure.over):
        return None
    rows = _with(table, figure.metric)
    series: dict[str, list[TrialRow]] = {}
    for row in rows:
        series.setdefault(_rest(row, figure.over), []).append(row)
    if not any(len(members) > 1 for members in series.values()):
        return None
    go = _plotly()
    scale = _scale(rows, figure.metric)
    plot = go.Figure()
    for name, members in list(series.items())[:MAX_LINES]:
        members = sorted(members, key=lambda row: row.axes[figure.over])
        xs = [float(row.axes[figure.over]) for row in members]
        cells = [row.cells[figure.metric] for row in members]
        ys = [cell.median or 0.0 for cell in cells]
        fitted = exponent(xs, ys)
        plot.add_scatter(
            name=f"{name or metric_title(figure.metric)}"
            + (f"  ∝ x^{fitted:.2f}" if fitted is not None else ""),
            x=xs,
            y=[y / scale.factor for y in ys],
            mode="lines+markers",
            error_y={
                "type": "data",
                "array": [
                    ((c.ci_high or y) - y) / scale.factor for c, y in zip(cells, ys, strict=True)
                ],
                "arrayminus": [
                    (y - (c.ci_low or y)) / scale.factor for c, y in zip(cells, ys, strict=True)
                ],
            },
            hovertemplate="%{x}: %{y:.4g} " + scale.symbol,
        )
    values = [float(row.axes[figure.over]) for row in rows]
    wide = min(values) > 0 and max(values) / min(values) >= 8
    plot.update_layout(
        xaxis_title=axis_name(figure.over),
        yaxis_title=_axis_title(figure.metric, scale),
        xaxis_type="log" if wide else "linear",
        yaxis_type="log" if wide else "linear",
        yaxis_rangemode="normal" if wide else "tozero",
        showlegend=True,
    )
    return _drawn(
        f"{metric_title(figure.metric)} over {axis_name(figure.over)}",
        "Median with its 95 % interval; ∝ x^k: least-squares exponent from three points on."
        + _cut(len(series), MAX_LINES),
        plot,
    )


def _distribution(figure: Distribution, table: SweepTable, reports: Reports) -> Drawn | None:
    lines: list[tuple[str, list[float]]] = []
    for row in table.rows:
        samples: list[float] = []
        for report in believable(reports.get(row.hash, ())):
            metric = metric_of(report, figure.metric)
            if isinstance(metric, Samples):
                samples.extend(metric.values)
        if len(samples) > 1 and row.outcome == "ok":
            lines.append((row.label, sorted(samples)))
    if not lines:
        return None
    go = _plotly()
    unit = next(
        m.unit
        for row in table.rows
        for report in reports.get(row.hash, ())
        if (m := metric_of(report, figure.metric)) is not None
    )
    scale = scale_of([values[len(values) // 2] for _, values in lines], unit)
    plot = go.Figure()
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
        xaxis_title=_axis_title(figure.metric, scale),
        yaxis_title="share of samples",
        yaxis_tickformat=".0%",
        showlegend=True,
    )
    return _drawn(
        f"{metric_title(figure.metric)}: every sample",
        "Share of samples at or under a value; steep is steady, a step is two modes."
        + _cut(len(lines), MAX_LINES),
        plot,
    )


def _pareto(figure: Pareto, table: SweepTable, reports: Reports) -> Drawn | None:
    names = [figure.x, figure.y, *([figure.colour] if figure.colour else [])]
    rows = [
        row
        for row in _with(table, figure.x)
        if all(name in row.cells and row.cells[name].median is not None for name in names)
    ]
    if len(rows) < 2:
        return None
    go = _plotly()
    front = {row.hash for row in pareto_front(rows, names)}
    scales = {name: _scale(rows, name) for name in names}
    plot = go.Figure()
    for on_front in (True, False):
        members = [row for row in rows if (row.hash in front) == on_front]
        if not members:
            continue
        marker: dict[str, Any] = {
            "size": 13 if on_front else 9,
            "symbol": "diamond" if on_front else "circle",
            # The dark end of the colour scale must show on a dark page too.
            "line": {"width": 1.5, "color": "#888888"},
        }
        if figure.colour is not None:
            marker["color"] = _values(members, figure.colour, scales[figure.colour])
            marker["coloraxis"] = "coloraxis"
        plot.add_scatter(
            name="nothing beats it" if on_front else "beaten",
            x=_values(members, figure.x, scales[figure.x]),
            y=_values(members, figure.y, scales[figure.y]),
            mode="markers+text" if on_front and len(front) <= 16 else "markers",
            text=[row.label for row in members],
            textposition="top center",
            marker=marker,
            cliponaxis=False,
            customdata=[
                "<br>".join([row.label, *(_told(row, n) for n in names)]) for row in members
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    plot.update_layout(
        xaxis_title=_axis_title(figure.x, scales[figure.x]),
        yaxis_title=_axis_title(figure.y, scales[figure.y]),
        showlegend=False,
    )
    if figure.colour is not None:
        title = _axis_title(figure.colour, scales[figure.colour])
        plot.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": {"title": title}})
    said = " × ".join(metric_title(name) for name in names)
    return _drawn(
        said,
        "Diamonds: trials that no other trial equals or beats in all of these at once; circles: the"
        " rest.",
        plot,
    )


def _breakdown(figure: Breakdown, table: SweepTable, reports: Reports) -> Drawn | None:
    rows = [
        row
        for row in table.rows
        if row.outcome == "ok"
        and any(m in row.cells and row.cells[m].median is not None for m in figure.metrics)
    ][:MAX_BARS]
    names = [m for m in figure.metrics if any(m in row.cells for row in rows)]
    if not rows or not names:
        return None
    go = _plotly()
    scale = _scale(rows, names[0])
    plot = go.Figure()
    for name in names:
        plot.add_bar(
            name=metric_title(name),
            y=[row.label for row in rows],
            x=[(row.cells[name].median or 0.0) / scale.factor for row in rows],
            orientation="h",
            hovertemplate=metric_title(name) + ": %{x:.4g} " + scale.symbol,
        )
    plot.update_layout(
        barmode="stack", xaxis_title=scale.symbol, yaxis_autorange="reversed", showlegend=True
    )
    return _drawn("Where the time goes", "Medians, stacked.", plot)


def _plotly() -> Any:
    import plotly.graph_objects as go

    return go


def _drawn(title: str, caption: str, plot: Any) -> Drawn:
    # plotly's own template is 7 kB of styling a figure that the page's theme would override.
    plot.update_layout(template="none")
    tree = plot.to_plotly_json()
    layout = {key: value for key, value in tree["layout"].items() if key != "template"}
    return Drawn(title, caption.strip(), tree["data"], layout)


def _with(table: SweepTable, metric: str) -> list[TrialRow]:
    return [
        row
        for row in table.rows
        if row.outcome == "ok" and metric in row.cells and row.cells[metric].median is not None
    ]


def _values(rows: Sequence[TrialRow], metric: str, scale: Scale) -> list[float]:
    return [(row.cells[metric].median or 0.0) / scale.factor for row in rows]


def _told(row: TrialRow, metric: str) -> str:
    cell = row.cells[metric]
    assert cell.median is not None
    return f"{metric_title(metric)} {with_ci(cell.median, cell.ci_low, cell.ci_high, cell.unit)}"


def _scale(rows: Sequence[TrialRow], metric: str) -> Scale:
    cells = [row.cells[metric] for row in rows if row.cells[metric].median is not None]
    return scale_of([cell.median for cell in cells], cells[0].unit if cells else "")


def _axis_title(metric: str, scale: Scale) -> str:
    return metric_title(metric) + (f" ({scale.symbol})" if scale.symbol else "")


def _better(metric: str, rows: Sequence[TrialRow]) -> str:
    direction = better_when(metric, rows[0].cells[metric].unit)
    return f"{direction.capitalize()} is better. " if direction else ""


def _rest(row: TrialRow, left_out: str | None) -> str:
    """The trial's values on every axis but one; what a line or a colour of a figure stands for."""
    parts = []
    for axis, value in row.axes.items():
        if axis != left_out:
            bare = "." not in axis and isinstance(value, str)
            parts.append(axis_value(value) if bare else f"{axis_name(axis)} {axis_value(value)}")
    return " · ".join(parts)


def _is_numeric(table: SweepTable, axis: str) -> bool:
    values = {row.axes.get(axis) for row in table.rows}
    return len(values) > 1 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )


def _cut(found: int, most: int) -> str:
    return f" The first {most} of {found}." if found > most else ""
