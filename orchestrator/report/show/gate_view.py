"""Draws what the gate says: the answer, then every rule that does not pass, with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from orchestrator.measure.grouping import grouped
from orchestrator.report.analyse.gate import EXIT_CODES, GateResult, GateRow
from orchestrator.report.analyse.reasons import one_line
from orchestrator.report.show.parts import TrialNames, some_of
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.units import quantity, ratio

if TYPE_CHECKING:
    from orchestrator.measure.metric import MetricSpec

MAX_ROWS = 60

#: state -> (mark, style), worst first.
STATES = {
    "regression": STANDING_MARKS["regression"][:2],
    "incomparable": STANDING_MARKS["incomparable"][:2],
    "inconclusive": STANDING_MARKS["inconclusive"][:2],
    "pass": ("✓", "green"),
    "skipped": ("–", "dim"),
}

# Rules that hold a ratio to a limit; the others hold a value in the metric's own unit.
_RATIO_RULES = ("difference", "change", "long_over_short")


@dataclass(frozen=True)
class GateView(TrialNames):
    """A :class:`GateResult` that rich can print."""

    result: GateResult

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        mark, style = STATES[self.result.state]
        counts = self.result.counts()
        said = " · ".join(f"{counts[s]} {s}" for s in STATES if s in counts)
        text = Text.assemble(
            (f"{mark} gate {self.result.rules}: {self.result.state}", f"bold {style}")
        )
        text.append(f"  {said}" if said else "")
        text.append(f"  exit {EXIT_CODES[self.result.state]}", style="dim")
        yield text
        if self.result.reason:
            yield Text(one_line(self.result.reason))
        order = list(STATES)
        told = [row for row in self.result.rows if row.state not in ("pass", "skipped")]
        told.sort(key=lambda row: order.index(row.state))
        for row in told[:MAX_ROWS]:
            yield from self._lines(row, options.max_width)
            if row.reason:
                yield Padding(Text(one_line(row.reason), style="dim"), (0, 0, 0, 4))
        if len(told) > MAX_ROWS:
            yield Text(f"… and {len(told) - MAX_ROWS} more (--json)", style="italic")
        for row in self.result.rows:
            if not row.hash:  # a rule that is about no trial at all
                said = f"  {STATES['skipped'][0]} {row.rule.replace('_', ' ')}: {row.reason}"
                yield Text(said, style="dim")
        alone = [row for row in self.result.rows if row.rule == "paired"]
        for reason, rows in grouped(alone, lambda row: row.reason).items():
            some = some_of([self.named(row.hash) for row in rows], 5)
            yield Text(f"  {STATES['skipped'][0]} {reason}: {some}", style="dim")

    def _lines(self, row: GateRow, width: int) -> list[Text]:
        """The trial, the rule and its figures on one line where they fit, else on two."""
        mark, style = STATES[row.state]
        parts = [self.named(row.hash), row.rule.replace("_", " ")]
        if row.metric:
            parts.append(self.result.specs[row.metric].title)
        figures = _figures(row, self.result.specs)
        first = Text(f"  {mark} ", style=style)
        whole = first.copy().append("  ".join([*parts, *figures]), style="default")
        if whole.cell_len <= width:
            return [whole]
        rest = "  ".join([*parts[1:], *figures])
        return [first.append(parts[0], style="default"), Text(f"    {rest}")]


def _figures(row: GateRow, specs: Mapping[str, MetricSpec]) -> list[str]:
    if row.value is None or row.metric is None:
        return []
    as_ratio, unit = row.rule in _RATIO_RULES, specs[row.metric].unit

    def written(value: float) -> str:
        return ratio(value) if as_ratio else quantity(value, unit)

    parts = [written(row.value)]
    if row.ci_low is not None and row.ci_high is not None and row.ci_low < row.ci_high:
        parts.append(f"[{row.ci_low:.3f} – {row.ci_high:.3f}]")
    if row.limit is not None:
        parts.append(f"limit {written(row.limit)}")
    return parts
