"""Says in sentences what a sweep found: what is best, what it costs, what failed, what to doubt.

Computed from the table alone, so that terminal, HTML and Markdown say the same. A configuration is
called best only where it keeps the quality of the baseline within ``QUALITY_LIMIT``; the sentence
states the limit, and names what would be faster without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.measure.grouping import grouped
from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.cell import Cell, TrialRow
from orchestrator.report.analyse.labels import SEPARATOR, axis_text
from orchestrator.report.analyse.measured import PRECISION
from orchestrator.report.analyse.rows import SweepTable
from orchestrator.report.show.parts import figure_text, some_of
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import ratio

#: How far above the baseline's the perplexity of a configuration worth recommending may be.
QUALITY_LIMIT = 1.05

_MOST_GROUPS = 4
_MOST_NAMED = 3

_QUALITY = "perplexity"
# Verdict rules that only flag, as a reader would say them.
_RULES = {
    "other_load": "other programs used the machine",
    "bimodal": "samples in two heaps",
    "power_cap": "the GPU was at its power cap",
    "memory_before": "GPU memory was in use before",
    "display": "the GPU drives a display",
}

_Group = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class _Best:
    """What one group's trials say: the best within the limit, and the best of all."""

    group: _Group
    row: TrialRow
    limited: bool
    unlimited: TrialRow
    rivals: tuple[TrialRow, ...]


def sentences(table: SweepTable) -> list[str]:
    """What a reader should know first; empty for a sweep of which nothing has run."""
    said = []
    measured = table.ok
    deciding = _deciding(table, measured)
    if deciding is not None and len(measured) > 1:
        said.extend(_bests(table, measured, deciding))
        said.extend(_smallest(table, measured, deciding))
    said.extend(_failures(table))
    said.extend(f"No ratios: {reason}." for reason in table.missing_ratios)
    said.extend(_doubts(table))
    return said


def pareto_front(rows: Sequence[TrialRow], metrics: Sequence[str]) -> list[TrialRow]:
    """Rows that no other row beats or equals in every metric and beats in one.

    Rows that lack one of the metrics, and metrics without a good direction, are left out.
    """
    directed = [m for m in metrics if any(m in r.cells and r.cells[m].spec.better for r in rows)]
    points = {}
    for row in rows:
        cells = [row.cells[m] for m in directed if m in row.cells]
        costs = [cost for cell in cells if (cost := _cost(cell)) is not None]
        if directed and len(costs) == len(directed):
            points[row.hash] = costs

    def beaten(point: Sequence[float]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points.values()
        )

    return [row for row in rows if row.hash in points and not beaten(points[row.hash])]


def _cost(cell: Cell) -> float | None:
    """The median, so signed that less is better; None where there is none, or no direction."""
    if cell.median is None or cell.spec.better is None:
        return None
    return cell.median if cell.spec.better == "lower" else -cell.median


def _deciding(table: SweepTable, rows: Sequence[TrialRow]) -> str | None:
    """The first headline metric that has a direction and a value."""
    return next(
        (n for n in table.metrics if any(_cost(row.cells[n]) is not None for row in rows)), None
    )


def _winner(rows: Sequence[TrialRow], name: str) -> TrialRow | None:
    costs = [(cost, row) for row in rows if (cost := _cost(row.cells[name])) is not None]
    return min(costs, key=lambda pair: pair[0])[1] if costs else None


def _bests(table: SweepTable, measured: Sequence[TrialRow], deciding: str) -> list[str]:
    groups = grouped(measured, lambda row: row.group)
    found = [
        best
        for group, rows in groups.items()
        if (best := _best_of(table, group, rows, deciding)) is not None
    ]
    names = {best.row.own_label for best in found}
    if len(found) > 1 and len(names) == 1:
        said = [_best_everywhere(found, deciding)]
    else:
        said = [_best_here(best, deciding, len(groups) > 1) for best in found[:_MOST_GROUPS]]
        if len(found) > _MOST_GROUPS:
            said.append(f"{len(found) - _MOST_GROUPS} more groups are in the table.")
    return said + _beyond_the_limit(found, deciding)


def _best_of(
    table: SweepTable, group: _Group, rows: Sequence[TrialRow], deciding: str
) -> _Best | None:
    """None where there is nothing to choose from."""
    rows = _alike(table, rows, deciding)
    unlimited = _winner(rows, deciding)
    if len(rows) < 2 or unlimited is None:
        return None
    within = [row for row in rows if row.baseline or _keeps_quality(row, rows)]
    limited = len(within) < len(rows)
    best = _winner(within, deciding) or unlimited
    if unlimited is not best and table.judged(deciding, unlimited, best).finding != "improvement":
        unlimited = best
    rivals = tuple(
        row
        for row in within
        if row is not best
        and row.has(deciding)
        and table.judged(deciding, row, best).finding != "regression"
    )
    return _Best(group, best, limited, unlimited, rivals)


