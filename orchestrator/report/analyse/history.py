"""A metric of one trial over time: a point a run, the levels they lie on, the steps between. Pure.

::

    attempts --a run each--> points --find_changes--> levels --judge_levels--> steps

A point is a trial's centre in one run of a sweep, as everywhere: the mean of its attempts' medians.
Its interval is that of :mod:`orchestrator.statistics.bootstrap` in its normal limit: the wider of
that of the attempts' spread, by Student's t, and that of the noise within them. That
way ten thousand attempts need not have their samples read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from statistics import fmean, variance
from typing import Any, Literal

from orchestrator.measure.grouping import grouped
from orchestrator.measure.metric import MetricSpec
from orchestrator.report.analyse.differences import Difference
from orchestrator.report.analyse.labels import short_hash
from orchestrator.statistics.changes import Changes, find_changes
from orchestrator.statistics.judge import Judged, judge_levels
from orchestrator.statistics.tail import student_quantile

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Taken:
    """What one attempt has of the metric.

    Attributes
    ----------
    run, run_id : str
        The sweep's run that it was made in, and its own; MLflow's ids.
    config_hash : str
    started_at : float
        In Unix seconds.
    median : float
    ci_low, ci_high : float or None
        None of a value that is measured once.
    confidence : float
        Of that interval.
    """

    run: str
    run_id: str
    config_hash: str
    started_at: float
    median: float
    ci_low: float | None = None
    ci_high: float | None = None
    confidence: float = _CONFIDENCE

    @property
    def error(self) -> float | None:
        """Standard error of the median, from its interval."""
        if self.ci_low is None or self.ci_high is None:
            return None
        wide = 2.0 * student_quantile((1.0 + self.confidence) / 2.0, math.inf)
        return (self.ci_high - self.ci_low) / wide


@dataclass(frozen=True)
class Point:
    """The trial in one run.

    Attributes
    ----------
    run : str
        MLflow's id of the sweep's run.
    started_at : float
        Of its first attempt, in Unix seconds.
    median, ci_low, ci_high : float, float or None
        With its 95 % interval; None where it cannot be known.
    error : float or None
        Standard error, relative.
    attempts : tuple of Taken
        What it is the centre of, oldest first.
    is_alone : bool
        Far from the runs on both sides of it: it counts for no level.
    """

    run: str
    started_at: float
    median: float
    ci_low: float | None
    ci_high: float | None
    error: float | None
    attempts: tuple[Taken, ...]
    is_alone: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "run": self.run,
            "started": _iso(self.started_at),
            "median": self.median,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "attempts": len(self.attempts),
            "hash": self.attempts[-1].config_hash,
            "alone": self.is_alone,
        }


@dataclass(frozen=True)
class Step:
    """Where one level ends and the next begins.

    Attributes
    ----------
    place : int
        Which of the points is the first of the new level.
    before, after : float
        The levels, in the metric's unit.
    judged : Judged
        Their ratio, and what it means.
    good, bad : Taken
        The last attempt before, and the first after: what ``bisect`` begins with.
    is_new : bool
        Without the last run it would not be known, or not for what it is.
    differences : tuple of Difference
        What these two attempts were not made with alike.
    """

    place: int
    before: float
    after: float
    judged: Judged
    good: Taken
    bad: Taken
    is_new: bool = False
    differences: tuple[Difference, ...] = ()

    def command(self, metric: str) -> str | None:
        """What would find out which of the differences it is; None where none can be taken back."""
        if not any(difference.can_be_bisected for difference in self.differences):
            return None
        return (
            f"python -m orchestrator bisect {short_hash(self.bad.config_hash)} --metric {metric}"
            f" --good {self.good.run_id} --bad {self.bad.run_id}"
        )

    def to_json(self, points: Sequence[Point], metric: str) -> dict[str, Any]:
        """Plain JSON form."""
        judged = self.judged
        return {
            "run": points[self.place].run,
            "started": _iso(points[self.place].started_at),
            "before": self.before,
            "after": self.after,
            "ratio": judged.ratio,
            "ci_low": judged.ci_low,
            "ci_high": judged.ci_high,
            "verdict": judged.finding,
            "new": self.is_new,
            "good": self.good.run_id,
            "bad": self.bad.run_id,
            "differences": [vars(difference) for difference in self.differences],
            "bisect": self.command(metric),
        }


@dataclass(frozen=True)
class Series:
    """One metric of one trial over time.

    Attributes
    ----------
    label, hash : str
        Of its trial; the hash of its newest attempt.
    spec : MetricSpec
    machine : str
        What it was measured on, in a word.
    points : tuple of Point
        Oldest first.
    levels : tuple of (int, float)
        Where each begins, and how high it is; empty where a median is not positive.
    steps : tuple of Step
        Oldest first.
    """

    label: str
    hash: str
    spec: MetricSpec
    machine: str
    points: tuple[Point, ...]
    levels: tuple[tuple[int, float], ...] = ()
    steps: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "hash": self.hash,
            "label": self.label,
            "metric": self.spec.name,
            "unit": self.spec.unit,
            "better": self.spec.better,
            "machine": self.machine,
            "points": [point.to_json() for point in self.points],
            "levels": [
                {
                    "run": self.points[at].run,
                    "started": _iso(self.points[at].started_at),
                    "median": level,
                }
                for at, level in self.levels
            ],
            "steps": [step.to_json(self.points, self.spec.name) for step in self.steps],
        }


@dataclass(frozen=True)
class History:
    """Every trial that a word means, over time.

    Attributes
    ----------
    word : str
        What was asked for.
    series : tuple of Series
    left_out : mapping of str to int
        Attempts that do not count, by why.
    """

    word: str
    series: tuple[Series, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> list[tuple[Series, Step]]:
        """Every step, newest first; of one run the worse first."""
        found = [(series, step) for series in self.series for step in series.steps]
        # Times alone would order the trials of one run by when their turn was.
        last = self._last_of_runs
        return sorted(
            found,
            key=lambda each: (
                -last[each[0].points[each[1].place].run],
                each[1].judged.finding != "regression",
            ),
        )

    @property
    def last_run(self) -> str:
        """The run that measured any of them last."""
        last = self._last_of_runs
        return max(last, key=last.__getitem__)

    @property
    def named_by(self) -> Literal["day", "minute"]:
        """What tells runs apart: the day, where no trial was measured twice in one."""
        days = ([point.started_at // 86_400 for point in series.points] for series in self.series)
        return "day" if all(len(set(found)) == len(found) for found in days) else "minute"

    @property
    def has_several_machines(self) -> bool:
        """Whether a trial's label alone does not say which series it is."""
        return len({series.machine for series in self.series}) > 1

    @property
    def _last_of_runs(self) -> dict[str, float]:
        last: dict[str, float] = {}
        for series in self.series:
            for point in series.points:
                last[point.run] = max(last.get(point.run, 0.0), point.started_at)
        return last

    @property
    def new_regressions(self) -> list[tuple[Series, Step]]:
        """Steps for the worse that the last run is the first to show.

        The last level of the trial begins with it, the last run lies on that level, and without the
        last run it would be no step, there or nearby, or not yet one that is surely for the worse.
        So a regression is new with the run that makes it known, be it the first after the step or a
        later one; and then no more, unless a run in between puts it in doubt.
        """
        last = self.last_run
        return [
            (series, step)
            for series in self.series
            for step in series.steps[-1:]
            if step.is_new and step.judged.finding == "regression" and series.points[-1].run == last
        ]

    @property
    def not_judged(self) -> list[Series]:
        """Those that have no levels: one median that is not positive is enough."""
        return [series for series in self.series if not series.levels]

    @property
    def exit_code(self) -> int:
        """1 where there is a new regression in the last run, else 0."""
        return int(bool(self.new_regressions))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "history": self.word,
            "last_run": self.last_run,
            "new_regressions": len(self.new_regressions),
            "left_out": dict(self.left_out),
            "series": [series.to_json() for series in self.series],
        }


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def points_of(taken: Sequence[Taken]) -> tuple[Point, ...]:
    """A point a run, oldest first."""
    return tuple(
        sorted(
            map(_point, grouped(taken, lambda attempt: attempt.run).values()),
            key=lambda point: point.started_at,
        )
    )


