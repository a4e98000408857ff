"""Says in sentences what a sweep found: what is best, what it costs, what failed, what to doubt.

Computed from the table alone, so that terminal, HTML and Markdown say the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.labels import SEPARATOR, axis_name, axis_value, label_of, metric_title
from orchestrator.report.rows import Cell, SweepTable, TrialRow, better_when
from orchestrator.report.units import ratio, with_ci

_MOST_GROUPS = 4
_MOST_FAILURES = 3

# Metrics that say what a faster or smaller configuration costs in quality, best known first.
_QUALITY = ("kl_to_reference", "perplexity", "top1_agreement")
_MEMORY = ("weights_bytes", "process_memory_bytes", "peak_memory_over_weights_bytes")


def sentences(table: SweepTable) -> list[str]:
    """What a reader should know first; empty for a sweep of which nothing has run."""
    said = []
    measured = [row for row in table.rows if row.outcome == "ok"]
    deciding = _deciding(table, measured)
    if deciding is not None and len(measured) > 1:
        said.extend(_best(measured, deciding))
        said.extend(_smallest(table, measured, deciding))
    said.extend(_failures(table))
    said.extend(_doubts(table))
    return said


def pareto_front(rows: Sequence[TrialRow], metrics: Sequence[str]) -> list[TrialRow]:
    """Rows that no other row beats or equals in every metric and beats in one.

    Rows that lack one of the metrics, and metrics without a good direction, are left out.
    """
    directed = [m for m in metrics if _direction(rows, m) is not None]
    points = {}
    for row in rows:
        values = [row.cells[m].median if m in row.cells else None for m in directed]
        if directed and all(value is not None for value in values):
            signs = [1 if _direction(rows, m) == "lower" else -1 for m in directed]
            points[row.hash] = [s * v for s, v in zip(signs, values, strict=True) if v is not None]

    def beaten(point: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True)) and list(other) != list(point)
            for other in points.values()
        )

    return [row for row in rows if row.hash in points and not beaten(points[row.hash])]


def _deciding(table: SweepTable, rows: Sequence[TrialRow]) -> str | None:
    """The first headline metric that has a direction and a value."""
    return next(
        (
            name
            for name in table.metrics
            if _direction(rows, name) is not None
            and any(row.cells[name].median is not None for row in rows)
        ),
        None,
    )


def _direction(rows: Sequence[TrialRow], name: str) -> str | None:
    unit = next(
        (row.cells[name].unit for row in rows if name in row.cells and row.cells[name].unit), ""
    )
    return better_when(name, unit)


def _winner(rows: Sequence[TrialRow], name: str) -> TrialRow | None:
    best = None
    lower = _direction(rows, name) == "lower"
    for row in rows:
        value = row.cells[name].median
        if value is None:
            continue
        known = None if best is None else best.cells[name].median
        if known is None or (value < known if lower else value > known):
            best = row
    return best


def _best(measured: Sequence[TrialRow], deciding: str) -> list[str]:
    groups: dict[tuple[tuple[str, object], ...], list[TrialRow]] = {}
    for row in measured:
        groups.setdefault(row.group, []).append(row)
    winners = {
        group: best
        for group, rows in groups.items()
        if len(rows) > 1 and (best := _winner(rows, deciding)) is not None
    }
    names = {_own_label(row) for row in winners.values()}
    if len(winners) > 1 and len(names) == 1:
        return [_best_everywhere(list(winners.values()), names.pop(), deciding)]
    said = []
    for group, best in list(winners.items())[:_MOST_GROUPS]:
        place = f" at {_place(group)}" if len(groups) > 1 else ""
        cell = best.cells[deciding]
        figure = f"{metric_title(deciding)} {_figure(cell)}"
        if best.baseline:
            said.append(f"Nothing beats the baseline {_own_label(best)}{place}: {figure}.")
        else:
            said.append(f"{_own_label(best)} is best{place}: {figure}{_against(cell)}.")
    if len(winners) > _MOST_GROUPS:
        said.append(f"{len(winners) - _MOST_GROUPS} more groups are in the table.")
    return said


def _best_everywhere(winners: Sequence[TrialRow], name: str, deciding: str) -> str:
    title = metric_title(deciding)
    if winners[0].baseline:
        return f"Nothing beats the baseline {name} anywhere ({title}, {len(winners)} groups)."
    ratios = [cell.ratio for row in winners if (cell := row.cells[deciding]).ratio is not None]
    how = ""
    if ratios:
        low, high = ratio(min(ratios)), ratio(max(ratios))
        how = f" {low} the baseline" if low == high else f" {low} to {high} the baseline"
    return f"{name} is best in all {len(winners)} groups: {title}{how}."


def _smallest(table: SweepTable, measured: Sequence[TrialRow], deciding: str) -> list[str]:
    """What takes least memory, and what that costs in speed and quality."""
    memory = next((m for m in _MEMORY if m in table.metrics), None)
    if memory is None:
        return []
    least = _winner(measured, memory)
    if least is None or least.baseline or least.cells[memory].ratio is None:
        return []
    if least.cells[memory].standing != "better":
        return []
    cost = []
    speed = least.cells[deciding]
    if speed.ratio is not None and deciding != memory:
        cost.append(f"{metric_title(deciding)} {ratio(speed.ratio)}")
    quality = next(
        (q for q in _QUALITY if q in table.metrics and least.cells[q].median is not None), None
    )
    if quality is not None:
        cell = least.cells[quality]
        shown = f"{metric_title(quality)} {_figure(cell)}"
        cost.append(shown + (f" ({ratio(cell.ratio)})" if cell.ratio is not None else ""))
    found = f"{least.label} is smallest: {metric_title(memory)} {_figure(least.cells[memory])}"
    found += _against(least.cells[memory])
    return [f"{found}; it comes with {' and '.join(cost)}." if cost else f"{found}."]


def _failures(table: SweepTable) -> list[str]:
    failed = [row for row in table.failures if row.outcome != "invalid"]
    if not failed:
        return []
    some = "; ".join(
        f"{row.label} ({row.outcome}: {row.reason})" for row in failed[:_MOST_FAILURES]
    )
    more = f"; and {len(failed) - _MOST_FAILURES} more" if len(failed) > _MOST_FAILURES else ""
    return [f"{_trials(len(failed), 'have')} no result, of {len(table.rows)}: {some}{more}."]


def _doubts(table: SweepTable) -> list[str]:
    said = []
    invalid = [row for row in table.rows if row.outcome == "invalid"]
    if invalid:
        some = "; ".join(f"{row.label} ({row.reason})" for row in invalid[:_MOST_FAILURES])
        said.append(f"Not to be believed: {some}.")
    flagged = sum(row.outcome == "ok" and row.verdict == "flagged" for row in table.rows)
    if flagged:
        said.append(f"{_trials(flagged, 'be')} flagged; show HASH tells by which rule.")
    blind = sum(row.outcome == "ok" and row.verdict == "unverified" for row in table.rows)
    if blind:
        said.append(
            f"{_trials(blind, 'run')} without telemetry: nothing vouches for the conditions."
        )
    return said


def _figure(cell: Cell) -> str:
    assert cell.median is not None
    return with_ci(cell.median, cell.ci_low, cell.ci_high, cell.unit)


def _against(cell: Cell) -> str:
    if cell.ratio is None:
        return ""
    if cell.ratio_low is None or cell.ratio_high is None:
        return f", {ratio(cell.ratio)} the baseline"
    words = {"same": ", within ±3 % of it", "unclear": ", which is not certain"}
    interval = f"{ratio(cell.ratio_low)} to {ratio(cell.ratio_high)}"
    return f", {ratio(cell.ratio)} the baseline ({interval}){words.get(cell.standing or '', '')}"


def _place(group: Sequence[tuple[str, object]]) -> str:
    return SEPARATOR.join(f"{axis_name(axis)} {axis_value(value)}" for axis, value in group)


def _own_label(row: TrialRow) -> str:
    """The trial's label without what its whole group shares."""
    grouping = {axis for axis, _ in row.group}
    own = [axis for axis in row.axes if axis not in grouping]
    return label_of(row.axes, {}, own) if own else row.label


def _trials(number: int, verb: str) -> str:
    """``1 trial is``, ``2 trials are``."""
    one, many = {"be": ("is", "are"), "have": ("has", "have"), "run": ("ran", "ran")}[verb]
    return f"{number} trial {one}" if number == 1 else f"{number} trials {many}"