def _alike(table: SweepTable, rows: Sequence[TrialRow], deciding: str) -> list[TrialRow]:
    """The rows that may be compared with the baseline, or with the first where that has no result.

    What was measured on another machine, say, is neither better nor worse than these.
    """
    base = next((row for row in rows if row.baseline), rows[0])
    return [
        row
        for row in rows
        if row is base or table.judged(deciding, row, base).finding != "incomparable"
    ]


def _keeps_quality(row: TrialRow, rows: Sequence[TrialRow]) -> bool:
    """Whether the limit is met; also where the baseline's quality was not measured.

    Where it was, a trial of which nothing is known does not meet it.
    """
    if not any(base.baseline and base.has(_QUALITY) for base in rows):
        return True
    kept = row.cells[_QUALITY].ratio
    return kept is not None and kept <= QUALITY_LIMIT


def _best_here(best: _Best, deciding: str, several: bool) -> str:
    row, cell = best.row, best.row.cells[deciding]
    place = f" at {_place(best.group)}" if several and best.group else ""
    figure = f"{cell.spec.title} {figure_text(cell)}"
    rivals = _rivals(best, deciding)
    if row.baseline:
        none = f"No trial is better than the baseline {row.own_label}{place}"
        return f"{_limit(best)}{none}: {figure}{rivals}."
    return f"{_limit(best)}{row.own_label} is best{place}: {figure}{_against(cell)}{rivals}."


def _limit(best: _Best) -> str:
    over = f"{100 * (QUALITY_LIMIT - 1):.0f} %"
    return f"With perplexity at most {over} above the baseline's: " if best.limited else ""


def _rivals(best: _Best, deciding: str) -> str:
    if not best.rivals:
        return ""
    named = [f"{row.own_label} ({figure_text(row.cells[deciding])})" for row in best.rivals]
    return f"; not distinguishable from {some_of(named, _MOST_NAMED)}"


def _best_everywhere(found: Sequence[_Best], deciding: str) -> str:
    row = found[0].row
    title = row.cells[deciding].spec.title
    everywhere = "both groups" if len(found) == 2 else f"all {len(found)} groups"
    limit = _limit(next((best for best in found if best.limited), found[0]))
    unclear = [best for best in found if best.rivals]
    told = f"; in {len(unclear)} of them not distinguishable from another" if unclear else ""
    if row.baseline:
        groups = "either group" if len(found) == 2 else f"any of {len(found)} groups"
        where = f"in {groups} ({title}{told})"
        return f"{limit}No trial is better than the baseline {row.own_label} {where}."
    cells = [best.row.cells[deciding] for best in found]
    ratios = [cell.ratio for cell in cells if cell.ratio is not None]
    how = ""
    if ratios:
        how = f": {title} {_span(ratios)} the baseline"
        lows = [cell.ratio_low for cell in cells if cell.ratio_low is not None]
        highs = [cell.ratio_high for cell in cells if cell.ratio_high is not None]
        if lows and highs:
            how += f" (intervals {ratio(min(lows))} to {ratio(max(highs))})"
    return f"{limit}{row.own_label} is best in {everywhere}{how}{told}."


def _beyond_the_limit(found: Sequence[_Best], deciding: str) -> list[str]:
    """What is better still and gives up more quality than the limit allows."""
    faster = [best.unlimited for best in found if best.unlimited is not best.row]
    said = []
    for name, rows in grouped(faster, lambda row: row.own_label).items():
        figures = _span([row.cells[deciding].ratio for row in rows])
        quality = _span([row.cells[_QUALITY].ratio for row in rows])
        if not any(row.has(_QUALITY) for row in rows):
            quality = "not measured"
        where = "" if len(rows) == len(found) else f" in {len(rows)} of {len(found)} groups"
        said.append(
            f"Beyond that limit {name} is better still{where}:"
            f" {rows[0].cells[deciding].spec.title} {figures} the baseline, perplexity {quality}."
        )
    return said


def _span(ratios: Sequence[float | None]) -> str:
    known = [value for value in ratios if value is not None]
    if not known:
        return "–"
    low, high = ratio(min(known)), ratio(max(known))
    return low if low == high else f"{low} to {high}"


