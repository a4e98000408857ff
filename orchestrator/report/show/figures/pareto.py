"""Trials in the plane of two metrics; what nothing beats is marked."""

from __future__ import annotations

from typing import Any

from orchestrator.measure.figures import Pareto
from orchestrator.measure.grouping import grouped
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.answer import pareto_front
from orchestrator.report.show.figures.drawn import (
    Drawn,
    Reports,
    drawn,
    having,
    new_plot,
    told,
    values_of,
)
from orchestrator.report.show.parts import scale_for


def draw_pareto(figure: Pareto, table: SweepTable, reports: Reports) -> Drawn | None:
    """Points of two metrics, a third as colour; diamonds are what nothing beats."""
    names = [figure.x, figure.y, *([figure.colour] if figure.colour else [])]
    rows = [row for row in having(table, figure.x) if all(map(row.has, names))]
    if len(rows) < 2:
        return None
    # A short prompt does not beat a long one: only trials of one workload are held together.
    groups = grouped(rows, lambda row: row.group)
    front = {row.hash for members in groups.values() for row in pareto_front(members, names)}
    scales = {name: scale_for(rows, name) for name in names}
    plot = new_plot()
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
            marker["color"] = values_of(members, figure.colour, scales[figure.colour])
            marker["coloraxis"] = "coloraxis"
        plot.add_scatter(
            name="Pareto front" if on_front else "others",
            x=values_of(members, figure.x, scales[figure.x]),
            y=values_of(members, figure.y, scales[figure.y]),
            mode="markers+text" if on_front and len(front) <= 16 else "markers",
            text=[row.label for row in members],
            textposition="top center",
            marker=marker,
            cliponaxis=False,
            customdata=[
                "<br>".join([row.label, *(told(row, n) for n in names)]) for row in members
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    # Labels stand above their points: room for them at both ends.
    xs = values_of(rows, figure.x, scales[figure.x])
    pad = 0.16 * (max(xs) - min(xs) or abs(max(xs)) or 1.0)
    plot.update_layout(
        xaxis_range=[min(xs) - pad, max(xs) + pad],
        xaxis_title=scales[figure.x].heading(table.title(figure.x)),
        yaxis_title=scales[figure.y].heading(table.title(figure.y)),
        showlegend=False,
    )
    if figure.colour is not None:
        title = scales[figure.colour].heading(table.title(figure.colour))
        bar = {"title": {"text": title, "side": "right"}, "thickness": 14}
        plot.update_layout(coloraxis={"colorscale": "Viridis", "colorbar": bar})
    said = " × ".join(table.title(name) for name in names)
    return drawn(
        said,
        "Diamonds: trials that no other"
        + (" of their group" if len(groups) > 1 else "")
        + " equals or beats in all of these at once; circles: the rest.",
        plot,
    )
