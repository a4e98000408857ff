"""A figure ready for the page, and what every kind of figure is made with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.history import Point
from orchestrator.report.analyse.labels import SEPARATOR, axis_text, of_use
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.parts import figure_text
from orchestrator.report.show.units import Scale

Reports = Mapping[str, Sequence[AttemptReport]]

# A page must open on a laptop: beyond these a figure says what it left out.
MAX_LINES = 24
MAX_BARS = 60

# Okabe and Ito's colours: told apart by every kind of colour vision, on white and on black.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#B8A800", "#7F7F7F"),
)

_LABEL_CHARS = 34

# More digits than a screen shows are bytes that the page has to carry.
_DIGITS = 7


@dataclass(frozen=True)
class Drawn:
    """A figure ready for the page: its title, a caption, and plotly's data and layout.

    ``height_px`` is None where the page's usual height suits.
    """

    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height_px: int | None = None

    def to_json(self) -> str:
        """Data and layout for a script element: nothing in it can end the element."""
        text = json.dumps(
            {"data": self.data, "layout": self.layout},
            allow_nan=False,
            default=_plain,
            separators=(",", ":"),
        )
        return text.replace("<", "\\u003c")


#: A legend in one line above the figure.
LEGEND_ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


def new_plot() -> Any:
    """An empty plotly figure; plotly is imported when the first one is drawn."""
    import plotly.graph_objects as go

    return go.Figure()


def stacked(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], hover: Callable[[str], str]
) -> Any:
    """A plotly figure of one horizontal bar a label, made of ``parts`` end to end."""
    plot = new_plot()
    for name, values in parts.items():
        plot.add_bar(name=name, y=labels, x=values, orientation="h", hovertemplate=hover(name))
    plot.update_layout(barmode="stack", yaxis_autorange="reversed", showlegend=True)
    return plot


def drawn(title: str, caption: str, plot: Any, *, height_px: int | None = None) -> Drawn:
    """A plotly figure as data for the page."""
    # plotly's own template is 7 kB of styling a figure that the page's theme would override.
    plot.update_layout(template="none")
    tree = plot.to_plotly_json()
    layout = {key: value for key, value in tree["layout"].items() if key != "template"}
    layout.setdefault("colorway", list(PALETTE))
    return Drawn(title, caption.strip(), _rounded(tree["data"]), layout, height_px)


def _rounded(node: Any) -> Any:
    if isinstance(node, float):
        return float(f"{node:.{_DIGITS}g}")
    if isinstance(node, dict):
        return {key: _rounded(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_rounded(value) for value in node]
    return node


def having(table: SweepTable, metric: str) -> list[TrialRow]:
    """Trials that are ok and have a value of the metric."""
    return [row for row in table.ok if row.has(metric)]


def values_of(rows: Sequence[TrialRow], metric: str, scale: Scale) -> list[float]:
    """The rows' medians in units of ``scale``."""
    return [(row.cells[metric].median or 0.0) / scale.factor for row in rows]


def whiskers(cells: Sequence[Cell | Point], scale: Scale) -> dict[str, Any]:
    """plotly's error bars: from each median to the ends of its interval, where it has one."""
    spans = [
        (cell.median, cell.ci_low, cell.ci_high)
        if cell.median is not None and cell.ci_low is not None and cell.ci_high is not None
        else (0.0, 0.0, 0.0)
        for cell in cells
    ]
    return {
        "type": "data",
        "array": [(high - median) / scale.factor for median, _, high in spans],
        "arrayminus": [(median - low) / scale.factor for median, low, _ in spans],
    }


def told(row: TrialRow, metric: str) -> str:
    """One value in words: ``TTFT 61.2 ±0.8 ms``."""
    cell = row.cells[metric]
    return f"{cell.spec.title} {figure_text(cell)}"


def better_line(metric: str, rows: Sequence[TrialRow]) -> str:
    """``Lower is better.``, or nothing where a metric has no good direction."""
    direction = rows[0].cells[metric].spec.better
    return f"{direction.capitalize()} is better. " if direction else ""


def rest_of(row: TrialRow, left_out: str | None) -> str:
    """The trial's values on every axis but one; what a line or a colour of a figure stands for."""
    return SEPARATOR.join(
        axis_text(axis, value)
        for axis, value in row.axes.items()
        if axis != left_out and of_use(axis, value, row.axes)
    )


def wrapped(label: str) -> str:
    """A trial's label on lines that an axis has room for."""
    lines = [""]
    for part in label.split(SEPARATOR):
        longer = f"{lines[-1]}{SEPARATOR}{part}" if lines[-1] else part
        if len(longer) <= _LABEL_CHARS or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return "<br>".join(lines)


def is_numeric(table: SweepTable, axis: str) -> bool:
    """Whether the sweep varies this axis over numbers; a trial may have nothing there."""
    values = {row.axes.get(axis) for row in table.rows} - {None}
    return len(values) > 1 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    )


def cut(found: int, most: int) -> str:
    """What to add to a caption where not all is shown."""
    return f" The first {most} of {found}." if found > most else ""


def _plain(value: Any) -> Any:
    """numpy values that plotly put into a figure."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
