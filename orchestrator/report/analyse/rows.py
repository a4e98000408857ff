"""What a sweep's attempts add up to: one row per trial, pooled metrics, ratios to the baseline.

Pure values, no terminal: the table, the exports and the HTML report are renderings of a
:class:`SweepTable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.measure.grouping import grouped
from orchestrator.measure.metric import MetricSpec
from orchestrator.measure.wording import counted as number_of
from orchestrator.plan.comparison import Comparison
from orchestrator.report.analyse.cell import Cell, TrialRow, column_cell, pool
from orchestrator.report.analyse.compare import against
from orchestrator.report.analyse.labels import labels_of
from orchestrator.report.analyse.measured import believable, of_one_class, precision_of, spec_of
from orchestrator.report.analyse.pairing import Chosen, choose, software_between
from orchestrator.report.analyse.reasons import why
from orchestrator.report.analyse.slo import ATTAINMENT, GOODPUT, slo_cells
from orchestrator.statistics.judge import Judged, tolerance

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.measure import Task
    from orchestrator.measure.columns import Column
    from orchestrator.plan.plan import Plan


# Bootstrap work for one table, in resampled values: 3,000 trials must not take minutes to print.
_RESAMPLING_BUDGET = 60_000_000


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
    specs : dict of str to MetricSpec
        What each metric is.
    noise : float or None
        Relative A/A noise of this hardware.
    attempts : dict of str to sequence of AttemptReport
        All attempts that are shown, by config hash: of each trial those of one class of conditions.
    left_out : int
        Attempts that were made under other conditions.
    """

    sweep: str
    description: str
    axes: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[TrialRow, ...]
    specs: dict[str, MetricSpec] = field(default_factory=dict)
    noise: float | None = None
    attempts: Mapping[str, Sequence[AttemptReport]] = field(default_factory=dict, repr=False)
    left_out: int = 0

    @property
    def tau(self) -> float:
        """Relative change that counts as one."""
        return tolerance(self.noise)

    @property
    def measured(self) -> list[TrialRow]:
        """Rows of which something was measured, be it to be believed or not."""
        return [row for row in self.rows if row.outcome in ("ok", "invalid")]

    @property
    def ok(self) -> list[TrialRow]:
        """Rows with a result."""
        return [row for row in self.rows if row.outcome == "ok"]

    def title(self, metric: str) -> str:
        """What people call a metric of this table: ``TTFT``."""
        known = self.specs.get(metric)
        reports = (report for found in self.attempts.values() for report in found)
        return (known or spec_of(reports, metric)).title

    def judged(self, metric: str, row: TrialRow, base: TrialRow) -> Judged:
        """What the ratio of ``row`` to ``base`` means."""
        chosen, hashes = self.chosen(row, base), (base.hash, row.hash)
        names = _names(row, base)
        return against(chosen, self.specs[metric], hashes, noise=self.noise, names=names).judged

    def chosen(self, row: TrialRow, base: TrialRow) -> Chosen:
        """The attempts of ``row`` that may be set against those of ``base``."""
        a, b = (self.attempts.get(side.hash, ()) for side in (base, row))
        names = _names(row, base)
        if base.failed:
            return Chosen(reason=f"{names[0]} is {base.outcome}: {base.reason}")
        # What the axes ask for may differ: an environment is other software.
        return choose(a, b, across_software=_in_another_environment(row, base), names=names)

    @property
    def missing_ratios(self) -> dict[str, list[TrialRow]]:
        """Rows with a result that no metric could be set against the baseline for, by reason."""
        found: dict[str, list[TrialRow]] = {}
        for row in self.ok:
            judged = [c.judged for c in row.cells.values() if c.median is not None and c.judged]
            if judged and all(j.ratio is None for j in judged):
                found.setdefault(judged[0].reason or "", []).append(row)
        return found

    @property
    def software(self) -> dict[str, tuple[str, ...]]:
        """By their labels, what software rows do not share with their baselines."""
        alike = grouped((row for row in self.rows if row.software), lambda row: row.software)
        return {", ".join(row.label for row in rows): software for software, rows in alike.items()}

    @property
    def elsewhere(self) -> str | None:
        """What is not in the table though it is recorded, in a line."""
        if not self.left_out:
            return None
        many = number_of(self.left_out, "attempt")
        what = f"{many} under other conditions, or unknown ones, left out"
        return f"{what} (python -m orchestrator show HASH)"

    @property
    def failures(self) -> tuple[TrialRow, ...]:
        """Rows that have an ending to explain."""
        return tuple(row for row in self.rows if row.failed)

    @property
    def outcomes(self) -> dict[str, int]:
        """Trials by outcome, most frequent first."""
        return dict(Counter(row.outcome for row in self.rows).most_common())


