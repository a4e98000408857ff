"""The final table of a sweep on the terminal.

Two lines a trial: its name and values with their intervals, then its hash and the ratios to the
baseline that shares its other axes. Columns that do not fit go below, never squeezed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.gaps import gaps
from orchestrator.report.analyse.labels import SEPARATOR, axis_names, axis_text, short_hash
from orchestrator.report.analyse.measured import PRECISION
from orchestrator.report.analyse.reasons import one_line, reasons_once
from orchestrator.report.analyse.rows import SweepTable, build_table
from orchestrator.report.show.parts import (
    GAP,
    against_baseline,
    ended,
    grid,
    numbers,
    prose,
    scale_for,
    some_of,
    value_text,
    words,
)
from orchestrator.report.show.style import STANDING_STYLES, VERDICT_MARKS, standings_legend
from orchestrator.report.show.units import MISSING, Scale

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.plan.plan import Plan

MAX_ROWS = 60
MAX_FAILURES = 12
_NAME_WIDTH = 30
_AS_ABOVE = "…"
_NARROW = 80
_MOST_STACKED = 16
_MOST_TOLD = 24  # packages; the report names all


def final_table(
    plan: Plan,
    reports: Mapping[str, Sequence[AttemptReport]],
    *,
    metrics: Sequence[str] | None = None,
    max_rows: int = MAX_ROWS,
    noise: float | None = None,
) -> TableView:
    """What a sweep found, as a rich renderable: table, failures, legend and where to look next.

    Parameters
    ----------
    plan : Plan
        The sweep.
    reports : mapping of str to sequence of AttemptReport
        All attempts known by config hash, cached ones too.
    metrics : sequence of str, optional
        Metrics to show instead of the headline of the plan's tasks.
    max_rows : int
        Trials shown before the rest is only counted.
    noise : float, optional
        Relative A/A noise recorded for this hardware.
    """
    table = build_table(plan, reports, metrics=metrics, limit=max_rows, noise=noise)
    return TableView(table, max_rows, _where_to_look(table, plan.settings.tracking.command))


def _where_to_look(table: SweepTable, command: Callable[[str], str]) -> tuple[str, ...]:
    """Lines for the foot of a table: the sweep in MLflow, one trial in full, the same again."""
    lines = [f"in MLflow    {command('ui')}"]
    for row in table.ok[:1]:
        lines.append(f"one trial    {command(f'show {short_hash(row.hash)}')}")
        lines.append(f"run it again {command(f'reproduce {short_hash(row.hash)}')}")
    return tuple(lines)


@dataclass(frozen=True)
class TableView:
    """A :class:`SweepTable` that rich can print at any width."""

    table: SweepTable
    max_rows: int = MAX_ROWS
    footer: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = [row for row in self.table.rows if row.outcome != "not_run"]
        unseen = len(self.table.rows) - len(shown)
        if shown and self.table.metrics:
            yield from self._measured(shown[: self.max_rows], options.max_width)
        if len(shown) > self.max_rows:
            yield Text(
                f"… and {len(shown) - self.max_rows} more of {len(shown)} trials; the report's"
                " table.csv has them all",
                style="italic",
            )
        if unseen:
            yield Text(f"{unseen} of {len(self.table.rows)} trials have not run", style="italic")
        yield from _failures(self.table, options.max_width)
        if self.footer:
            yield Text("")
            for line in self.footer:
                yield Text(line, overflow="fold")

    def _measured(self, rows: Sequence[TrialRow], width: int) -> Iterable[RenderableType]:
        columns = [c for c in (_column(n, rows) for n in self.table.metrics) if c is not None]
        blocks = _blocks(columns, width - _name_width(self.table, rows))
        # A short table goes on below with the columns that did not fit; a long one would be read
        # twice, so its last columns are only named.
        drawn = blocks if len(rows) <= _MOST_STACKED else blocks[:1]
        for index, block in enumerate(drawn):
            if index:
                yield Text("")
            yield _grid(self.table, rows, block)
        unfit = [column for block in blocks[len(drawn) :] for column in block]
        yield from _notes(self.table, rows, [c for block in drawn for c in block], unfit)


@dataclass(frozen=True)
class _Column:
    name: str
    scale: Scale
    heading: tuple[str, ...]
    width: int


def _column(name: str, rows: Sequence[TrialRow]) -> _Column | None:
    """How a metric is drawn, or None where no trial has it."""
    cells = [row.cells[name] for row in rows if row.has(name)]
    if not cells:
        return None
    scale = scale_for(rows, name)
    texts = [value_text(cell, scale) for cell in cells] + [_ratio(cell)[0] for cell in cells]
    body = max(map(cell_len, texts))
    heading = _wrap(cells[0].spec.title, max(body, 9))
    return _Column(name, scale, heading, max(body, *map(cell_len, (*heading, scale.symbol))))


def _blocks(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Columns in headline order, cut where the width ends; at least one a block."""
    blocks: list[list[_Column]] = [[]]
    used = 0
    for column in columns:
        if blocks[-1] and used + GAP + column.width > width:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += GAP + column.width
    return [block for block in blocks if block]


