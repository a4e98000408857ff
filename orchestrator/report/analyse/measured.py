"""What attempts hold of a metric: its samples, what it is, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.attempt import AttemptReport, Outcome
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
    """The attempts whose numbers count: the ok ones, else those that telemetry disbelieves."""
    return valid(attempts) or [a for a in attempts if a.outcome is Outcome.INVALID]


def valid(attempts: Iterable[AttemptReport]) -> list[AttemptReport]:
    """The ok attempts that telemetry does not disbelieve."""
    return [a for a in attempts if a.outcome is Outcome.OK and a.verdict.state != "invalid"]


def metric_of(report: AttemptReport, name: str) -> Metric | None:
    """A metric by name, of the task or of telemetry."""
    return report.metrics.get(name) or report.telemetry.get(name)


def samples_of(attempts: Iterable[AttemptReport], name: str) -> list[tuple[float, ...]]:
    """Samples of a metric, a series an attempt that has any; a single value is one sample."""
    found = []
    for report in attempts:
        metric = metric_of(report, name)
        if isinstance(metric, Samples) and metric.values:
            found.append(metric.series)
        elif isinstance(metric, Value):
            found.append((metric.value,))
    return found


def absence(attempts: Iterable[AttemptReport], name: str) -> str:
    """Why a metric has no samples, as its task said it."""
    found = (metric_of(report, name) for report in attempts)
    return next((m.reason for m in found if isinstance(m, Absent)), "not measured")


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
