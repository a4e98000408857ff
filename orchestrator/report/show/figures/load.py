"""A load seen in time: a curve that a task recorded as points, and its slowest requests."""

from __future__ import annotations

from collections.abc import Iterator
from operator import add
from typing import Any

from orchestrator.measure.figures import Curve, Waterfall
from orchestrator.report.analyse.measured import believable
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.drawn import (
    LEGEND_ABOVE,
    MAX_LINES,
    Drawn,
    Reports,
    cut,
    drawn,
    new_plot,
)


def draw_curve(figure: Curve, table: SweepTable, reports: Reports) -> Drawn | None:
    """A line a trial, of its last attempt."""
    found = list(_facts(figure.fact, table, reports))
    if not found:
        return None
    plot = new_plot()
    for label, points in found[:MAX_LINES]:
        plot.add_scatter(
            name=label,
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines",
            hovertemplate="%{y:.4g} at %{x:.4g}",
        )
    plot.update_layout(xaxis_title=figure.x, yaxis_title=figure.y, yaxis_rangemode="tozero")
    plot.update_layout(showlegend=True)
    return drawn(figure.title, figure.caption + cut(len(found), MAX_LINES), plot)


def draw_waterfall(figure: Waterfall, table: SweepTable, reports: Reports) -> Drawn | None:
    """Requests one below the other, of the trial that has the slowest."""
    found = max(
        _facts(figure.fact, table, reports),
        key=lambda each: sum(each[1][0]["parts_s"].values()),
        default=None,
    )
    if found is None:
        return None
    label, requests = found
    requests = sorted(requests, key=lambda request: request["due_s"])
    names = [f"due at {request['due_s']:.2f} s" for request in requests]
    plot = new_plot()
    begins = [request["due_s"] for request in requests]
    for part in requests[0]["parts_s"]:
        lengths = [request["parts_s"][part] for request in requests]
        plot.add_bar(
            name=part,
            y=names,
            x=lengths,
            base=begins,
            orientation="h",
            hovertemplate=f"{part}: %{{x:.3g}} s",
        )
        begins = list(map(add, begins, lengths))
    plot.update_layout(
        barmode="overlay",
        yaxis_autorange="reversed",
        xaxis_title="s since the load began",
        legend=LEGEND_ABOVE,
        showlegend=True,
    )
    caption = f"{figure.caption} {label}.".strip()
    return drawn(figure.title, caption, plot, height_px=160 + 22 * len(requests))


def _facts(name: str, table: SweepTable, reports: Reports) -> Iterator[tuple[str, list[Any]]]:
    """The fact of each trial's last attempt that counts, by the trial's label."""
    for row in table.ok:
        having = [r for r in believable(reports.get(row.hash, ())) if r.facts.get(name)]
        if having:
            yield row.label, having[-1].facts[name]
