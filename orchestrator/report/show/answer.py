"""Says in sentences what a sweep found: what is best, what it costs, what failed, what to doubt.

Computed from the table alone, so that terminal, HTML and Markdown say the same. A configuration is
called best only where it keeps the quality of the baseline within ``QUALITY_LIMIT``; the sentence
states the limit, and names what would be faster without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.analyse.labels import SEPARATOR, axis_text, metric_title
from orchestrator.report.analyse.rows import Cell, SweepTable, TrialRow, better_when
from orchestrator.report.show.units import ratio, with_ci

#: How far above the baseline's the perplexity of a configuration worth recommending may be.
QUALITY_LIMIT = 1.05

_MOST_GROUPS = 4
_MOST_NAMED = 3

_QUALITY = "perplexity"
# What a faster or smaller configuration costs in quality, best known first.
_QUALITIES = ("perplexity", "kl_to_reference", "top1_agreement")
_MEMORY = ("weights_bytes", "process_memory_bytes", "peak_memory_over_weights_bytes")

# Verdict rules that only flag, as a reader would say them.
_RULES = {
    "ci_reached": "sampling ended before the interval was as narrow as the protocol asks",
    "sample_count": "few samples",
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
    measured = [row for row in table.rows if row.outcome == "ok"]
    deciding = _deciding(table, measured)
    if deciding is not None and len(measured) > 1:
        said.extend(_bests(measured, deciding))
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


def _groups(rows: Sequence[TrialRow]) -> dict[_Group, list[TrialRow]]:
    groups: dict[_Group, list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _bests(measured: Sequence[TrialRow], deciding: str) -> list[str]:
    groups = _groups(measured)
    found = [b for g, rows in groups.items() if (b := _best_of(g, rows, deciding)) is not None]
    names = {best.row.own_label for best in found}
    if len(found) > 1 and len(names) == 1:
        said = [_best_everywhere(found, deciding)]
    else:
        said = [_best_here(best, deciding, len(groups) > 1) for best in found[:_MOST_GROUPS]]
        if len(found) > _MOST_GROUPS:
            said.append(f"{len(found) - _MOST_GROUPS} more groups are in the table.")
    return said + _beyond_the_limit(found, deciding)


def _best_of(group: _Group, rows: Sequence[TrialRow], deciding: str) -> _Best | None:
    """None where there is nothing to choose from."""
    unlimited = _winner(rows, deciding)
    if len(rows) < 2 or unlimited is None:
        return None
    within = [row for row in rows if row.baseline or _keeps_quality(row)]
    limited = len(within) < len(rows)
    best = _winner(within, deciding) or unlimited
    cell = best.cells[deciding]
    rivals = tuple(r for r in within if r is not best and _overlap(r.cells[deciding], cell))
    return _Best(group, best, limited, unlimited, rivals)


def _keeps_quality(row: TrialRow) -> bool:
    """Whether the limit is met, or cannot be applied because nothing measured quality."""
    cell = row.cells.get(_QUALITY)
    return cell is None or cell.ratio is None or cell.ratio <= QUALITY_LIMIT


def _overlap(one: Cell, other: Cell) -> bool:
    """Whether the two 95 % intervals have values in common."""
    if one.ci_low is None or one.ci_high is None or other.ci_low is None or other.ci_high is None:
        return False
    return one.ci_low <= other.ci_high and other.ci_low <= one.ci_high


def _best_here(best: _Best, deciding: str, several: bool) -> str:
    row, cell = best.row, best.row.cells[deciding]
    place = f" at {_place(best.group)}" if several and best.group else ""
    figure = f"{metric_title(deciding)} {_figure(cell)}"
    rivals = _rivals(best, deciding)
    if row.baseline:
        return f"{_limit(best)}Nothing beats the baseline {row.own_label}{place}: {figure}{rivals}."
    return f"{_limit(best)}{row.own_label} is best{place}: {figure}{_against(cell)}{rivals}."


def _limit(best: _Best) -> str:
    over = f"{100 * (QUALITY_LIMIT - 1):.0f} %"
    return f"With perplexity at most {over} above the baseline's: " if best.limited else ""


def _rivals(best: _Best, deciding: str) -> str:
    if not best.rivals:
        return ""
    named = ", ".join(
        f"{row.own_label} ({_figure(row.cells[deciding])})" for row in best.rivals[:_MOST_NAMED]
    )
    more = f" and {len(best.rivals) - _MOST_NAMED} more" if len(best.rivals) > _MOST_NAMED else ""
    return f"; the intervals do not tell it from {named}{more}"


def _best_everywhere(found: Sequence[_Best], deciding: str) -> str:
    title, row = metric_title(deciding), found[0].row
    everywhere = "both groups" if len(found) == 2 else f"all {len(found)} groups"
    limit = _limit(next((best for best in found if best.limited), found[0]))
    unclear = [best for best in found if best.rivals]
    told = f"; in {len(unclear)} of them the intervals overlap another's" if unclear else ""
    if row.baseline:
        where = f"in any of {len(found)} groups ({title}{told})"
        return f"{limit}Nothing beats the baseline {row.own_label} {where}."
    cells = [best.row.cells[deciding] for best in found]
    ratios = [cell.ratio for cell in cells if cell.ratio is not None]
    how = ""
    if ratios:
        low, high = ratio(min(ratios)), ratio(max(ratios))
        how = f": {title} {low if low == high else f'{low} to {high}'} the baseline"
        lows = [cell.ratio_low for cell in cells if cell.ratio_low is not None]
        highs = [cell.ratio_high for cell in cells if cell.ratio_high is not None]
        if lows and highs:
            how += f" (intervals {ratio(min(lows))} to {ratio(max(highs))})"
    return f"{limit}{row.own_label} is best in {everywhere}{how}{told}."


def _beyond_the_limit(found: Sequence[_Best], deciding: str) -> list[str]:
    """What is better still and gives up more quality than the limit allows."""
    faster: dict[str, list[TrialRow]] = {}
    for best in found:
        if best.unlimited is not best.row:
            faster.setdefault(best.unlimited.own_label, []).append(best.unlimited)
    said = []
    for name, rows in faster.items():
        figures = _span([row.cells[deciding].ratio for row in rows])
        quality = _span([row.cells[_QUALITY].ratio for row in rows])
        where = "" if len(rows) == len(found) else f" in {len(rows)} of {len(found)} groups"
        said.append(
            f"Beyond that limit {name} is better still{where}:"
            f" {metric_title(deciding)} {figures} the baseline, perplexity {quality}."
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
    memory = next((m for m in _MEMORY if m in table.metrics), None)
    if memory is None or memory == deciding:
        return []
    least = []
    for rows in _groups(measured).values():
        row = _winner(rows, memory)
        if row is not None and not row.baseline and row.cells[memory].standing == "better":
            least.append(row)
    if not least or len({row.own_label for row in least}) > 1:
        return []
    costs = [f"{metric_title(deciding)} {_span([row.cells[deciding].ratio for row in least])}"]
    for name in [q for q in _QUALITIES if q in table.metrics][:2]:
        cells = [row.cells[name] for row in least if row.cells[name].median is not None]
        if cells:
            known = any(cell.ratio is not None for cell in cells)
            shown = _span([cell.ratio for cell in cells]) if known else _figure(cells[0])
            costs.append(f"{metric_title(name)} {shown}")
    cell = least[0].cells[memory]
    alike = len({row.cells[memory].median for row in least}) == 1
    size = _figure(cell) if alike else f"from {_figure(cell)}"
    found = f"{least[0].own_label} is smallest: {metric_title(memory)} {size}"
    found += f", {_span([row.cells[memory].ratio for row in least])} the baseline"
    return [f"{found}; it comes with {_and(costs)}."]


def _failures(table: SweepTable) -> list[str]:
    failed = [row for row in table.failures if row.outcome != "invalid"]
    if not failed:
        return []
    causes: dict[tuple[str, str], list[TrialRow]] = {}
    for row in failed:
        causes.setdefault((row.outcome, _cause(row)), []).append(row)
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
    measured = [row for row in table.rows if row.outcome == "ok"]
    flagged = [row for row in measured if row.verdict == "flagged"]
    if flagged:
        rules = Counter(rule for row in flagged for rule in row.flags)
        why = "; ".join(f"{_RULES.get(rule, rule)} ({n})" for rule, n in rules.most_common())
        of = f" of {len(measured)}"
        said.append(f"{_trials(len(flagged), 'be', of)} flagged{f': {why}' if why else ''}.")
    blind = sum(row.verdict == "unverified" for row in measured)
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


def _place(group: _Group) -> str:
    return SEPARATOR.join(axis_text(axis, value) for axis, value in group)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _trials(number: int, verb: str, of: str = "") -> str:
    """``1 trial is``, ``2 trials are``, ``2 of 8 trials are``."""
    one, many = {"be": ("is", "are"), "have": ("has", "have"), "run": ("ran", "ran")}[verb]
    noun = "trial" if number == 1 and not of else "trials"
    return f"{number}{of} {noun} {one if number == 1 else many}"
