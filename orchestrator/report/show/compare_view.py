"""Draws a comparison: one line a metric, its interval on a scale around 1, and the verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from orchestrator.measure.grouping import grouped
from orchestrator.report.analyse.compare import ComparedMetric, Comparison
from orchestrator.report.analyse.reasons import one_line
from orchestrator.report.show.parts import (
    GAP,
    TrialNames,
    filled,
    interval_text,
    numbers,
    some_of,
    words,
)
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import quantity, ratio
from orchestrator.statistics.judge import CONFIDENCE

MAX_METRICS = 120

_INDENT = 2
_HEADING = 12
_SCALE_WIDTH = 15
# The scale ends at the widest change shown, but tells 1 % from nothing on a calm day.
_LEAST_REACH = math.log(1.10)
_MOST_REACH = math.log(4.0)


@dataclass(frozen=True)
class ComparisonView(TrialNames):
    """A :class:`Comparison` that rich can print."""

    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self.comparison
        yield self._heading()
        pairs = _pairs(found.rows)
        reach = _reach(found.rows)
        shown = 0
        for (hash_a, hash_b), rows in pairs.items():
            if shown and shown + len(rows) > MAX_METRICS:
                break
            shown += len(rows)
            yield Text("")
            yield self._pair_heading(hash_a, hash_b)
            yield from _metrics(rows, options.max_width, reach, self.names)
            for reason in dict.fromkeys(_whys(rows)):
                yield Text(f"  {reason}", style="dim")
        if shown < len(found.rows):
            left = len(found.rows) - shown
            yield Text(f"\n… and {left} metrics of other trials (--json)", style="italic")
        for note in dict.fromkeys(one_line(row.note) for row in found.rows if row.note):
            yield Text(f"note: {note}", style="dim")
        for side, hashes in zip(self.names, (found.only_a, found.only_b), strict=True):
            if hashes:
                some = some_of([self.named(h) for h in hashes], 5)
                yield Text(f"only in {side}: {some}", style="dim")

    def _heading(self) -> Text:
        found = self.comparison
        base, new = self.names
        text = Text.assemble((f"{new} against {base}", "bold"), ": ")
        counts = Counter(row.judged.finding for row in found.rows)
        said = [
            (f"{counts[finding]} {word}", style)
            for finding, (_, style, word) in STANDING_MARKS.items()
            if counts[finding]
        ]
        if said:
            text.append_text(Text(" · ").join(Text(*each) for each in said))
        else:
            text.append("nothing to compare")
        terms = f"\ntolerance ±{100 * found.tau:.3g} %, intervals of {200 * CONFIDENCE - 100:.0f} %"
        text.append(terms, style="dim")
        return text

    def _pair_heading(self, hash_a: str, hash_b: str) -> Text:
        text = Text(self.named(hash_b), style="bold")
        if hash_a != hash_b:
            text.append(f"  against {self.named(hash_a)}", style="not bold")
        return text


def scale_line(low: float | None, mid: float | None, high: float | None, reach: float) -> str:
    """An interval on a logarithmic scale with 1 in its middle: ``    │  ├─●─┤   ``.

    ``reach`` is the logarithm at either end; what lies beyond is drawn as an arrow.
    """
    if low is None or mid is None or high is None or low <= 0:
        return ""
    middle = _SCALE_WIDTH // 2

    def place(value: float) -> int:
        return middle + round(middle * math.log(value) / reach)

    cells = [" "] * _SCALE_WIDTH
    cells[middle] = "│"
    first, centre, last = place(low), place(mid), place(high)
    for at in range(max(first, 0), min(last, _SCALE_WIDTH - 1) + 1):
        cells[at] = "─"
    for at, sign in ((first, "├"), (last, "┤"), (centre, "●")):
        if 0 <= at < _SCALE_WIDTH:
            cells[at] = sign
    if first < 0:
        cells[0] = "◀"
    if last >= _SCALE_WIDTH:
        cells[-1] = "▶"
    return "".join(cells)


def _pairs(rows: Sequence[ComparedMetric]) -> dict[tuple[str, str], list[ComparedMetric]]:
    """Rows by pair of trials; pairs with the worst verdict first, otherwise in their order."""
    pairs = grouped(rows, lambda row: (row.hash_a, row.hash_b))
    order = list(STANDING_MARKS)
    return dict(
        sorted(pairs.items(), key=lambda item: min(order.index(r.judged.finding) for r in item[1]))
    )


def _reach(rows: Sequence[ComparedMetric]) -> float:
    ends = [v for r in rows for v in (r.judged.ci_low, r.judged.ci_high) if v is not None and v > 0]
    widest = max((abs(math.log(v)) for v in ends), default=0.0)
    return min(max(1.05 * widest, _LEAST_REACH), _MOST_REACH)


def _metrics(
    rows: Sequence[ComparedMetric], width: int, reach: float, names: tuple[str, str]
) -> Sequence[RenderableType]:
    # What cannot be compared has no figures to line up; its reason is said beneath.
    compared = [row for row in rows if row.judged.finding != "incomparable"]
    if not compared:
        return []
    columns = _columns(compared, reach, names)
    left_out = next((out for out in _LEFT_OUT if _width(columns, out) <= width), _LEFT_OUT[-1])
    shown = [column for column in columns if column.part not in left_out]
    headed = any(column.heading for column in shown if column.part != "ratio")
    drawn = filled(
        (
            (numbers if column.is_right else words)(
                column.heading if headed else "",
                # A name may be cut where nothing else gives way; a figure or a verdict never.
                min_width=None if column.part == "metric" else column.width,
            ),
            column.cells,
        )
        for column in shown
    )
    return [Padding(drawn, (0, 0, 0, _INDENT))]


@dataclass(frozen=True)
class _Column:
    """One column of a pair's metrics; ``part`` is what may be left out together."""

    part: str
    heading: str
    cells: tuple[Text, ...]
    is_right: bool = False

    @property
    def width(self) -> int:
        return max(len(self.heading), *(cell.cell_len for cell in self.cells))


