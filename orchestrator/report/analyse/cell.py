"""One metric of one trial: pooled over its attempts, and how it stands to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import MetricSpec, Samples
from orchestrator.report.analyse.measured import absence, metric_of, samples_of, valid
from orchestrator.statistics.judge import Finding, Judged, tolerance

if TYPE_CHECKING:
    from orchestrator.measure.columns import Column
    from orchestrator.report.analyse.rows import TrialRow


@dataclass(frozen=True)
class Cell:
    """One metric of one trial, pooled over its attempts.

    Attributes
    ----------
    spec : MetricSpec
        The metric.
    median, ci_low, ci_high : float or None
        In the metric's SI unit; no interval where there is one value only. All None if absent.
    n : int
        Samples (over all attempts) behind the median.
    reason : str or None
        Why there is no value.
    judged : Judged or None
        The ratio to the baseline and what it means; None without a baseline.
    """

    spec: MetricSpec
    median: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    reason: str | None = None
    judged: Judged | None = None

    @property
    def name(self) -> str:
        """Of the metric."""
        return self.spec.name

    @property
    def unit(self) -> str:
        """Of the metric."""
        return self.spec.unit

    @property
    def ratio(self) -> float | None:
        """Of the medians, to the baseline."""
        return self.judged and self.judged.ratio

    @property
    def ratio_low(self) -> float | None:
        """Lower end of the ratio's interval."""
        return self.judged and self.judged.ci_low

    @property
    def ratio_high(self) -> float | None:
        """Upper end of the ratio's interval."""
        return self.judged and self.judged.ci_high

    @property
    def standing(self) -> Finding | None:
        """What the ratio means."""
        return self.judged and self.judged.finding


def pool(attempts: Sequence[AttemptReport], spec: MetricSpec, *, resamples: int = 10_000) -> Cell:
    """One metric pooled over attempts: median and interval of the hierarchical bootstrap."""
    from orchestrator.statistics.summary import summarise_attempts

    samples = samples_of(attempts, spec.name)
    if not samples:
        return Cell(spec, reason=absence(attempts, spec.name))
    # A size that every attempt has alike needs no bootstrap to be known.
    flat = len({value for values in samples for value in values}) == 1
    found = summarise_attempts(samples, resamples=1 if flat else resamples)
    reason = found.reason if found.median is None else None
    return Cell(spec, found.median, found.ci_low, found.ci_high, found.n, reason)


def column_cell(
    column: Column,
    row: TrialRow,
    rows: Sequence[TrialRow],
    counted: Mapping[str, Sequence[AttemptReport]],
    spec: MetricSpec,
    base: TrialRow | None,
) -> Cell:
    """A figure derived from samples. It has no interval, so its ratio decides nothing."""
    seen = _statistic(column, counted[row.hash])
    if isinstance(seen, str):
        return Cell(spec, reason=seen)
    if column.over is None:
        before = None if base is None else _statistic(column, valid(counted[base.hash]))
        if not isinstance(before, float) or before <= 0:
            return Cell(spec, seen)
        reason = f"a {column.statistic} has no interval"
        judged = Judged("inconclusive", tolerance(None), seen / before, reason=reason)
        return Cell(spec, seen, judged=judged)
    shortest = _shortest(column.over, row, [other for other in rows if counted[other.hash]])
    if shortest is None:
        return Cell(spec, reason=f"{column.over} is no number here")
    short = _statistic(column, counted[shortest.hash])
    if isinstance(short, str) or short <= 0:
        said = short if isinstance(short, str) else "not positive"
        return Cell(spec, reason=f"the shortest output's {column.statistic}: {said}")
    return Cell(spec, seen / short)


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

    found = [metric_of(report, column.metric) for report in attempts]
    samples = [metric.values for metric in found if isinstance(metric, Samples) and metric.values]
    if not samples:
        return absence(attempts, column.metric)
    summary = summarise_attempts(samples, resamples=1)
    value: float | None = getattr(summary, column.statistic)
    if value is not None:
        return value
    return f"{column.statistic} cannot be told from {summary.n} samples"
