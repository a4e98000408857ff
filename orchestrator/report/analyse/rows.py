"""What a sweep's attempts add up to: one row per trial, pooled metrics, ratios to the baseline.

Pure values, no terminal: the table, the exports and the HTML report are renderings of a
:class:`SweepTable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.report.analyse.baseline import (
    baseline_axes,
    group_of,
    is_baseline,
    ladder_foot,
    spelling,
)
from orchestrator.report.analyse.labels import label_of, labels_of, varying_axes
from orchestrator.report.analyse.reasons import why
from orchestrator.report.analyse.rounds import rounds_of

if TYPE_CHECKING:
    from orchestrator.measure import Task
    from orchestrator.measure.columns import Column
    from orchestrator.plan import Plan, Trial

#: A ratio counts as a change when its whole interval lies beyond this (PROTOCOL, Comparing).
THRESHOLD = 0.03

# Bootstrap work for one table, in resampled values: 3,000 trials must not take minutes to print.
_RESAMPLING_BUDGET = 60_000_000

# Quantities that a configuration has, not ones that scatter: a single value decides.
_EXACT_UNITS = ("bytes", "bits", "nats")
_EXACT_NAMES = ("perplexity", "top1_agreement", "kl_to_reference", "weights_bits_per_parameter")

_HIGHER_IS_BETTER = ("_per_s", "agreement", "mfu", "accuracy", "busy_share", "bandwidth")


@dataclass(frozen=True)
class Cell:
    """One metric of one trial, pooled over its attempts.

    Attributes
    ----------
    name, unit : str
        The metric, and its SI unit.
    median, ci_low, ci_high : float or None
        In the metric's SI unit; no interval where there is one value only. All None if absent.
    n : int
        Samples (over all attempts) behind the median.
    reason : str or None
        Why there is no value.
    ratio, ratio_low, ratio_high : float or None
        Median over the baseline's median, and its interval where samples exist on both sides.
    standing : str or None
        ``better``, ``worse``, ``same`` or ``unclear`` than the baseline; None without a ratio or
        for a metric that has no good direction.
    """

    name: str
    unit: str
    median: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    reason: str | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    standing: str | None = None


@dataclass(frozen=True)
class TrialRow:
    """One trial of the sweep: what it is, how it ended, what it measured.

    Attributes
    ----------
    hash, label : str
        Config hash, and what tells the trial from the others of its sweep.
    axes : dict of str to value
        Where on each axis it lies.
    group : tuple of (str, value)
        Values of every axis but the baseline's: rows of one group are compared.
    baseline : bool
        Whether it is what the others of its group are compared with.
    outcome : str
        ``ok`` if any attempt was, else the last attempt's; ``not_run`` without one.
    reason : str or None
        Why it is not ``ok``.
    verdict : str
        The best of the attempts that count.
    attempts : int
        How many count.
    flags : tuple of str
        Rules that ask for doubt about attempts that count.
    cells : dict of str to Cell
        By metric.
    words : tuple of str
        What its task names of it that is no number.
    """

    hash: str
    label: str
    axes: dict[str, Any]
    group: tuple[tuple[str, Any], ...]
    baseline: bool
    outcome: str
    reason: str | None
    verdict: str
    attempts: int
    flags: tuple[str, ...] = ()
    cells: dict[str, Cell] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def own_label(self) -> str:
        """The label without what the trial's whole group shares."""
        grouping = {axis for axis, _ in self.group}
        own = [axis for axis in self.axes if axis not in grouping]
        return label_of(self.axes, {}, own) if own and grouping else self.label

    @property
    def failed(self) -> bool:
        """Whether there is an ending to explain (a trial that never ran has none)."""
        return self.outcome not in ("ok", "not_run")


