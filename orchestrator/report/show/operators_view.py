"""Draws operators: the difference of two profiles, and the top of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from orchestrator.report.analyse.operators import (
    OperatorChange,
    OperatorDiff,
    OperatorSide,
    change_of,
)
from orchestrator.report.show.parts import TrialNames, grid, numbers, prose, words
from orchestrator.report.show.units import MISSING, percent, quantity, ratio, scale_of

MOST_CHANGES = 15
_WIDE = 96
# What the columns of figures take where all are shown.
_FIGURES_WIDTH = 68

#: state -> (mark, style)
_MARKS = {"both": ("", ""), "appeared": ("+", "magenta"), "vanished": ("-", "cyan")}


@dataclass(frozen=True)
class OperatorDiffView(TrialNames):
    """An :class:`OperatorDiff` that rich can print."""

    diff: OperatorDiff

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = self.diff
        yield Text("")
        whose = (
            f" ({found.self_time_of} self time under the profiler)" if found.self_time_of else ""
        )
        yield Text.assemble(("operators", "bold"), whose)
        for name, config_hash in zip(self.names, (found.hash_a, found.hash_b), strict=True):
            yield Text(f"  {name}: {self.named(config_hash)}", style="dim")
        if found.reason is not None:
            yield Text(f"  incomparable: {found.reason}", style="magenta")
            return
        yield self._table(options.max_width)
        marks = {_MARKS[c.state][0]: c.state for c in found.changes[:MOST_CHANGES]}
        said = [f"{mark} {state}" for mark, state in marks.items() if mark]
        said.append("one pass each, no interval: a hint where to look, not a verdict")
        yield Text(f"  {' · '.join(said)}", style="dim")

    def _table(self, width: int) -> Table:
        found = self.diff
        shown, rest = found.changes[:MOST_CHANGES], found.changes[MOST_CHANGES:]
        scale = scale_of([s.self_s for c in shown for s in (c.a, c.b) if s], "s")
        wide = width >= _WIDE
        name_width = min(max(width - _FIGURES_WIDTH, 26), 40) if wide else 26
        headings = [*(f"{name} {scale.symbol}" for name in self.names), "Δ", "ratio"]
        headings += ["share", "calls"] if wide else []
        drawn = grid(words("  operator", max_width=name_width), *map(numbers, headings))

        def row(change: OperatorChange, mark: str, style: str) -> None:
            sides, delta_s = (change.a, change.b), change.delta_s
            cells = [f"{mark or ' '} {change.name}"]
            cells += [scale.number(s.self_s if s else None) for s in sides]
            cells += [f"{'+' if delta_s > 0 else ''}{scale.number(delta_s)}", ratio(change.ratio)]
            if wide:
                cells.append(_both(*(percent(s.share) if s else MISSING for s in sides)))
                cells.append(_both(*(str(s.calls) if s else MISSING for s in sides)))
            drawn.add_row(*cells, style=style)

        for change in shown:
            row(change, *_MARKS[change.state])
        if rest:
            row(_sum(f"{len(rest)} others (--json)", rest), "", "dim")
        row(_sum("all", found.changes), "", "bold")
        return drawn


def operator_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The top operators of one profile, as its fact ``top_operators`` holds them."""
    phases = list(dict.fromkeys(name for row in rows for name in row.get("phases", {})))
    headings = ("self", "share", *phases, "calls", "bound")
    # Names fold where there is no room, figures are never cut.
    drawn = grid(prose("operator", max_width=40), *map(numbers, headings))
    for row in rows:
        drawn.add_row(
            str(row["name"]),
            quantity(row.get("self_s"), "s"),
            percent(row["share"]),
            *(percent(row.get("phases", {}).get(name, 0.0)) for name in phases),
            str(row["calls"]),
            row.get("bound") or MISSING,
        )
    return drawn


def _both(a: str, b: str) -> str:
    """``82 → 8.3 %``: a unit that both have is said once."""
    if a == b:
        return a
    if a.endswith(" %") and b.endswith(" %"):
        a = a.removesuffix(" %")
    return f"{a} → {b}"


def _sum(name: str, changes: Sequence[OperatorChange]) -> OperatorChange:
    sides = [[s for s in side if s] for side in zip(*((c.a, c.b) for c in changes), strict=True)]
    a, b = (
        OperatorSide(
            sum(s.self_s for s in side), sum(s.share for s in side), sum(s.calls for s in side)
        )
        if side
        else None
        for side in sides
    )
    return change_of(name, a, b)
