"""What attempts hold of a metric: its samples, what it is, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.conditions import UNKNOWN
from orchestrator.measure.metric import Absent, Metric, MetricSpec, Samples, Value
from orchestrator.measure.vocabulary import spec_for

_FEW = 5
_REACHED = "ci"  # of the stop reasons, the one that says that the interval was reached
FEW, WIDE = "few samples", "wide interval"

#: What is said of a trial's precision -> what that means.
PRECISION = {
    FEW: f"under {_FEW} repetitions",
    WIDE: "sampling was cut off before the interval was as narrow as the protocol asks",
}


def believable(attempts: Sequence[AttemptReport]) -> list[AttemptReport]:
    """The attempts whose numbers count, and may be pooled.

    The ok ones of the class of :func:`of_one_class`, else those that telemetry disbelieves.
    """
    alike = of_one_class(attempts)
    return valid(alike) or [a for a in alike if a.outcome is Outcome.INVALID]


def of_one_class(attempts: Sequence[AttemptReport]) -> list[AttemptReport]:
    """Attempts without those that were made under other conditions than the last one.

    One that never got so far as to have conditions belongs to every class.
    """
    last = next((class_of(a) for a in reversed(attempts) if a.conditions is not None), "")
    return [a for a in attempts if class_of(a) == last or (a.slot is None and not _ended_well(a))]


def class_of(report: AttemptReport) -> str:
    """Attempts of one class may be pooled; what is partly unknown is a class of its own."""
    if report.conditions is None:
        return ""
    known = UNKNOWN not in report.conditions.ids.values()
    return report.conditions.id if known else f"{report.conditions.id}/{report.attempt_id}"


def _ended_well(report: AttemptReport) -> bool:
    return report.outcome in (Outcome.OK, Outcome.INVALID)


def valid(attempts: Iterable[AttemptReport]) -> list[AttemptReport]:
    """The ok attempts that telemetry does not disbelieve."""
    return [a for a in attempts if a.outcome is Outcome.OK and a.verdict.state != "invalid"]


def cannot_run(attempts: Iterable[AttemptReport]) -> Outcome | None:
    """The outcome of one that shows that the trial cannot run at all: no memory, infeasible."""
    never = (Outcome.OOM_DEVICE, Outcome.OOM_HOST, Outcome.INFEASIBLE)
    return next((a.outcome for a in attempts if a.outcome in never), None)


def metric_of(report: AttemptReport, name: str) -> Metric | None:
    """A metric by name, of the task or of telemetry."""
    return report.metrics.get(name) or report.telemetry.get(name)


def samples_of(attempts: Iterable[AttemptReport], name: str) -> list[tuple[float, ...]]:
    """Samples of a metric, a series an attempt that has any; a single value is one sample.

    None where attempts have it in several units: :func:`absence` says so.
    """
    attempts = list(attempts)
    having = [] if in_several_units(attempts, name) else _having(attempts, name)
    return [m.series if isinstance(m, Samples) else (m.value,) for m in having]


def _having(attempts: Iterable[AttemptReport], name: str) -> list[Samples | Value]:
    """The metric of each attempt that has a number of it."""
    found = (metric_of(report, name) for report in attempts)
    return [m for m in found if isinstance(m, Value) or (isinstance(m, Samples) and m.values)]


def in_several_units(attempts: Iterable[AttemptReport], name: str) -> str | None:
    """That attempts of one trial have a metric in several units, and what helps; None where not."""
    units = dict.fromkeys(metric.unit for metric in _having(attempts, name))
    if len(units) < 2:
        return None
    return f"in {' and in '.join(units)}: delete the older attempts in MLflow to have a number"


def statistic_of(samples: Sequence[Sequence[float]], name: str) -> float | str:
    """``median``, ``p95`` … of all attempts' samples together, or why there is none."""
    from orchestrator.statistics.summary import summarise_attempts

    summary = summarise_attempts(samples, resamples=1)
    value: float | None = getattr(summary, name)
    if value is not None:
        return value
    return summary.reason or f"{name} cannot be told from {summary.n} samples"


def absence(attempts: Iterable[AttemptReport], name: str) -> str:
    """Why a metric has no samples, as its task said it."""
    attempts = list(attempts)
    if several := in_several_units(attempts, name):
        return several
    found = (metric_of(report, name) for report in attempts)
    return next((m.reason for m in found if isinstance(m, Absent)), "not measured")


def not_sustained(attempts: Sequence[AttemptReport], metric: str) -> str | None:
    """In how many attempts a load could not be kept up with, so that they have no such latency.

    The others, which could, do not speak for them. None where there is none.
    """
    lost = [
        m.reason
        for report in attempts
        if isinstance(m := metric_of(report, metric), Absent) and "queue_growth" in report.metrics
    ]
    return f"in {len(lost)} of {len(attempts)} attempts {lost[0]}" if lost else None


def why_no_ratio(
    names: Sequence[str], sides: Sequence[Sequence[AttemptReport]], metric: str
) -> str | None:
    """Which of two sides lacks samples of a metric, or has them in another unit; or None."""
    for name, side in zip(names, sides, strict=True):
        if not samples_of(side, metric):
            return f"{name}: {absence(side, metric)}"
        if lost := not_sustained(side, metric):
            return f"{name}: {lost}"
    found = [[m for report in side if (m := metric_of(report, metric))] for side in sides]
    one, other = (", ".join(sorted({each.unit for each in side})) for side in found)
    return None if one == other else f"{names[0]} is in {one}, {names[1]} in {other}"


def spec_of(attempts: Iterable[AttemptReport], name: str) -> MetricSpec:
    """What a metric is, as the newest attempt that has it declares it."""
    having = [(report, m) for report in attempts if (m := metric_of(report, name)) is not None]
    if not having:
        return spec_for(name)
    newest, metric = max(having, key=lambda each: each[0].started_at)
    return spec_for(name, metric.unit, newest.specs)


def precision_of(attempts: Iterable[AttemptReport]) -> str | None:
    """What sampling could not reach, in a word; None where every series is as precise as asked.

    Says nothing of what disturbed the measurement: that is the verdict's.
    """
    # A series with a stop reason has one value a repetition; others (a value a token) follow it.
    watched = [
        metric
        for report in attempts
        for metric in report.metrics.values()
        if isinstance(metric, Samples) and metric.stop_reason is not None
    ]
    if any(len(metric.values) < _FEW for metric in watched):
        return FEW
    return WIDE if any(m.stop_reason != _REACHED for m in watched) else None
