"""One trial in full: what it is, every attempt, its numbers, why they can be believed.

``show_json`` is pure; :class:`ShowView` is what rich prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from statistics import fmean, stdev
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.attempt import AttemptReport
from orchestrator.conditions import GROUPS, difference
from orchestrator.measure.grouping import grouped
from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.report.analyse.cell import Cell, pool
from orchestrator.report.analyse.labels import plain_label, short_hash
from orchestrator.report.analyse.measured import (
    believable,
    class_of,
    metric_of,
    precision_of,
    spec_of,
)
from orchestrator.report.analyse.reasons import one_line, why
from orchestrator.report.show.board import device_of
from orchestrator.report.show.operators_view import operator_table
from orchestrator.report.show.parts import ended, figure_text, grid, numbers, prose, words
from orchestrator.report.show.style import VERDICT_MARKS
from orchestrator.report.show.tree import entry
from orchestrator.report.show.units import MISSING, duration, quantity, scale_of, utc
from orchestrator.statistics.summary import summarise_attempts, summarise_by

_TOLD = (
    *("median", "ci_low", "ci_high", "mean", "std", "mad", "min", "n", "p95", "p99"),
    *("outliers_mild", "outliers_severe", "bimodal"),
)
_STATISTICS = ("median", "95 % interval", "mean", "sd", "least", "n")
_MOST_TELEMETRY = 40
_MOST_PHASES = 6
_NARROW_PHASES = 3
_NARROW = 90
_TOO_SHORT = re.compile(r"lasted [\d.e-]+ s, (shorter than .*)")
_VERDICT_STYLE = {"pass": "green", "flagged": "yellow", "invalid": "red", "unknown": "dim"}


def show_json(
    config_hash: str, config: Mapping[str, Any], attempts: Sequence[tuple[str, AttemptReport]]
) -> dict[str, Any]:
    """What ``show --json`` prints; ``attempts`` are ``(MLflow run, report)``, oldest first."""
    return {
        "hash": config_hash,
        "config": dict(config),
        "attempts": [
            attempt_json(run_id, report, config.get("protocol") or {})
            for run_id, report in attempts
        ],
    }


def attempt_json(run_id: str, report: AttemptReport, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """One attempt of ``show --json``; telemetry aggregates stand beside the task's metrics."""
    slot = report.slot
    return {
        "run_id": run_id,
        "outcome": report.outcome.value,
        "reason": report.reason,
        "verdict": {
            "state": report.verdict.state,
            "rules": [asdict(rule) for rule in report.verdict.rules],
        },
        "precision": precision_of([report]),
        "conditions": None
        if report.conditions is None
        else {"id": report.conditions.id, **report.conditions.ids},
        "started": _iso(report.started_at),
        "ended": _iso(report.ended_at),
        "host": None if slot is None else slot.host,
        "devices": [] if slot is None else list(slot.gpu_uuids),
        "metrics": {
            name: metric_summary(metric, protocol)
            for name, metric in {**report.metrics, **report.telemetry}.items()
        },
    }