@dataclass(frozen=True)
class SweepTable:
    """Every trial of a sweep.

    Attributes
    ----------
    sweep, description : str
        Its name, and what its file says of it.
    axes : tuple of str
        Those that vary.
    metrics : tuple of str
        In headline order; the first decides.
    rows : tuple of TrialRow
        Baseline first within its group.
    """

    sweep: str
    description: str
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[TrialRow, ...]

    @property
    def failures(self) -> tuple[TrialRow, ...]:
        """Rows that have an ending to explain."""
        return tuple(row for row in self.rows if row.failed)

    @property
    def outcomes(self) -> dict[str, int]:
        """Trials by outcome, most frequent first."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.outcome] = counts.get(row.outcome, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def build_table(
    plan: Plan,
    reports: Mapping[str, Sequence[AttemptReport]],
    *,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
) -> SweepTable:
    """Pool the attempts of every trial and set it against the baseline of its group.

    Parameters
    ----------
    plan : Plan
        What the sweep is; its ``baseline`` names the axis values that others are compared with.
    reports : mapping of str to sequence of AttemptReport
        All attempts known, by config hash; trials may be missing.
    metrics : sequence of str, optional
        Which metrics to show; by default the headline metrics of the plan's tasks, or everything
        measured where no task names any.
    limit : int, optional
        Compute metrics for so many measured trials only (intervals cost time); the rest has none.
    """
    labels = labels_of(plan)
    axes = tuple(varying_axes(plan))
    base_axes = baseline_axes(plan, axes)
    foot = ladder_foot(plan, axes, base_axes)
    if foot is not None:
        base_axes = {axis: spelling(foot.axes.get(axis)) for axis in axes}
    counted = {t.hash: believable(reports.get(t.hash, ())) for t in plan.trials}
    derived = {c.name: c for c in _columns(plan) if c.over is None or c.over in axes}
    names = _present(metrics or headline(plan), counted, derived) or _everything(counted)

    baselines: dict[tuple[tuple[str, Any], ...], str] = {}
    for trial in plan.trials:
        if is_baseline(trial, base_axes):
            baselines.setdefault(group_of(trial, axes, base_axes), trial.hash)

    named = [name for task in _tasks(plan) for name in task.named]
    rows = []
    for trial in plan.trials:
        attempts = reports.get(trial.hash, ())
        outcome, reason = _ending(trial, attempts)
        group = group_of(trial, axes, base_axes)
        rows.append(
            TrialRow(
                hash=trial.hash,
                label=labels[trial.hash],
                axes={axis: trial.axes.get(axis) for axis in axes},
                group=group,
                baseline=baselines.get(group) == trial.hash,
                outcome=outcome,
                reason=reason,
                verdict=_verdict(attempts),
                attempts=len(attempts),
                flags=_flags(attempts),
                cells={name: Cell(name, "", reason="not measured") for name in names},
                words=_words(named, counted[trial.hash]),
            )
        )
    rows = _ordered(rows)
    measured = [at for at, row in enumerate(rows) if row.outcome != "not_run"][:limit]
    resamples = _resamples(len(measured) * max(len(names), 1))
    for at in measured:
        row = rows[at]
        base = "" if row.baseline else baselines.get(row.group, "")
        against = counted.get(base, [])
        cells = {
            name: _derived(derived[name], row, rows, counted, against)
            if name in derived
            else _cell(name, counted[row.hash], against, resamples)
            for name in names
        }
        rows[at] = replace(row, cells=cells)
    return SweepTable(plan.sweep, plan.description, axes, tuple(names), tuple(rows))


def headline(plan: Plan) -> list[str]:
    """Headline metrics of the plan's tasks in order, without repeats."""
    return list(dict.fromkeys(name for task in _tasks(plan) for name in task.headline))


def _columns(plan: Plan) -> list[Column]:
    return [column for task in _tasks(plan) for column in task.columns]


def _tasks(plan: Plan) -> Iterator[Task]:
    from orchestrator.errors import ConfigError
    from orchestrator.measure.registry import find_task

    for name in dict.fromkeys(t.identity["task"]["name"] for t in plan.trials):
        # Recorded by somebody whose task is not installed here: it can still be looked at.
        with suppress(ConfigError, ImportError):
            yield find_task(name)


def _words(named: Sequence[str], counted: Sequence[AttemptReport]) -> tuple[str, ...]:
    """What the attempts that count say of the named facts, each answer once."""
    said = (str(report.facts[name]) for name in named for report in counted if name in report.facts)
    return tuple(dict.fromkeys(said))


def better_when(name: str, unit: str) -> str | None:
    """``lower``, ``higher``, or None for a metric that has no good direction."""
    if name.startswith(("predicted_", "measured_over_predicted.")):
        return None
    if unit in ("s", "bytes", "J", "J/token", "nats", "degC") or name == "perplexity":
        return "lower"
    if unit.endswith("/s") or name.endswith(_HIGHER_IS_BETTER):
        return "higher"
    if name.startswith("kl_"):
        return "lower"
    return None


