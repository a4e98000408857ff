"""A trial over time: a point a run with its interval, the levels, and a line where one steps."""

from __future__ import annotations

from typing import Any

from orchestrator.report.analyse.history import Point, Series, Step
from orchestrator.report.show.figures.drawn import PALETTE, Drawn, drawn, new_plot
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import Scale, ratio, scale_of, utc

_COLOURS = {"regression": "#D55E00", "improvement": "#009E73"}
_SOFT = "#7F7F7F"
_MOST_NAMED = 3  # differences in a step's label


def draw_over_time(series: Series) -> Drawn:
    """The figure of one trial."""
    scale = scale_of([point.median for point in series.points], series.spec.unit)
    plot = new_plot()
    usual = [point for point in series.points if not point.is_alone]
    _add_points(plot, usual, scale, "run", "circle")
    if alone := [point for point in series.points if point.is_alone]:
        _add_points(plot, alone, scale, "run alone", "circle-open")
    _add_levels(plot, series, scale)
    for step in series.steps:
        _mark(plot, series, step, scale)
    plot.update_layout(yaxis_title=scale.heading(series.spec.title), showlegend=False)
    better = f"{series.spec.better.capitalize()} is better. " if series.spec.better else ""
    now = series.levels[-1][1] if series.levels else series.points[-1].median
    at = series.levels[-1][0] if series.levels else 0
    since = f"{series.spec.title} is {scale.text(now)} since {utc(series.points[at].at)}. "
    return drawn(series.label, f"{since}{better}{series.machine}", plot)


def _add_points(plot: Any, points: list[Point], scale: Scale, name: str, symbol: str) -> None:
    ends = [
        (p.median, p.median if p.ci_low is None else p.ci_low, p.ci_high or p.median)
        for p in points
    ]
    plot.add_scatter(
        name=name,
        x=[utc(point.at, "second") for point in points],
        y=[point.median / scale.factor for point in points],
        mode="markers",
        marker={"color": PALETTE[0], "size": 6, "symbol": symbol},
        error_y={
            "type": "data",
            "array": [(high - median) / scale.factor for median, _, high in ends],
            "arrayminus": [(median - low) / scale.factor for median, low, _ in ends],
            "color": PALETTE[0],
            "thickness": 1,
            "width": 2,
        },
        text=[f"{len(point.attempts)} attempts, run {point.run[:8]}" for point in points],
        hovertemplate="%{x}<br>%{y:.4g} " + scale.symbol + "<br>%{text}<extra></extra>",
    )


def _add_levels(plot: Any, series: Series, scale: Scale) -> None:
    """One trace of all levels, with a gap between two."""
    xs: list[str | None] = []
    ys: list[float | None] = []
    for (at, level), (until, _) in zip(
        series.levels, [*series.levels[1:], (len(series.points) - 1, 0.0)], strict=False
    ):
        xs += [utc(series.points[at].at, "second"), utc(series.points[until].at, "second")]
        xs.append(None)
        ys += [level / scale.factor, level / scale.factor, None]
    plot.add_scatter(
        name="level", x=xs, y=ys, mode="lines", line={"color": PALETTE[1]}, hoverinfo="skip"
    )


def _mark(plot: Any, series: Series, step: Step, scale: Scale) -> None:
    colour = _COLOURS.get(step.judged.finding, _SOFT)
    when = utc(series.points[step.at].at, "second")
    plot.add_vline(x=when, line={"color": colour, "dash": "dot", "width": 1.5})
    mark = STANDING_MARKS[step.judged.finding][0]
    told = list(map(str, step.differences))
    plot.add_annotation(
        x=when,
        y=1.0,
        yref="paper",
        yanchor="bottom",
        text=f"{mark} {ratio(step.judged.ratio)}",
        showarrow=False,
        font={"color": colour},
    )
    more = f"<br>and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    plot.add_scatter(
        x=[when],
        y=[step.after / scale.factor],
        mode="markers",
        marker={"color": colour, "symbol": "diamond", "size": 9},
        text=["<br>".join(told[:_MOST_NAMED]) + more if told else "nothing recorded differs"],
        hovertemplate="%{x}<br>%{text}<extra></extra>",
    )
