"""The history of a sweep as one self-contained page: steps newest first, then a figure a trial.

Works offline and escapes what it shows, like the report (:mod:`orchestrator.report.show.html`).
"""

from __future__ import annotations

from typing import Any

from orchestrator.report.analyse.history import History, Series, Step
from orchestrator.report.show.figures.levels import draw_over_time
from orchestrator.report.show.history_view import (
    NOTHING_DIFFERS,
    causes_of,
    left_out_line,
    moved,
    name_of,
    news_of,
    span_of,
)
from orchestrator.report.show.html import page_assets
from orchestrator.report.show.parts import interval_text
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.templates import filled_in
from orchestrator.report.show.units import ratio

MAX_FIGURES = 60
MAX_DIFFERENCES = 6


def history_page(history: History) -> str:
    """The whole page."""
    shown = sorted(history.series, key=lambda series: not series.steps)[:MAX_FIGURES]
    return filled_in(
        "history.html",
        **page_assets(with_figures=True),
        history=history,
        span=span_of(history),
        news=news_of(history),
        left_out=left_out_line(history),
        causes=causes_of(history),
        nothing=NOTHING_DIFFERS,
        most=MAX_DIFFERENCES,
        row_of=_row,
        name_of=name_of,
        figures=[
            draw_over_time(series, name_of(history, series), history.named_by) for series in shown
        ],
    )


def _row(series: Series, step: Step) -> dict[str, Any]:
    mark, _, word = STANDING_MARKS[step.judged.finding]
    return {
        "title": series.spec.title,
        "moved": moved(series, step),
        "ratio": ratio(step.judged.ratio),
        "interval": interval_text(step.judged),
        "meaning": f"{mark} {word}",
    }
