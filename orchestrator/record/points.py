"""An attempt's metrics as MLflow sees them: statistics of samples, values, thinned telemetry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Metric, Samples, Value
from orchestrator.record.params import legal_key
from orchestrator.record.runrecord import MetricPoint
from orchestrator.telemetry.history import read_histories
from orchestrator.telemetry.series import PARQUET_ARTIFACT

# What MLflow's UI shows on the tab "System metrics", apart from what the task measured.
SYSTEM_PREFIX = "system/"
PHASES_PREFIX = f"{SYSTEM_PREFIX}phases/"

# At most 1,000 points per series. Writing one costs the driver some 50 µs of a core that may
# be measuring something; 200 draw the same chart, and the whole series is in the Parquet file.
SERIES_POINTS = 200

# Of a summary; the median has the metric's own name, the others follow it after a dot.
_STATISTICS = ("median", "ci_low", "ci_high", "mean", "std", "mad", "min", "n", "p95", "p99")


def metric_points(report: AttemptReport, protocol: Mapping[str, Any]) -> list[MetricPoint]:
    """Every number of ``report``; absent quantities and non-finite values have no point.

    Parameters
    ----------
    protocol : mapping
        The identity's ``protocol``: ``confidence`` and ``resamples`` of the intervals.
    """
    at_ms = round(report.ended_at * 1000)
    points = [
        MetricPoint(legal_key(f"{prefix}{name}"), value, at_ms)
        for prefix, source in (("", report.metrics), (PHASES_PREFIX, report.telemetry))
        for key, metric in source.items()
        for name, value in _numbers(key, metric, protocol)
    ]
    if report.duration_s:
        points.append(MetricPoint("attempt_duration_s", report.duration_s, at_ms))
    content = report.artifacts.get(PARQUET_ARTIFACT)
    if content is not None:
        points += series_points(content, report.started_at)
    return points


def _numbers(key: str, metric: Metric, protocol: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if isinstance(metric, Value):
        if math.isfinite(metric.value):
            yield key, metric.value
        return
    if not isinstance(metric, Samples) or not metric.values:
        return
    from orchestrator.statistics.summary import summarise

    summary = summarise(
        metric.series,
        confidence=float(protocol.get("confidence", 0.95)),
        resamples=int(protocol.get("resamples", 10_000)),
    )
    for statistic in _STATISTICS:
        value = getattr(summary, statistic, None)
        if value is not None and math.isfinite(value):
            yield key if statistic == "median" else f"{key}.{statistic}", float(value)


def series_points(content: bytes, started_at: float) -> list[MetricPoint]:
    """Telemetry series, each thinned to at most ``SERIES_POINTS`` points, counters as rates.

    Parameters
    ----------
    content : bytes
        Parquet as :meth:`~orchestrator.telemetry.series.SeriesSet.to_parquet` writes it.
    started_at : float
        Unix time of the attempt's start.
    """
    points = []
    for history in read_histories(content):
        shown = (history.rate() if history.counter else history).thinned(SERIES_POINTS)
        name = legal_key(f"{SYSTEM_PREFIX}{shown.source}/{shown.metric}")
        for at_s, value in zip(shown.t_s.tolist(), shown.values.tolist(), strict=True):
            at_ms = round((started_at + at_s) * 1000)
            points.append(MetricPoint(name, value, at_ms, round(at_s * 1000)))
    return points