def pool(attempts: Sequence[AttemptReport], name: str, *, resamples: int = 10_000) -> Cell:
    """One metric pooled over attempts: median and interval of the hierarchical bootstrap."""
    return _cell(name, list(attempts), [], resamples)


def metric_of(report: AttemptReport, name: str) -> Metric | None:
    """A metric by name, of the task or of telemetry."""
    return report.metrics.get(name) or report.telemetry.get(name)


def standing(
    name: str, unit: str, ratio: float, low: float | None, high: float | None
) -> str | None:
    """How a ratio stands to the baseline, by PROTOCOL's rule at the smallest threshold."""
    direction = better_when(name, unit)
    if direction is None:
        return None
    low, high = (ratio, ratio) if low is None or high is None else (low, high)
    if low > 1 + THRESHOLD:
        return "worse" if direction == "lower" else "better"
    if high < 1 - THRESHOLD:
        return "better" if direction == "lower" else "worse"
    return "same" if low >= 1 - THRESHOLD and high <= 1 + THRESHOLD else "unclear"


def _cell(
    name: str, attempts: Sequence[AttemptReport], base: Sequence[AttemptReport], resamples: int
) -> Cell:
    rounds = rounds_of(attempts, base)
    if rounds:
        attempts, base = [own for own, _ in rounds], [other for _, other in rounds]
    metrics = [m for report in attempts if (m := metric_of(report, name)) is not None]
    samples = [m.values for m in metrics if isinstance(m, Samples) and m.values]
    values = [m.value for m in metrics if isinstance(m, Value)]
    unit = next((m.unit for m in metrics), "")
    if not samples and not values:
        absent = next((m.reason for m in metrics if isinstance(m, Absent)), None)
        return Cell(name, unit, reason=absent or "not measured")
    arrays = samples or [(value,) for value in values]
    from orchestrator.statistics.summary import ratio_ci, summarise_attempts

    # A size that every attempt has alike needs no bootstrap to be known.
    flat = len({value for values in arrays for value in values}) == 1
    summary = summarise_attempts(arrays, resamples=1 if flat else resamples)
    if summary.median is None:
        return Cell(name, unit, n=summary.n, reason=summary.reason)
    cell = Cell(name, unit, summary.median, summary.ci_low, summary.ci_high, summary.n)
    against = [m for report in base if (m := metric_of(report, name)) is not None]
    base_arrays = [m.values for m in against if isinstance(m, Samples) and m.values] or [
        (m.value,) for m in against if isinstance(m, Value)
    ]
    if not base_arrays:
        return cell
    if unit in _EXACT_UNITS or name in _EXACT_NAMES:
        before = summarise_attempts(base_arrays, resamples=1).median
        if not before or before < 0:
            return cell
        exact = summary.median / before
        return replace(cell, ratio=exact, standing=standing(name, unit, exact, None, None))
    in_rounds = len(rounds) == len(arrays) == len(base_arrays)
    found = ratio_ci(arrays, base_arrays, in_rounds=in_rounds, resamples=resamples)
    if found.ratio is None:
        return cell
    cell = replace(cell, ratio=found.ratio)
    if 1 in (summary.n, sum(map(len, base_arrays))):
        # One timing a side says how the two came out, not whether they differ.
        return cell
    low, high = found.ci_low, found.ci_high
    return replace(
        cell,
        ratio_low=low,
        ratio_high=high,
        standing=standing(name, unit, found.ratio, low, high),
    )


def _derived(
    column: Column,
    row: TrialRow,
    rows: Sequence[TrialRow],
    counted: Mapping[str, Sequence[AttemptReport]],
    base: Sequence[AttemptReport],
) -> Cell:
    """A figure without interval: its ratio to the baseline says how the two came out, no more."""
    seen = _statistic(column, counted[row.hash])
    unit = next(
        (m.unit for a in counted[row.hash] if (m := metric_of(a, column.metric)) is not None), ""
    )
    if isinstance(seen, str):
        return Cell(column.name, unit, reason=seen)
    if column.over is None:
        before = _statistic(column, base) if base else None
        ratio = seen / before if isinstance(before, float) and before > 0 else None
        return Cell(column.name, unit, seen, ratio=ratio)
    shortest = _shortest(column.over, row, [other for other in rows if counted[other.hash]])
    if shortest is None:
        return Cell(column.name, "1", reason=f"{column.over} is no number here")
    short = _statistic(column, counted[shortest.hash])
    if isinstance(short, str) or short <= 0:
        said = short if isinstance(short, str) else "not positive"
        return Cell(column.name, "1", reason=f"the shortest output's {column.statistic}: {said}")
    return Cell(column.name, "1", seen / short)