def metric_summary(metric: Metric, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of samples, a value, or an absence with its reason, as plain JSON.

    The interval is that of the trial's protocol, as MLflow holds it.
    """
    if isinstance(metric, Value):
        return {"value": metric.value, "unit": metric.unit}
    if isinstance(metric, Absent):
        return {"value": None, "unit": metric.unit, "reason": metric.reason}
    if not metric.values:
        return {"value": None, "unit": metric.unit, "reason": "no measured samples"}
    summary = summarise_by(protocol, metric.series)
    return {**{name: getattr(summary, name) for name in _TOLD}, "unit": metric.unit}


@dataclass(frozen=True)
class ShowView:
    """One trial as rich prints it, at any width.

    Attributes
    ----------
    config_hash : str
        All 64 hex characters.
    config : mapping
        The trial's identity.
    attempts : sequence of (str, AttemptReport)
        MLflow run and report, oldest first.
    artifacts : mapping of str to sequence of str
        Artifact names by MLflow run, where the store listed them.
    """

    config_hash: str
    config: Mapping[str, Any]
    attempts: Sequence[tuple[str, AttemptReport]]
    artifacts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrow = options.max_width < _NARROW
        yield Text.assemble((plain_label(self.config), "bold"), f"  {short_hash(self.config_hash)}")
        yield Text(self.config_hash, style="dim")
        yield from _section("configuration", [_pairs(self.config)])
        if not self.attempts:
            yield from _section("attempts", [Text("none recorded")])
            return
        yield from _section(
            "attempts", [_attempts(self.attempts, narrow), *_reasons(self.attempts)]
        )
        reports = [report for _, report in self.attempts]
        counted = believable(reports)
        last = (counted or reports)[-1]
        yield from _section("conditions", _conditions(reports, last))
        if counted:
            pooled = f", {len(counted)} attempts pooled" if len(counted) > 1 else ""
            yield from _section(f"metrics{pooled}", _metrics(counted, narrow))
            # Only ``task=profile`` says this of itself.
            operators = counted[-1].facts.get("top_operators")
            yield from _section("top operators", [operator_table(operators)] if operators else [])
            yield from _section("telemetry", _telemetry(counted[-1], narrow))
        yield from _section(f"verdict of attempt {last.number}: {last.verdict.state}", _rules(last))
        yield from _section("asked for and got", _engaged(last))
        yield from _section(f"provenance of attempt {last.number}", [_pairs(last.provenance)])
        run_id = next(run_id for run_id, report in self.attempts if report is last)
        stored = self.artifacts.get(run_id, ())
        names = dict.fromkeys([*last.artifacts, *stored])
        if names:
            yield from _section("artifacts", [Text(", ".join(names))])
        yield Text(f"\nagain: python -m orchestrator reproduce {short_hash(self.config_hash)}")


def _conditions(reports: Sequence[AttemptReport], shown: AttemptReport) -> list[RenderableType]:
    """Those of the attempts that are pooled; of others, what was not as it is there."""
    if shown.conditions is None:
        return []
    now = shown.conditions
    classes = grouped(reports, class_of)
    parts: list[RenderableType] = [Text(f"{now.id}  {_numbers(classes[class_of(shown)])}")]
    shown_in = {group: dict(getattr(now, group)) for group in GROUPS}
    shown_in["content"] = {k: v and short_hash(v) for k, v in now.content.items()}
    for facts in shown_in.values():
        facts.update({name: "not known" for name, value in facts.items() if value is None})
    parts.append(_pairs({group: facts or None for group, facts in shown_in.items()}))
    parts += [
        Text(
            f"{_numbers(others)}: {difference(others[-1].conditions, now)} (not pooled)",
            style="dim",
        )
        for key, others in classes.items()
        if key != class_of(shown) and others[-1].slot is not None
    ]
    return parts


def _numbers(attempts: Sequence[AttemptReport]) -> str:
    numbers_of = ", ".join(str(report.number) for report in attempts)
    return f"attempt{'s' if len(attempts) > 1 else ''} {numbers_of}"


def _section(title: str, body: Iterable[RenderableType]) -> list[RenderableType]:
    parts = list(body)
    if not parts:
        return []
    return [Text(""), Text(title, style="bold"), *(Padding(part, (0, 0, 0, 2)) for part in parts)]


def _pairs(tree: Mapping[str, Any]) -> Table:
    """One line a branch: ``model   source=packaged id=smollm2_135m``."""
    drawn = grid(words(style="cyan"), prose())
    for key, value in tree.items():
        if said := entry(value, key):
            drawn.add_row(str(key), Text(said))
    return drawn


def _attempts(attempts: Sequence[tuple[str, AttemptReport]], narrow: bool) -> Table:
    drawn = grid(
        *(words("#"), words("outcome"), words("verdict"), numbers("took")),
        *(() if narrow else (words("started (UTC)"), words("where"))),
        prose("MLflow run"),
    )
    for run_id, report in attempts:
        # Nothing was measured by an attempt that failed: there is nothing to believe or not.
        state = report.verdict.state if believable([report]) else MISSING
        mark, style, _ = VERDICT_MARKS.get(state, ("", "", ""))
        where = "" if report.slot is None else f"{report.slot.host} {device_of(report.slot)}"
        drawn.add_row(
            str(report.number),
            ended(report.outcome.value),
            Text(f"{mark} {state}".strip(), style),
            duration(report.duration_s),
            *([] if narrow else [_started(report), where]),
            run_id[:8] if narrow else run_id,
        )
    return drawn


def _reasons(attempts: Sequence[tuple[str, AttemptReport]]) -> list[RenderableType]:
    return [
        Text(f"{report.number}: {why(report)}", style="red")
        for _, report in attempts
        if report.outcome.value != "ok"
    ]


def _metrics(counted: Sequence[AttemptReport], narrow: bool) -> list[RenderableType]:
    names = dict.fromkeys(name for report in counted for name in report.metrics)
    cells = {name: pool(counted, spec_of(counted, name)) for name in names}
    missing = [cell for cell in cells.values() if cell.median is None]
    reasons = grouped(missing, lambda cell: cell.reason or "no reason")
    absent = {reason: [cell.name for cell in found] for reason, found in reasons.items()}
    headings = ("median", "n") if narrow else _STATISTICS
    drawn = grid(prose(), *map(numbers, headings))
    for cell in cells.values():
        if cell.median is None:
            continue
        if narrow:
            drawn.add_row(cell.name, figure_text(cell), str(cell.n))
        else:
            drawn.add_row(*_statistics(cell, counted))
    return [drawn, *_shapes(counted, cells.values()), *_stops(counted), *_absences(absent)]


def _shapes(counted: Sequence[AttemptReport], cells: Iterable[Cell]) -> list[RenderableType]:
    """Tails that enough samples tell, outliers counted (never dropped), series in two modes."""
    tails, outliers, modes = [], [], []
    for cell in (cell for cell in cells if cell.median is not None):
        found = [m for r in counted if isinstance(m := metric_of(r, cell.name), Samples)]
        summary = summarise_attempts([metric.series for metric in found], resamples=1)
        if summary.p95 is not None:
            far = "" if summary.p99 is None else f", p99 {quantity(summary.p99, cell.unit)}"
            tails.append(f"{cell.name} p95 {quantity(summary.p95, cell.unit)}{far}")
        counts = (("mild", summary.outliers_mild), ("severe", summary.outliers_severe))
        if said := ", ".join(f"{count} {kind}" for kind, count in counts if count):
            outliers.append(f"{cell.name} {said}")
        if summary.bimodal:
            modes.append(cell.name)
    lines = (("tails", tails), ("outliers, all kept", outliers), ("in two modes", modes))
    return [Text(f"{what}: {'; '.join(said)}", style="dim") for what, said in lines if said]


def _stops(counted: Sequence[AttemptReport]) -> list[RenderableType]:
    """Why sampling ended, by the metric it watched."""
    found: dict[str, dict[str, None]] = {}
    for report in counted:
        for metric in report.metrics.values():
            if isinstance(metric, Samples) and metric.stop_reason:
                found.setdefault(metric.name, {})[metric.stop_reason] = None
    said = [f"{name} by {', '.join(reasons)}" for name, reasons in found.items()]
    return [Text(f"sampling ended: {'; '.join(said)}", style="dim")] if said else []


def _statistics(cell: Cell, counted: Sequence[AttemptReport]) -> list[RenderableType]:
    """One row of the wide table: all in the scale of the median, four digits of it."""
    assert cell.median is not None
    scale = scale_of([cell.median], cell.unit)
    found = [m for r in counted if isinstance(m := metric_of(r, cell.name), Samples)]
    values = [v for metric in found for v in metric.values]
    interval = ""
    if cell.ci_low is not None and cell.ci_high is not None and cell.ci_low < cell.ci_high:
        interval = f"{scale.number(cell.ci_low, 4)} – {scale.number(cell.ci_high, 4)}"
    many = len(values) > 1
    return [
        cell.name,
        Text(scale.text(cell.median, 4), style="bold"),
        interval,
        scale.number(fmean(values), 4) if many else "",
        scale.number(stdev(values), 2) if many else "",
        scale.number(min(values), 4) if many else "",
        str(cell.n),
    ]


def _telemetry(report: AttemptReport, narrow: bool) -> list[RenderableType]:
    """Metrics down, phases across: one look tells the phases apart."""
    found: dict[str, dict[str, str]] = {}
    absent: dict[str, list[str]] = {}
    brief: dict[tuple[str, str], list[str]] = {}
    for name, metric in report.telemetry.items():
        phase, _, quantity_name = name.rpartition(".")
        if isinstance(metric, Absent):
            short = _TOO_SHORT.fullmatch(metric.reason)
            if short:
                brief.setdefault((quantity_name, short[1]), []).append(phase or "attempt")
            else:
                absent.setdefault(metric.reason, []).append(quantity_name)
            continue
        value = (
            metric.value
            if isinstance(metric, Value)
            else pool([report], spec_of([report], name)).median
        )
        found.setdefault(quantity_name, {})[phase or "attempt"] = quantity(value, metric.unit)
    parts: list[RenderableType] = []
    if found:
        phases = list(dict.fromkeys(phase for values in found.values() for phase in values))
        told = sorted(phases, key=lambda phase: -sum(phase in values for values in found.values()))
        most = told[: _NARROW_PHASES if narrow else _MOST_PHASES]
        shown = [phase for phase in phases if phase in most]
        drawn = grid(prose(), *map(numbers, shown))
        for name, values in list(found.items())[:_MOST_TELEMETRY]:
            if values.keys() & set(shown):
                drawn.add_row(name, *(values.get(phase, "") for phase in shown))
        parts.append(drawn)
        left = [*(p for p in phases if p not in shown), *list(found)[_MOST_TELEMETRY:]]
        if left:
            parts.append(Text(f"… and {', '.join(left)} (--json)", style="italic"))
    # A short phase has a reason of its own for every figure: what is too short for what, once.
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, period), phases in brief.items():
        together.setdefault((period, tuple(phases)), []).append(name)
    for (period, short_phases), names in together.items():
        absent[f"{', '.join(short_phases)}: {period}"] = names
    return [*parts, *_absences(absent)]


def _rules(report: AttemptReport) -> list[RenderableType]:
    passed = [rule.rule for rule in report.verdict.rules if rule.state == "pass"]
    rest = [rule for rule in report.verdict.rules if rule.state != "pass"]
    parts: list[RenderableType] = []
    if rest:
        drawn = grid(*map(words, ("rule", "state", "seen", "limit")), prose())
        for rule in rest:
            drawn.add_row(
                rule.rule,
                Text(rule.state, _VERDICT_STYLE.get(rule.state, "")),
                _plain(rule.value),
                _plain(rule.limit),
                Text(one_line(rule.reason or "")),
            )
        parts.append(drawn)
    if passed:
        parts.append(Text(f"passed: {', '.join(passed)}", style="dim"))
    return parts or [Text("no rule was applied", style="dim")]


def _engaged(report: AttemptReport) -> list[RenderableType]:
    if not report.engaged:
        return []
    drawn = grid(words(), words(), prose("asked"), prose("got"))
    for proof in report.engaged:
        mark = Text("✓", "green") if proof.ok else Text("✗", "red")
        drawn.add_row(mark, proof.what, proof.asked, proof.got)
    return [drawn]


def _absences(absent: Mapping[str, Sequence[str]]) -> list[RenderableType]:
    return [
        Text(f"not had: {', '.join(dict.fromkeys(names))} ({one_line(reason)})", style="dim")
        for reason, names in absent.items()
    ]


def _plain(value: float | str | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _iso(unix_s: float) -> str | None:
    if not unix_s:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def _started(report: AttemptReport) -> str:
    return utc(report.started_at, "second") if report.started_at else MISSING
