"""Bars: one metric of every trial, several stacked, or the largest shares of a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.measure.figures import Bars, Breakdown, Ranking
from orchestrator.measure.grouping import grouped
from orchestrator.report.analyse.cell import TrialRow
from orchestrator.report.analyse.labels import axis_name, axis_value, short_hash
from orchestrator.report.analyse.measured import believable
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.drawn import (
    LEGEND_ABOVE,
    MAX_BARS,
    Drawn,
    Reports,
    better_line,
    cut,
    drawn,
    having,
    new_plot,
    rest_of,
    stacked,
    values_of,
    whiskers,
    wrapped,
)
from orchestrator.report.show.parts import scale_for

# A line of a label, what stands above and below the bars, and a figure's height in page.css.
_LINE_PX, _AROUND_PX, _USUAL_PX = 16, 140, 368


def draw_bars(figure: Bars, table: SweepTable, reports: Reports) -> Drawn | None:
    """A group of bars for each value of the sweep's first axis, with whiskers."""
    rows = having(table, figure.metric)[:MAX_BARS]
    if not rows:
        return None
    scale = scale_for(rows, figure.metric)
    first = table.axes[0] if table.axes else None
    plot = new_plot()
    series = grouped(rows, lambda row: rest_of(row, first))
    # A ladder, or a sweep of which little is left: nothing would stand side by side.
    alone = first is None or (len(series) == len(rows) > 1)
    if alone:
        series = {"": rows}
    for name, members in series.items():
        cells = [row.cells[figure.metric] for row in members]
        plot.add_bar(
            name=name,
            x=[_name(row, None if alone else first) for row in members],
            y=values_of(members, figure.metric, scale),
            error_y=whiskers(cells, scale),
            customdata=[[row.label, short_hash(row.hash)] for row in members],
            hovertemplate="%{customdata[0]}<br>%{y:.4g} " + scale.symbol + "<br>%{customdata[1]}",
        )
    plot.update_layout(
        barmode="group",
        yaxis_title=scale.heading(table.title(figure.metric)),
        xaxis_title=axis_name(first) if first and not alone else "",
        xaxis_type="category",
        showlegend=len(series) > 1,
    )
    left_out = cut(len(having(table, figure.metric)), MAX_BARS)
    return drawn(
        f"{table.title(figure.metric)} by trial",
        f"Median; whiskers: 95 % interval. {better_line(figure.metric, rows)}{left_out}",
        plot,
    )


def _name(row: TrialRow, axis: str | None) -> str:
    return wrapped(row.label) if axis is None else axis_value(row.axes[axis], axis)


def draw_breakdown(figure: Breakdown, table: SweepTable, reports: Reports) -> Drawn | None:
    """One stacked bar a trial."""
    rows = [row for row in table.ok if any(map(row.has, figure.metrics))][:MAX_BARS]
    names = [m for m in figure.metrics if any(m in row.cells for row in rows)]
    if not rows or not names:
        return None
    scale = scale_for(rows, names[0])
    labels = [wrapped(row.label) for row in rows]
    plot = stacked(
        labels,
        {table.title(name): values_of(rows, name, scale) for name in names},
        lambda title: f"{title}: %{{x:.4g}} {scale.symbol}",
    )
    plot.update_layout(xaxis_title=scale.symbol, legend=LEGEND_ABOVE)
    lines = sum(label.count("<br>") + 1 for label in labels)
    height_px = _AROUND_PX + _LINE_PX * lines
    return drawn(
        "Where the time goes",
        "Medians, stacked.",
        plot,
        height_px=height_px if height_px > _USUAL_PX else None,
    )


# As many parts as there are colours that can be told apart; the others are one grey part.
MAX_PARTS = 7
_REST = "all others"
_REST_COLOUR = "#8a929c"


def draw_ranking(figure: Ranking, table: SweepTable, reports: Reports) -> Drawn | None:
    """Bars of 100 % each; parts in the order of what they take over all trials."""
    shares: dict[str, dict[str, float]] = {}
    for row in table.ok:
        attempts = believable(reports.get(row.hash, ()))
        if attempts and (found := _mean_shares([a.facts.get(figure.fact) for a in attempts])):
            shares[wrapped(row.label)] = found
    if not shares:
        return None
    labels = list(shares)[:MAX_BARS]
    totals: dict[str, float] = defaultdict(float)
    for label in labels:
        for name, share in shares[label].items():
            totals[name] += share
    parts = sorted(totals, key=lambda name: -totals[name])[:MAX_PARTS]
    shown = {name: [shares[label].get(name, 0.0) for label in labels] for name in parts}
    rest = [max(1.0 - sum(taken), 0.0) for taken in zip(*shown.values(), strict=True)]
    plot = stacked(
        labels, {**shown, _REST: rest}, lambda name: f"%{{y}}<br>{name}: %{{x:.1%}}<extra></extra>"
    )
    plot.data[-1].marker.color = _REST_COLOUR
    plot.update_layout(xaxis={"tickformat": ".0%", "range": [0, 1]})
    return drawn(
        figure.title,
        f"Shares of the whole, which is 100 %. {figure.caption}".strip()
        + cut(len(shares), MAX_BARS),
        plot,
    )


def _mean_shares(found: Sequence[Any]) -> dict[str, float]:
    """Mean share of each named part over the attempts that tell it."""
    told = [rows for rows in found if isinstance(rows, Sequence) and not isinstance(rows, str)]
    sums: dict[str, float] = defaultdict(float)
    for rows in told:
        for row in rows:
            if isinstance(row, Mapping) and isinstance(row.get("share"), (int, float)):
                sums[str(row.get("name", "?"))] += float(row["share"]) / len(told)
    return sums