def _smallest(table: SweepTable, measured: Sequence[TrialRow], deciding: str) -> list[str]:
    """What takes least memory of its group, and what that costs in speed and quality."""
    memory = next((m for m in table.metrics if table.specs[m].unit == "bytes"), None)
    if memory is None or memory == deciding:
        return []
    least = []
    for rows in grouped(measured, lambda row: row.group).values():
        row = _winner(rows, memory)
        if row is not None and not row.baseline and row.cells[memory].standing == "improvement":
            least.append(row)
    if not least or len({row.own_label for row in least}) > 1:
        return []
    costs = [f"{table.title(deciding)} {_span([row.cells[deciding].ratio for row in least])}"]
    for name in [m for m in table.metrics if _is_quality(table.specs[m])][:2]:
        cells = [row.cells[name] for row in least if row.has(name)]
        if cells:
            known = any(cell.ratio is not None for cell in cells)
            shown = _span([cell.ratio for cell in cells]) if known else figure_text(cells[0])
            costs.append(f"{table.title(name)} {shown}")
    cell = least[0].cells[memory]
    alike = len({row.cells[memory].median for row in least}) == 1
    size = figure_text(cell) if alike else f"from {figure_text(cell)}"
    found = f"{least[0].own_label} is smallest: {table.title(memory)} {size}"
    found += f", {_span([row.cells[memory].ratio for row in least])} the baseline"
    return [f"{found}; it comes with {_and(costs)}."]


def _is_quality(spec: MetricSpec) -> bool:
    """What fixed tokens say of a model: exact, good in one direction, and no size."""
    return spec.exact and spec.better is not None and spec.unit not in ("bytes", "bit")


def _failures(table: SweepTable) -> list[str]:
    failed = [row for row in table.failures if row.outcome != "invalid"]
    if not failed:
        return []
    causes = grouped(failed, lambda row: (row.outcome, _cause(row)))
    parts = []
    for (outcome, cause), rows in list(causes.items())[:_MOST_NAMED]:
        ended = f"{outcome}, {cause}" if cause else outcome
        if len(rows) > _MOST_NAMED:
            parts.append(f"{len(rows)} {ended}")  # the list below names them
        else:
            parts.append(f"{_and([row.label for row in rows])} ({ended})")
    rest = sum(len(rows) for rows in list(causes.values())[_MOST_NAMED:])
    more = f"; and {rest} more" if rest else ""
    have = "has" if len(failed) == 1 else "have"
    return [
        f"{len(failed)} of {len(table.rows)} trials {have} no result: {'; '.join(parts)}{more}."
    ]


def _cause(row: TrialRow) -> str:
    """The first sentence of the reason; what follows it is how to mend it."""
    reason = (row.reason or "").split(". ")[0].rstrip(".")
    return "" if reason == row.outcome else reason


def _doubts(table: SweepTable) -> list[str]:
    said = []
    invalid = [row for row in table.rows if row.outcome == "invalid"]
    if invalid:
        some = "; ".join(f"{row.label} ({row.reason})" for row in invalid[:_MOST_NAMED])
        more = f"; and {len(invalid) - _MOST_NAMED} more" if len(invalid) > _MOST_NAMED else ""
        said.append(f"Not to be believed: {some}{more}.")
    measured = table.ok
    flagged = [row for row in measured if row.verdict == "flagged"]
    if flagged:
        rules = Counter(rule for row in flagged for rule in row.flags)
        why = "; ".join(f"{_RULES.get(rule, rule)} ({n})" for rule, n in rules.most_common())
        of = f" of {len(measured)}"
        said.append(f"{_trials(len(flagged), 'be', of)} flagged{f': {why}' if why else ''}.")
    for word, meaning in PRECISION.items():
        number = sum(row.precision == word for row in measured)
        if number:
            many = _trials(number, "have", f" of {len(measured)}")
            said.append(f"{many} {word if word.endswith('s') else f'a {word}'}: {meaning}.")
    blind = sum(row.verdict == "unverified" for row in measured)
    if blind:
        said.append(f"{_trials(blind, 'run')} without telemetry: nothing is known of disturbances.")
    return said


def _against(cell: Cell) -> str:
    if cell.ratio is None:
        return ""
    if cell.ratio_low is None or cell.ratio_high is None:
        return f", {ratio(cell.ratio)} the baseline"
    interval = f"{ratio(cell.ratio_low)} to {ratio(cell.ratio_high)}"
    word = STANDING_MARKS[cell.standing or "inconclusive"][2]
    return f", {ratio(cell.ratio)} the baseline ({interval}, {word})"


def _place(group: _Group) -> str:
    return SEPARATOR.join(axis_text(axis, value) for axis, value in group)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _trials(number: int, verb: str, of: str = "") -> str:
    """``1 trial is``, ``2 trials are``, ``2 of 8 trials are``."""
    one, many = {"be": ("is", "are"), "have": ("has", "have"), "run": ("ran", "ran")}[verb]
    noun = "trial" if number == 1 and not of else "trials"
    return f"{number}{of} {noun} {one if number == 1 else many}"
