"""What every view is put together from: grids, names of trials, values and their ratios.

Grids are the terminal's. How a metric's values are written is one for all: the terminal, the page,
Markdown and the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.show.style import OUTCOME_STYLE, STANDING_MARKS, standing_mark
from orchestrator.report.show.units import MISSING, Scale, ratio, scale_of, with_ci
from orchestrator.statistics.judge import Judged

GAP = 2

#: Columns of a grid: of words that stay on their line, of numbers, of prose that may be folded.
words = partial(Column, no_wrap=True)
numbers = partial(Column, no_wrap=True, justify="right")
prose = partial(Column, overflow="fold")


@dataclass(frozen=True, kw_only=True)
class TrialNames:
    """What a view that is printed at any width calls the trials it is about.

    Attributes
    ----------
    labels : mapping of str to str
        Label by config hash.
    names : tuple of str
        What the two sides are called, base first.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, str] = ("A", "B")

    def named(self, config_hash: str) -> str:
        """A trial by its label, where it has one, and its hash."""
        return "  ".join(filter(None, (self.labels.get(config_hash), short_hash(config_hash))))


def grid(*columns: Column, heading_style: str = "dim") -> Table:
    """A table without lines; headed where any of its columns is."""
    return Table(
        *columns,
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
        header_style=heading_style,
        show_header=any(column.header for column in columns),
    )


def filled(columns: Iterable[tuple[Column, Sequence[RenderableType]]]) -> Table:
    """A :func:`grid` of columns that come with their cells."""
    headed, cells = zip(*columns, strict=True)
    table = grid(*headed)
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def ended(outcome: str) -> Text:
    """An outcome in its colour."""
    return Text(outcome, OUTCOME_STYLE.get(outcome, ""))


def scale_for(rows: Iterable[TrialRow], metric: str) -> Scale:
    """The scale that suits the rows' medians, or their intervals where these are 0."""
    cells = [row.cells[metric] for row in rows if row.has(metric)]
    sizes = [cell.median or cell.ci_high for cell in cells]
    return scale_of(sizes, cells[0].unit if cells else "")


def measured_metrics(rows: Sequence[TrialRow], metrics: Iterable[str]) -> list[str]:
    """Those of ``metrics`` that any of the rows has a value of."""
    return [name for name in metrics if any(row.has(name) for row in rows)]


def value_text(cell: Cell, scale: Scale) -> str:
    """``61.2 ±0.8``, or a dash."""
    if cell.median is None:
        return MISSING
    return scale.interval(cell.median, cell.ci_low, cell.ci_high)


def some_of(said: Sequence[str], most: int) -> str:
    """``numpy, ray and 5 more``."""
    more = f" and {len(said) - most} more" if len(said) > most else ""
    return ", ".join(said[:most]) + more


def figure_text(cell: Cell) -> str:
    """``61.2 ±0.8 ms``, of a cell that has a value."""
    assert cell.median is not None
    return with_ci(cell.median, cell.ci_low, cell.ci_high, cell.unit)


def interval_text(judged: Judged) -> str:
    """The interval of a ratio; empty where there is none."""
    low, high = judged.ci_low, judged.ci_high
    if low is None or high is None:
        return ""
    return "exact" if low == high else f"{low:.3f} – {high:.3f}"


def against_baseline(cell: Cell) -> tuple[str, str, str] | None:
    """The ratio to the baseline: what it means, where it means anything, its sign and its text.

    Of two zeros that are the same, which have no ratio, the word.
    """
    same = cell.standing == "equivalent"
    if cell.judged is None or (cell.ratio is None and not same):
        return None
    sign = standing_mark(cell.judged, cell.spec.better)
    text = STANDING_MARKS["equivalent"][2] if cell.ratio is None else ratio(cell.ratio)
    return cell.judged.finding if sign else "", sign, text
