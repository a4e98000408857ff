"""A trial over time: a point a run with its interval, the levels, and a line where one steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from orchestrator.report.analyse.history import Point, Series, Step
from orchestrator.report.show.figures.drawn import PALETTE, Drawn, drawn, new_plot, whiskers
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import Precision, Scale, ratio, scale_of, utc

_COLOURS = {"regression": "#D55E00", "improvement": "#009E73"}
_SOFT = "#7F7F7F"
_MARGIN = 0.05  # above and below everything, of its size
_MOST_NAMED = 2  # differences in a step's label


def draw_over_time(series: Series, title: str, to: Precision = "minute") -> Drawn:
    """The figure of one trial; moments in its caption are written ``to`` the day or the minute."""
    scale = scale_of([point.median for point in series.points], series.spec.unit)
    plot = new_plot()
    usual = [point for point in series.points if not point.is_alone]
    _add_points(plot, usual, scale, "run", "circle")
    if alone := [point for point in series.points if point.is_alone]:
        _add_points(plot, alone, scale, "run alone", "circle-open")
    _add_levels(plot, series, scale)
    for step in series.steps:
        _mark(plot, series, step)
    plot.update_layout(
        yaxis_title=scale.heading(series.spec.title),
        yaxis_range=_range(series, scale),
        showlegend=False,
    )
    return drawn(title, " ".join(filter(None, _caption(series, scale, to))), plot)


def _range(series: Series, scale: Scale) -> list[float]:
    """Of the y axis: noise of a percent must not fill it."""
    medians = [point.median for point in series.points]
    ends = [end for p in series.points for end in (p.ci_low, p.ci_high) if end is not None]
    low, high = min(medians), max(medians)
    low, high = low - _MARGIN * abs(low), high + _MARGIN * abs(high)
    # Of few attempts an interval may be longer than the whole history: it is cut at the edge.
    usual = max(medians) - min(medians) + 2 * _MARGIN * abs(high)
    low = max(min([low, *ends]), low - usual)
    high = min(max([high, *ends]), high + usual)
    return [low / scale.factor, high / scale.factor]


def _caption(series: Series, scale: Scale, to: Precision) -> Iterator[str]:
    if series.steps:
        at, now = series.levels[-1]
        yield f"{scale.text(now)} since {utc(series.points[at].started_at, to)}."
    elif series.levels:
        yield f"{scale.text(series.levels[0][1])}, no step."
    if series.spec.better:
        yield f"{series.spec.better.capitalize()} is better."


def _add_points(plot: Any, points: list[Point], scale: Scale, name: str, symbol: str) -> None:
    plot.add_scatter(
        name=name,
        x=[utc(point.started_at, "second") for point in points],
        y=[point.median / scale.factor for point in points],
        mode="markers",
        marker={"color": PALETTE[0], "size": 6, "symbol": symbol},
        error_y={**whiskers(points, scale), "color": PALETTE[0], "thickness": 1, "width": 2},
        text=[f"{len(point.attempts)} attempts, run {point.run[:8]}" for point in points],
        hovertemplate="%{x}<br>%{y:.4g} " + scale.symbol + "<br>%{text}<extra></extra>",
    )


def _add_levels(plot: Any, series: Series, scale: Scale) -> None:
    """One trace of all levels, with a gap between two."""
    starts = [*(at for at, _ in series.levels), len(series.points) - 1]
    times = [utc(series.points[at].started_at, "second") for at in starts]
    heights = [level / scale.factor for _, level in series.levels]
    xs = [x for begin, end in pairwise(times) for x in (begin, end, None)]
    ys = [y for height in heights for y in (height, height, None)]
    plot.add_scatter(
        name="level", x=xs, y=ys, mode="lines", line={"color": PALETTE[1]}, hoverinfo="skip"
    )


def _mark(plot: Any, series: Series, step: Step) -> None:
    """A line where the series steps, with what differed next to it, on the empty side."""
    colour = _COLOURS.get(step.judged.finding, _SOFT)
    when = utc(series.points[step.place].started_at, "second")
    told = [str(difference) for difference in step.differences[:_MOST_NAMED]]
    more = len(step.differences) - len(told)
    lines = [
        f"{STANDING_MARKS[step.judged.finding][0]} {ratio(step.judged.ratio)}",
        *(told or ["nothing recorded differs"]),
        *([f"{more} more"] if more else []),
    ]
    plot.add_vline(x=when, line={"color": colour, "dash": "dot", "width": 1.5})
    rises, is_early = step.after > step.before, step.place < len(series.points) / 4
    plot.add_annotation(
        x=when,
        y=1.0 if rises else 0.0,
        yref="paper",
        yanchor="top" if rises else "bottom",
        xanchor="left" if is_early else "right",
        align="left" if is_early else "right",
        text="<br>".join(lines),
        showarrow=False,
        font={"color": colour, "size": 11},
    )
