"""A sweep's table, trial by trial: what each is, how it ended, and its metrics as cells.

A cell is one metric of one trial, pooled over its attempts, and how it stands to the baseline; or a
column that a task derives from samples (:mod:`orchestrator.measure.columns`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.columns import Column
from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.labels import label_of
from orchestrator.report.analyse.measured import absence, samples_of, spec_of, statistic_of
from orchestrator.report.analyse.pairing import Chosen
from orchestrator.statistics.judge import Finding, Judged, incomparable, tolerance


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
        return self.judged.ratio if self.judged else None

    @property
    def ratio_low(self) -> float | None:
        """Lower end of the ratio's interval."""
        return self.judged.ci_low if self.judged else None

    @property
    def ratio_high(self) -> float | None:
        """Upper end of the ratio's interval."""
        return self.judged.ci_high if self.judged else None

    @property
    def standing(self) -> Finding | None:
        """What the ratio means."""
        return self.judged.finding if self.judged else None


def pool(attempts: Sequence[AttemptReport], spec: MetricSpec, *, resamples: int = 10_000) -> Cell:
    """One metric pooled over attempts: median and interval of the hierarchical bootstrap."""
    from orchestrator.statistics.summary import summarise_attempts

    samples = samples_of(attempts, spec.name)
    if not samples:
        return Cell(spec, reason=absence(attempts, spec.name))
    if (unit := spec_of(attempts, spec.name).unit) != spec.unit:
        return Cell(spec, reason=f"in {unit}, where newer trials are in {spec.unit}")
    # A size that every attempt has alike needs no bootstrap to be known.
    flat = len({value for values in samples for value in values}) == 1
    found = summarise_attempts(samples, resamples=1 if flat else resamples)
    reason = found.reason if found.median is None else None
    return Cell(spec, found.median, found.ci_low, found.ci_high, found.n, reason)


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
    precision : str or None
        ``few samples`` or ``wide interval`` where sampling did not reach what the protocol asks.
    words : tuple of str
        What its task names of it that is no number, and its precision.
    software : tuple of str
        Packages and other software that it does not share with its baseline, where an axis asks
        for another environment: ``transformers 5.20.2 → 5.23.0``.
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
    precision: str | None = None
    words: tuple[str, ...] = ()
    software: tuple[str, ...] = ()

    @property
    def own_label(self) -> str:
        """The label without what the trial's whole group shares."""
        grouping = {axis for axis, _ in self.group}
        own = [axis for axis in self.axes if axis not in grouping]
        return label_of(self.axes, {}, own) if own and grouping else self.label

    def has(self, metric: str) -> bool:
        """Whether there is a value of the metric."""
        return metric in self.cells and self.cells[metric].median is not None

    @property
    def failed(self) -> bool:
        """Whether there is an ending to explain (a trial that never ran has none)."""
        return self.outcome not in ("ok", "not_run")


def column_cell(
    column: Column,
    row: TrialRow,
    rows: Sequence[TrialRow],
    counted: Mapping[str, Sequence[AttemptReport]],
    spec: MetricSpec,
    base: TrialRow | None,
    chosen: Callable[[TrialRow, TrialRow], Chosen],
) -> Cell:
    """A figure derived from samples. It has no interval, so its ratio decides nothing.

    ``chosen`` gives the attempts of a row that may be set against those of another.
    """
    seen = _statistic(column, counted[row.hash])
    if isinstance(seen, str):
        return Cell(spec, reason=seen)
    if column.over is None:
        judged = None if base is None else _judged(column, chosen(row, base), "the baseline")
        return Cell(spec, seen, judged=judged)
    shortest = _shortest(column.over, row, [other for other in rows if counted[other.hash]])
    if shortest is None:
        return Cell(spec, reason=f"{column.over} is no number here")
    judged = _judged(column, chosen(row, shortest), "the shortest output")
    return Cell(spec, judged.ratio, reason=judged.reason if judged.ratio is None else None)


def _judged(column: Column, chosen: Chosen, before_name: str) -> Judged:
    if chosen.reason is not None:
        return incomparable(chosen.reason)
    before, seen = (_statistic(column, attempts) for attempts in (chosen.a, chosen.b))
    if isinstance(seen, str):
        return incomparable(seen)
    if isinstance(before, str) or before <= 0:
        said = before if isinstance(before, str) else "not positive"
        return incomparable(f"{before_name}'s {column.statistic}: {said}")
    reason = f"a {column.statistic} has no interval"
    return Judged("inconclusive", tolerance(None), seen / before, reason=reason)


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
    samples = samples_of(attempts, column.metric)
    if not samples:
        return absence(attempts, column.metric)
    return statistic_of(samples, column.statistic)