def _shortest(axis: str, row: TrialRow, rows: Sequence[TrialRow]) -> TrialRow | None:
    """Of the trials that differ from this one in ``axis`` alone, the one with its least value."""
    rest = {name: value for name, value in row.axes.items() if name != axis}
    alike = [
        other
        for other in rows
        if {name: value for name, value in other.axes.items() if name != axis} == rest
        and isinstance(other.axes[axis], (int, float))
    ]
    return min(alike, key=lambda other: other.axes[axis], default=None)


def _statistic(column: Column, attempts: Sequence[AttemptReport]) -> float | str:
    """Of all attempts' samples together, or why there is none."""
    from orchestrator.statistics.summary import summarise_attempts

    metrics = [m for a in attempts if (m := metric_of(a, column.metric)) is not None]
    samples = [m.values for m in metrics if isinstance(m, Samples) and m.values]
    if not samples:
        reason = next((m.reason for m in metrics if isinstance(m, Absent)), None)
        return reason or "not measured"
    summary = summarise_attempts(samples, resamples=1)
    value: float | None = getattr(summary, column.statistic)
    if value is not None:
        return value
    return f"{column.statistic} cannot be told from {summary.n} samples"


def _resamples(cells: int) -> int:
    # Thousands of rows get coarser intervals on screen; `show` and `compare` always use 10,000.
    return int(min(10_000, max(500, _RESAMPLING_BUDGET // (cells * 20 or 1))))


def believable(attempts: Sequence[AttemptReport]) -> list[AttemptReport]:
    """The attempts whose numbers count: the ok ones, else those that telemetry disbelieves."""
    good = [a for a in attempts if a.outcome is Outcome.OK and a.verdict.state != "invalid"]
    return good or [a for a in attempts if a.outcome is Outcome.INVALID]


def _ending(trial: Trial, attempts: Sequence[AttemptReport]) -> tuple[str, str | None]:
    if any(a.outcome is Outcome.OK for a in attempts):
        return "ok", None
    if attempts:
        last = max(attempts, key=lambda a: (a.started_at, a.number))
        return last.outcome.value, why(last)
    if trial.infeasible is not None:
        return "infeasible", trial.infeasible
    return "not_run", None


def _verdict(attempts: Sequence[AttemptReport]) -> str:
    """The most doubtful verdict among the attempts that count."""
    order = ("valid", "flagged", "unverified", "invalid")
    states = [a.verdict.state for a in believable(attempts)]
    return max(states, key=order.index, default="unverified")


def _flags(attempts: Sequence[AttemptReport]) -> tuple[str, ...]:
    """Rules that were broken and only flag, over the attempts that count, each once."""
    broken = (r for a in believable(attempts) for r in a.verdict.rules if r.state == "flagged")
    return tuple(dict.fromkeys(rule.rule for rule in broken))


def _present(
    names: Sequence[str],
    believed: Mapping[str, Sequence[AttemptReport]],
    derived: Mapping[str, Column],
) -> list[str]:
    """Those of ``names`` that at least one attempt measured or said it could not."""
    seen: set[str] = set()
    for attempts in believed.values():
        for report in attempts:
            seen.update(report.metrics, report.telemetry)
    return [n for n in names if n in seen or (n in derived and derived[n].metric in seen)]


def _everything(believed: Mapping[str, Sequence[AttemptReport]]) -> list[str]:
    names: dict[str, None] = {}
    for attempts in believed.values():
        for report in attempts:
            names.update(dict.fromkeys(report.metrics))
    return list(names)


def _ordered(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Groups in order of first appearance, each led by its baseline."""
    groups: dict[tuple[tuple[str, Any], ...], list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [
        row for members in groups.values() for row in sorted(members, key=lambda r: not r.baseline)
    ]
