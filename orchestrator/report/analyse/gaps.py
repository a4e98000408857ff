"""What a table has no value or no ratio of, and why: lines that every view puts under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.measure.grouping import grouped
from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.reasons import one_line
from orchestrator.report.analyse.rows import SweepTable

_MOST_LABELS = 3
_MOST_LINES = 12


def gaps(table: SweepTable, among: Sequence[TrialRow]) -> list[str]:
    """A line a reason, for the rows that are shown: ``no TTFT, ITL of rate 300: the queue grew``.

    A trial that failed has a reason of its own, and so has one without any ratio
    (:attr:`SweepTable.missing_ratios`): neither is told here. Trials are named where the others
    have what they lack.
    """
    rows = [row for row in among if row.outcome in ("ok", "invalid")]
    lines = [*_values(table, rows), *_ratios(table, rows)]
    more = len(lines) - _MOST_LINES
    return lines if more <= 0 else [*lines[:_MOST_LINES], f"… and {more} more in table.json"]


def _values(table: SweepTable, rows: Sequence[TrialRow]) -> Iterator[str]:
    lacking = [
        (name, [row for row in rows if row.cells[name].median is None]) for name in table.metrics
    ]
    missing = [
        (row.cells[name].reason or "not measured", name, row)
        for name, without in lacking
        for row in (without if len(without) < len(rows) else without[:1])
    ]
    nowhere = {name for name, without in lacking if len(without) == len(rows)}
    for of_all in (True, False):
        own = [each for each in missing if (each[1] in nowhere) == of_all]
        yield from _told(table, "no ", own, [] if of_all else rows)


def _ratios(table: SweepTable, rows: Sequence[TrialRow]) -> Iterator[str]:
    without_any = {row.hash for found in table.missing_ratios.values() for row in found}
    compared = [row for row in rows if row.outcome == "ok" and row.hash not in without_any]
    missing = [
        (reason, name, row)
        for name in table.metrics
        for row in compared
        if (reason := why_without_ratio(row.cells[name])) is not None
    ]
    others = [row for row in compared if not row.baseline]
    yield from _told(table, "no ratio of ", missing, others)


def why_without_ratio(cell: Cell) -> str | None:
    """Why a value has no ratio to the baseline; None where it has, or where there is no baseline.

    Two zeros that are known to be the same need none.
    """
    judged = cell.judged
    if cell.median is None or judged is None or judged.ratio is not None:
        return None
    return None if judged.finding == "equivalent" else judged.reason


def _told(
    table: SweepTable,
    opening: str,
    missing: Sequence[tuple[str, str, TrialRow]],
    rows: Sequence[TrialRow],
) -> Iterator[str]:
    """A line for each reason and the trials it holds for; these are named where not all are."""
    by_metric = grouped(missing, lambda each: (one_line(each[0]), each[1]))
    of = {key: tuple(dict.fromkeys(r.label for *_, r in group)) for key, group in by_metric.items()}
    for (reason, labels), keys in grouped(of, lambda key: (key[0], of[key])).items():
        titles = ", ".join(table.title(name) for _, name in keys)
        named = f" of {_some(labels)}" if len(labels) < len(rows) else ""
        yield f"{opening}{titles}{named}: {reason}"


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - _MOST_LABELS
    return ", ".join(labels[:_MOST_LABELS]) + (f" and {more} more" if more > 0 else "")