def _grid(table: SweepTable, rows: Sequence[TrialRow], columns: Sequence[_Column]) -> Table:
    depth = max(len(c.heading) for c in columns)

    def heading(lines: Sequence[str]) -> Text:
        return Text("\n".join([""] * (depth - len(lines)) + list(lines)))

    drawn = grid(
        words(heading([table.sweep])),
        *(
            numbers(heading(c.heading).append(f"\n{c.scale.symbol}"), min_width=c.width)
            for c in columns
        ),
        heading_style="bold",
    )
    group: object = None
    single = len({row.group for row in rows}) == 1
    for row, lines in zip(rows, _row_labels(rows), strict=True):
        if row.group != group and not single:
            if group is not None:
                drawn.add_row("")
            drawn.add_row(Text(_group_name(row), style="bold"))
        group = row.group
        drawn.add_row(_name(row, lines), *(_cell_text(row, c, c is columns[0]) for c in columns))
    return drawn


def _name(row: TrialRow, lines: Sequence[str]) -> Text:
    """``✓ nf4`` over its hash."""
    failed = row.outcome not in ("ok", "invalid")
    mark, style, _ = ("✗", "red", "") if failed else VERDICT_MARKS[row.verdict]
    text = Text()
    text.append(f"{mark} ", style=style)
    text.append("\n  ".join(lines), style="bold" if row.baseline else "")
    if row.attempts > 1:
        text.append(f" ({row.attempts})", style="dim")
    text.append(f"\n  {_second_line(row)}", style="dim")
    return text


def _second_line(row: TrialRow) -> str:
    return " · ".join((short_hash(row.hash), *row.words))


def _row_labels(rows: Sequence[TrialRow]) -> list[tuple[str, ...]]:
    """What each row is called, in lines; in a group, only by the axes that the group does not say.

    Where names are too long for their column, a row says what sets it apart from the one above.
    """
    grouped = len({row.group for row in rows}) > 1
    labels = [row.own_label if grouped else row.label for row in rows]
    if max(map(len, labels), default=0) > _NAME_WIDTH:
        whole = [label.split(SEPARATOR) for label in labels]
        for i in range(1, len(rows)):
            if rows[i].group == rows[i - 1].group:
                labels[i] = _unlike(whole[i], whole[i - 1])
    return [_wrap_label(label) for label in labels]


def _wrap_label(label: str) -> tuple[str, ...]:
    held = "\N{NO-BREAK SPACE}"  # a dot stays with what it follows
    lines = _wrap(label.replace(SEPARATOR, held + SEPARATOR.lstrip()), _NAME_WIDTH)
    return tuple(line.replace(held, " ") for line in lines)


def _unlike(parts: Sequence[str], above: Sequence[str]) -> str:
    own = [part for part, other in zip(parts, above, strict=False) if part != other]
    if len(parts) != len(above) or not own or len(own) == len(parts):
        return SEPARATOR.join(parts)
    return f"{_AS_ABOVE} {SEPARATOR.join(own)}"


def _group_name(row: TrialRow) -> str:
    names = axis_names([axis for axis, _ in row.group])
    return SEPARATOR.join(axis_text(axis, value, names[axis]) for axis, value in row.group)


def _cell_text(row: TrialRow, column: _Column, first: bool) -> Text:
    cell = row.cells[column.name]
    if cell.median is None:
        if row.failed and first:
            return ended(row.outcome)
        return Text("" if row.failed else MISSING, style="dim")
    text = Text(
        value_text(cell, column.scale), style="dim strike" if row.outcome == "invalid" else ""
    )
    if row.baseline:
        return text.append("\nbaseline", style="dim") if first else text
    line, style = _ratio(cell)
    if line and row.outcome == "ok":
        text.append(f"\n{line}", style=style)
    return text


