"""Cells of the columns that a task derives from samples (:mod:`orchestrator.measure.columns`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.attempt import AttemptReport
from orchestrator.measure.columns import Column
from orchestrator.measure.metric import MetricSpec, Samples
from orchestrator.report.analyse.cell import Cell
from orchestrator.report.analyse.measured import absence, metric_of, valid
from orchestrator.report.analyse.trial_row import TrialRow
from orchestrator.statistics.judge import Judged, tolerance


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
    samples = [metric.series for metric in found if isinstance(metric, Samples) and metric.values]
    if not samples:
        return absence(attempts, column.metric)
    summary = summarise_attempts(samples, resamples=1)
    value: float | None = getattr(summary, column.statistic)
    if value is not None:
        return value
    return f"{column.statistic} cannot be told from {summary.n} samples"