# What gives way on a narrow terminal, least missed first.
_LEFT_OUT: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"scale"}),
    frozenset({"scale", "medians"}),
    frozenset({"scale", "medians", "interval"}),
)


def _columns(rows: Sequence[ComparedMetric], reach: float, names: tuple[str, str]) -> list[_Column]:
    def cells(text: Callable[[ComparedMetric], str], style: str = "") -> tuple[Text, ...]:
        return tuple(Text(text(row), style=style) for row in rows)

    marks = [STANDING_MARKS[row.judged.finding] for row in rows]
    verdicts = tuple(Text(f"{mark} {word}", style=style) for mark, style, word in marks)
    scales = tuple(
        Text(scale_line(j.ci_low, j.ratio, j.ci_high, reach), style=style)
        for j, (_, style, _) in zip((row.judged for row in rows), marks, strict=True)
    )
    return [
        _Column("metric", "", cells(lambda r: r.spec.title)),
        _Column(
            "medians",
            _end_of(names[0]),
            cells(lambda r: quantity(r.median_a, r.spec.unit)),
            True,
        ),
        _Column(
            "medians",
            _end_of(names[1]),
            cells(lambda r: quantity(r.median_b, r.spec.unit)),
            True,
        ),
        _Column("ratio", "ratio", cells(lambda r: ratio(r.judged.ratio)), True),
        _Column("interval", "interval", cells(lambda r: interval_text(r.judged), "dim")),
        _Column("scale", "", scales),
        _Column("verdict", "", verdicts),
    ]


def _end_of(name: str) -> str:
    """The end of a long name: that is where two of a kind differ."""
    return name if len(name) <= _HEADING else "…" + name[1 - _HEADING :]


def _width(columns: Sequence[_Column], left_out: frozenset[str]) -> int:
    shown = [column.width for column in columns if column.part not in left_out]
    return _INDENT + sum(shown) + GAP * len(shown)


def _whys(rows: Sequence[ComparedMetric]) -> list[str]:
    """Reasons; one that several metrics share is said once."""
    reasoned = [row for row in rows if row.judged.reason]
    lines = []
    for reason, concerned in grouped(reasoned, lambda r: one_line(r.judged.reason or "")).items():
        if len(concerned) == len(rows):
            whose = "incomparable: " if concerned[0].judged.finding == "incomparable" else ""
        else:
            whose = ", ".join(row.spec.title for row in concerned) + ": "
        lines.append(f"{whose}{reason}")
    return lines
