"""An attempt's metrics as MLflow sees them: statistics of samples, values, thinned telemetry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Metric, Samples, Value
from orchestrator.measure.predicted import is_derived
from orchestrator.measure.series import PARQUET_ARTIFACT, SERVER_ARTIFACT
from orchestrator.record.params import legal_key
from orchestrator.record.runrecord import MetricPoint
from orchestrator.telemetry.recorded_series import Histories, read_histories

N = TypeVar("N")

# What MLflow's UI shows on the tab "System metrics", apart from what the task measured.
SYSTEM_PREFIX = "system/"
PHASES_PREFIX = f"{SYSTEM_PREFIX}phases/"

DURATION = "attempt_duration_s"

# At most 1,000 points per series. Writing one costs the driver some 50 µs of a core that may
# be measuring something; 200 draw the same chart, and the whole series is in the Parquet file.
SERIES_POINTS = 200

# Of a summary; the median has the metric's own name, the others follow it after a dot.
STATISTICS = ("median", "ci_low", "ci_high", "mean", "std", "mad", "min", "n", "p95", "p99")


def metric_points(report: AttemptReport, protocol: Mapping[str, Any]) -> list[MetricPoint]:
    """Every number of ``report``; absent quantities and non-finite values have no point.

    Parameters
    ----------
    protocol : mapping
        The identity's ``protocol``: ``confidence`` and ``resamples`` of the intervals.
    """
    at_ms = round(report.ended_at * 1000)
    points = [
        # The statistic stays after a name that MLflow does not take as it is.
        MetricPoint(legal_key(f"{legal_key(f'{prefix}{key}')}{statistic}"), value, at_ms)
        for prefix, source in (("", report.metrics), (PHASES_PREFIX, report.telemetry))
        for key, metric in source.items()
        for statistic, value in _numbers(metric, protocol)
    ]
    if report.duration_s:
        points.append(MetricPoint(DURATION, report.duration_s, at_ms))
    began_ns = None
    for name in (PARQUET_ARTIFACT, SERVER_ARTIFACT):
        if (content := report.artifacts.get(name)) is not None:
            histories = read_histories(content)
            began_ns = began_ns or histories.origin_ns
            points += series_points(histories, report.started_at, began_ns)
    return points


def _numbers(metric: Metric, protocol: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if isinstance(metric, Value):
        if math.isfinite(metric.value):
            yield "", metric.value
        return
    if not isinstance(metric, Samples) or not metric.values:
        return
    from orchestrator.statistics.summary import summarise_by

    summary = summarise_by(protocol, metric.series)
    for statistic in STATISTICS:
        value = getattr(summary, statistic, None)
        if value is not None and math.isfinite(value):
            yield "" if statistic == "median" else f".{statistic}", float(value)


def is_measured(key: str) -> bool:
    """Whether a key of MLflow's is a number that the report holds: no series, nothing derived."""
    if key.startswith(SYSTEM_PREFIX):
        return key.startswith(PHASES_PREFIX)
    return key != DURATION and not is_derived(key)


def by_statistic(numbers: Mapping[str, N]) -> dict[str, dict[str, N]]:
    """What MLflow holds by key as metric and statistic: the inverse of :func:`metric_points`.

    Parameters
    ----------
    numbers : mapping of str to anything
        By MLflow's key, of those that are :func:`is_measured`.

    Returns
    -------
    dict
        By metric (a legal key), then by statistic; a value that was measured once is a ``median``.
    """
    found: dict[str, dict[str, N]] = {}
    for key, value in numbers.items():
        name, _, statistic = key.rpartition(".")
        # Of samples that are not finite there is a count and no median.
        if statistic not in STATISTICS[1:] or not (name in numbers or statistic == "n"):
            name, statistic = key, "median"
        found.setdefault(name.removeprefix(PHASES_PREFIX), {})[statistic] = value
    return found


def series_points(
    histories: Histories, started_at: float, began_ns: int | None
) -> list[MetricPoint]:
    """Telemetry series, each thinned to at most ``SERIES_POINTS`` points, counters as rates.

    Parameters
    ----------
    started_at : float
        Unix time of the attempt's start.
    began_ns : int or None
        The same moment on CLOCK_MONOTONIC; None: when these series begin.
    """
    points = []
    later_s = ((histories.origin_ns or 0) - (began_ns or histories.origin_ns or 0)) / 1e9
    for history in histories:
        shown = (history.rate() if history.counter else history).thinned(SERIES_POINTS)
        name = legal_key(f"{SYSTEM_PREFIX}{shown.source}/{shown.metric}")
        times_s = (shown.t_s + later_s).tolist()
        for at_s, value in zip(times_s, shown.values.tolist(), strict=True):
            at_ms = round((started_at + at_s) * 1000)
            points.append(MetricPoint(name, value, at_ms, round(at_s * 1000)))
    return points