def _ratio(cell: Cell) -> tuple[str, str]:
    found = against_baseline(cell)
    if found is None:
        return "", ""
    finding, sign, ratio = found
    return f"{sign} {ratio}".strip(), STANDING_STYLES.get(finding, "")


def _notes(
    table: SweepTable,
    rows: Sequence[TrialRow],
    columns: Sequence[_Column],
    unfit: Sequence[_Column],
) -> Iterable[Text]:
    yield Text("")
    cells = [cell for row in rows for cell in row.cells.values()]
    any_interval = any(cell.ci_low is not None for cell in cells)
    legend = ["median ± half of its 95 % interval"] if any_interval else []
    if any(cell.ratio is not None for cell in cells):
        legend.append(f"against the baseline: {standings_legend(table.tau)}")
    if any(lines[0].startswith(_AS_ABOVE) for lines in _row_labels(rows)):
        legend.append(f"{_AS_ABOVE} otherwise as above")
    if any(row.attempts > 1 for row in rows):
        legend.append("(n) attempts")
    measured = [row for row in rows if row.outcome in ("ok", "invalid")]
    verdicts = [v for v in VERDICT_MARKS if any(row.verdict == v for row in measured)]
    marks = [f"{VERDICT_MARKS[v][0]} {v}: {VERDICT_MARKS[v][2]}" for v in verdicts]
    unprecise = [
        f"{word}: {m}" for word, m in PRECISION.items() if any(word in r.words for r in rows)
    ]
    shown = [table.specs[column.name] for column in columns]
    meanings = [f"{spec.title}: {spec.meaning}" for spec in shown if spec.meaning]
    for line in (legend, marks, unprecise, meanings):
        if line:
            yield Text(" · ".join(line), style="dim")
    for label, software in list(table.software.items())[:_MOST_STACKED]:
        yield Text(f"{label}: {some_of(software, _MOST_TOLD)}", style="dim")
    if table.elsewhere:
        yield Text(table.elsewhere, style="dim")
    for why in table.missing_ratios:
        yield Text(f"no ratios: {one_line(why)}", style="yellow")
    for gap in gaps(table, rows):
        yield Text(gap, style="dim")
    if unfit:
        left = ", ".join(table.title(column.name) for column in unfit)
        yield Text(f"not shown for lack of width: {left}", style="dim")


def _failures(table: SweepTable, width: int) -> Iterable[Any]:
    failures = table.failures
    if not failures:
        return
    said = ", ".join(f"{n} {o}" for o, n in table.outcomes.items() if o not in ("ok", "not_run"))
    yield Text("")
    yield Text(
        f"{len(failures)} of {len(table.rows)} trials without a result to rely on: {said}",
        style="bold",
    )
    shown = list(reasons_once(failures))[:MAX_FAILURES]
    if width < _NARROW:
        for row, reason in shown:
            yield Text.assemble(
                ended(row.outcome), "  ", row.label, (f"  {short_hash(row.hash)}", "dim")
            )
            yield Padding(Text(reason), (0, 0, 0, 2))
    else:
        drawn = grid(words(), prose(max_width=width // 3), words(style="dim"), prose(ratio=1))
        for row, reason in shown:
            drawn.add_row(ended(row.outcome), row.label, short_hash(row.hash), reason)
        yield drawn
    if len(failures) > MAX_FAILURES:
        yield Text(f"… and {len(failures) - MAX_FAILURES} more", style="italic")


def _name_width(table: SweepTable, rows: Sequence[TrialRow]) -> int:
    # What is drawn, not an estimate of it: rich cuts what is wider, down to a count's digits.
    names = [_name(row, lines).plain for row, lines in zip(rows, _row_labels(rows), strict=True)]
    if len({row.group for row in rows}) > 1:
        names += map(_group_name, rows)
    return max(cell_len(line) for name in (table.sweep, *names) for line in name.split("\n"))


def _wrap(text: str, width: int) -> tuple[str, ...]:
    return tuple(textwrap.wrap(text, width, break_long_words=False)) or ("",)
