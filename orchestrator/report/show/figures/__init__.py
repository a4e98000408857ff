"""Draws a sweep's figures with plotly: one function a kind, each a few traces and no styling.

Fonts and the dark theme are the page's (:mod:`orchestrator.report.show.html`); plotly is imported
when the first figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.measure.figures import (
    Bars,
    Breakdown,
    Curve,
    Distribution,
    Figure,
    Pareto,
    Ranking,
    Scaling,
    Waterfall,
)
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.figures.bars import draw_bars, draw_breakdown, draw_ranking
from orchestrator.report.show.figures.drawn import Drawn, Reports, is_numeric
from orchestrator.report.show.figures.lines import (
    draw_distribution,
    draw_scaling,
    exponent,
    predicted_names,
)
from orchestrator.report.show.figures.load import draw_curve, draw_waterfall
from orchestrator.report.show.figures.pareto import draw_pareto
from orchestrator.report.show.parts import measured_metrics

__all__ = ["Drawn", "Reports", "default_figures", "draw", "exponent", "metrics_of"]


def default_figures(table: SweepTable) -> list[Figure]:
    """Figures of a task that declares none: bars of the first headline metrics, scaling, Pareto."""
    spread = measured_metrics(table.ok, table.metrics)
    figures: list[Figure] = []
    memory = next((n for n in spread if n.endswith("_bytes")), None)
    if spread and memory is not None and memory != spread[0]:
        quality = ("perplexity", "kl_to_reference", "top1_agreement")
        figures.append(Pareto(memory, spread[0], next((n for n in spread if n in quality), None)))
    figures.extend(Bars(name) for name in spread[:4])
    for axis in table.axes:
        if is_numeric(table, axis):
            figures.extend(Scaling(name, axis) for name in spread[:2])
    if any(name in ("tpot_s", "ttft_s") for name in spread):
        figures.append(Distribution("itl_s"))
    return figures


def draw(figure: Figure, table: SweepTable, reports: Reports) -> Drawn | None:
    """One figure, or None where the sweep has nothing for it."""
    drawers: dict[type, Callable[[Any, SweepTable, Reports], Drawn | None]] = {
        Bars: draw_bars,
        Scaling: draw_scaling,
        Distribution: draw_distribution,
        Pareto: draw_pareto,
        Breakdown: draw_breakdown,
        Ranking: draw_ranking,
        Curve: draw_curve,
        Waterfall: draw_waterfall,
    }
    return drawers[type(figure)](figure, table, reports)


def metrics_of(figure: Figure) -> tuple[str, ...]:
    """Metrics that a figure needs pooled; others read the reports instead."""
    if isinstance(figure, Breakdown):
        return figure.metrics
    if isinstance(figure, Bars):
        return (figure.metric,)
    if isinstance(figure, Scaling):
        return (figure.metric, *predicted_names(figure.metric))
    if isinstance(figure, Pareto):
        return tuple(name for name in (figure.x, figure.y, figure.colour) if name is not None)
    return ()