def _point(attempts: Sequence[Taken]) -> Point:
    centre = fmean(attempt.median for attempt in attempts)
    errors = [error for attempt in attempts if (error := attempt.error) is not None]
    within = fmean(error**2 for error in errors) if errors else None
    share, count, spread, reach = (1.0 + _CONFIDENCE) / 2.0, len(attempts), within, 0.0
    if within is not None:
        reach = student_quantile(share, math.inf) * math.sqrt(within)
    if count > 1:
        between = variance(attempt.median for attempt in attempts)
        spread = max(between, within or 0.0)
        reach = max(reach, student_quantile(share, count - 1.0) * math.sqrt(between))
    low = high = error = None
    if spread is not None:
        low, high = centre - reach / math.sqrt(count), centre + reach / math.sqrt(count)
        error = math.sqrt(spread / count) / abs(centre) if centre else None
    if len(attempts) == 1:
        low, high = attempts[0].ci_low, attempts[0].ci_high
    started_at = min(attempt.started_at for attempt in attempts)
    return Point(attempts[0].run, started_at, centre, low, high, error, tuple(attempts))


def series_of(
    label: str, spec: MetricSpec, machine: str, taken: Sequence[Taken], noise: float | None = None
) -> Series:
    """The points of one trial, their levels and steps.

    Parameters
    ----------
    taken : sequence of Taken
        At least one.
    noise : float, optional
        Relative A/A noise recorded for this machine: what a change must exceed to be one.
    """
    points = points_of(taken)
    series = Series(label, points[-1].attempts[-1].config_hash, spec, machine, points)
    if any(point.median <= 0.0 for point in points):
        return series
    found = _fitted(series, noise)
    if not found.steps:
        return found
    *earlier, last = found.steps
    before = _fitted(replace(series, points=points[:-1]), noise)
    return replace(found, steps=(*earlier, replace(last, is_new=not _is_known(found, before))))