def build_table(
    plan: Plan,
    reports: Mapping[str, Sequence[AttemptReport]],
    *,
    metrics: Sequence[str] | None = None,
    limit: int | None = None,
    noise: float | None = None,
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
    noise : float, optional
        Relative A/A noise recorded for this hardware.
    """
    labels = labels_of(plan)
    comparison = Comparison.of(plan)
    axes = comparison.axes
    known = sum(len(reports.get(t.hash, ())) for t in plan.trials)
    reports = {t.hash: of_one_class(reports.get(t.hash, ())) for t in plan.trials}
    counted = {t.hash: believable(reports[t.hash]) for t in plan.trials}
    tasks = list(tasks_of(plan))
    columns = {
        c.name: c for task in tasks for c in task.columns if c.over is None or c.over in axes
    }
    measured = [report for found in counted.values() for report in found]
    names = _present(metrics or headline(plan), measured, columns)
    names = names or list(dict.fromkeys(name for report in measured for name in report.metrics))

    baselines: dict[tuple[tuple[str, Any], ...], str] = {}
    for trial in plan.trials:
        if comparison.is_baseline(trial):
            baselines.setdefault(comparison.group_of(trial), trial.hash)

    limits = plan.settings.slo.limits
    judged_by_slo = bool(limits) and any(t.identity.get("load") for t in plan.trials)
    if judged_by_slo:
        names = [*names[:1], ATTAINMENT.name, GOODPUT.name, *names[1:]]
    named = [name for task in tasks for name in task.named]
    specs = {
        name: columns[name].spec(spec_of(measured, columns[name].metric))
        if name in columns
        else spec_of(measured, name)
        for name in names
    } | {spec.name: spec for spec in (ATTAINMENT, GOODPUT) if judged_by_slo}
    rows = []
    for trial in plan.trials:
        attempts = reports[trial.hash]
        outcome, reason = _ending(trial, attempts)
        group = comparison.group_of(trial)
        precision = precision_of(counted[trial.hash])
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
                attempts=len(counted[trial.hash]),
                flags=_flags(attempts),
                cells={name: Cell(specs[name], reason="not measured") for name in names},
                precision=precision,
                words=(*_words(named, counted[trial.hash]), *([precision] if precision else [])),
            )
        )
    rows = _ordered(rows)
    table = SweepTable(
        plan.sweep,
        plan.description,
        axes,
        tuple(names),
        tuple(rows),
        specs,
        noise,
        reports,
        known - sum(map(len, reports.values())),
    )
    by_hash = {row.hash: row for row in rows}
    identities = {trial.hash: trial.identity for trial in plan.trials}
    shown = [at for at, row in enumerate(rows) if row.outcome != "not_run"][:limit]
    resamples = _resamples(len(shown) * max(len(names), 1))
    for at in shown:
        row = rows[at]
        base = None if row.baseline else by_hash.get(baselines.get(row.group, ""))
        cells = {}
        if judged_by_slo:
            cells = slo_cells(counted[row.hash], limits, plan.settings.slo.attainment)
        for name in names:
            if name in cells:
                continue
            if name in columns:
                cells[name] = column_cell(
                    columns[name], row, rows, counted, specs[name], base, table.chosen
                )
                continue
            cell = pool(counted[row.hash], specs[name], resamples=resamples)
            if base is not None and cell.median is not None:
                cell = replace(cell, judged=table.judged(name, row, base))
            cells[name] = cell
        software: tuple[str, ...] = ()
        if base is not None and _in_another_environment(row, base):
            sides = counted[base.hash], counted[row.hash]
            software = software_between(*sides, (identities[base.hash], identities[row.hash]))
        rows[at] = replace(row, cells=cells, software=software)
    return replace(table, rows=tuple(rows))


def _names(row: TrialRow, base: TrialRow) -> tuple[str, str]:
    return f"the baseline {base.label}" if base.baseline else base.label, row.label


def _in_another_environment(row: TrialRow, base: TrialRow) -> bool:
    return any(
        axis.partition(".")[0] == "environment" and value != base.axes.get(axis)
        for axis, value in row.axes.items()
    )


def headline(plan: Plan) -> list[str]:
    """Headline metrics of the plan's tasks in order, without repeats."""
    return list(dict.fromkeys(name for task in tasks_of(plan) for name in task.headline))


def tasks_of(plan: Plan) -> Iterator[Task]:
    """The plan's tasks, each once; of those that are installed here."""
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


def _resamples(cells: int) -> int:
    # Thousands of rows get coarser intervals on screen; `show` and `compare` always use 10,000.
    return int(min(10_000, max(500, _RESAMPLING_BUDGET // (cells * 20 or 1))))


def _ending(trial: Trial, attempts: Sequence[AttemptReport]) -> tuple[str, str | None]:
    if any(a.outcome is Outcome.OK for a in attempts):
        return "ok", None
    if attempts:
        last = max(attempts, key=lambda a: (a.number, a.started_at))
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
    names: Sequence[str], reports: Sequence[AttemptReport], derived: Mapping[str, Column]
) -> list[str]:
    """Those of ``names`` that at least one attempt measured or said it could not."""
    seen = dict.fromkeys(n for report in reports for n in (*report.metrics, *report.telemetry))
    every = [each for name in names for each in _named(name, seen)]
    return [
        n for n in dict.fromkeys(every) if n in seen or (n in derived and derived[n].metric in seen)
    ]


def _named(name: str, seen: Iterable[str]) -> list[str]:
    """The metrics that a headline's name stands for: of ``a.*`` all that begin so."""
    if not name.endswith("*"):
        return [name]
    return [each for each in seen if each.startswith(name[:-1])]


def _ordered(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Groups in order of first appearance, each led by its baseline."""
    groups = grouped(rows, lambda row: row.group).values()
    return [row for members in groups for row in sorted(members, key=lambda r: not r.baseline)]