def _fitted(series: Series, noise: float | None) -> Series:
    """``series`` with its levels and steps."""
    found = find_changes([p.median for p in series.points], [p.error for p in series.points])
    points = tuple(replace(p, is_alone=at in found.alone) for at, p in enumerate(series.points))
    steps = tuple(
        _step(points, found, number, series.spec, noise) for number in range(1, len(found.starts))
    )
    levels = tuple(zip(found.starts, found.levels, strict=True))
    return replace(series, points=points, levels=levels, steps=steps)


def _is_known(found: Series, before: Series) -> bool:
    """Whether the last step is there without the last run too, and meant the same.

    With another run a step may move by a few: it is the one that lies nearer to it than to another.
    """
    last = found.steps[-1]
    return any(
        min(found.steps, key=lambda each: abs(each.place - step.place)) is last
        and step.judged.finding == last.judged.finding
        for step in before.steps
    )


def _step(
    points: Sequence[Point], found: Changes, number: int, spec: MetricSpec, noise: float | None
) -> Step:
    """The step that the level ``number`` begins with."""
    at = found.starts[number]
    before, after = found.levels[number - 1 : number + 1]
    judged = judge_levels(
        after,
        before,
        error=math.hypot(*found.errors[number - 1 : number + 1]),
        freedom=found.freedom,
        better=spec.better,
        noise=noise,
    )
    last_before = next(p for p in reversed(points[:at]) if not p.is_alone)
    return Step(at, before, after, judged, last_before.attempts[-1], points[at].attempts[0])
