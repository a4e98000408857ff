"""An attempt's metrics as MLflow sees them: statistics of samples, values, thinned telemetry."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import Metric, Samples, Value
from orchestrator.record.params import legal_key
from orchestrator.record.runrecord import MetricPoint

TELEMETRY = "telemetry.parquet"

# PROTOCOL allows 1,000 points a series. Writing one costs the driver some 50 µs of a core that may
# be measuring something; 200 draw the same chart, and the whole series is in the Parquet file.
SERIES_POINTS = 200

# Statistic of a summary -> what follows the metric's name; the median is the metric itself.
_STATISTICS = (
    ("median", ""),
    ("ci_low", ".ci_low"),
    ("ci_high", ".ci_high"),
    ("mean", ".mean"),
    ("std", ".std"),
    ("mad", ".mad"),
    ("min", ".min"),
    ("n", ".n"),
    ("p95", ".p95"),
    ("p99", ".p99"),
)


def metric_points(report: AttemptReport, protocol: Mapping[str, Any]) -> list[MetricPoint]:
    """Every number of ``report``; absent quantities and non-finite values have no point.

    Parameters
    ----------
    protocol : mapping
        The identity's ``protocol``: ``confidence`` and ``resamples`` of the intervals.
    """
    at_ms = round(report.ended_at * 1000)
    points = [
        MetricPoint(legal_key(name), value, at_ms)
        for source in (report.metrics, report.telemetry)
        for key, metric in source.items()
        for name, value in _numbers(key, metric, protocol)
    ]
    if report.duration_s:
        points.append(MetricPoint("attempt_duration_s", report.duration_s, at_ms))
    content = report.artifacts.get(TELEMETRY)
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
    from orchestrator.measure.statistics import summarise

    summary = summarise(
        metric.values,
        confidence=float(protocol.get("confidence", 0.95)),
        resamples=int(protocol.get("resamples", 10_000)),
    )
    for statistic, suffix in _STATISTICS:
        value = getattr(summary, statistic, None)
        if value is not None and math.isfinite(value):
            yield key + suffix, float(value)


def series_points(content: bytes, started_at: float) -> list[MetricPoint]:
    """Telemetry series, each thinned to at most ``SERIES_POINTS`` points.

    Parameters
    ----------
    content : bytes
        Parquet with columns ``t_s`` (since the attempt's start), ``source``, ``metric``, ``value``.
    started_at : float
        Unix time of the attempt's start.

    Notes
    -----
    Each stretch of time keeps its lowest and its highest value, so that peaks survive thinning.
    """
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content), columns=["t_s", "source", "metric", "value"])
    times = table["t_s"].to_numpy()
    values = table["value"].to_numpy()
    names = [
        f"telemetry/{source}/{metric}"
        for source, metric in zip(
            table["source"].to_pylist(), table["metric"].to_pylist(), strict=True
        )
    ]
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of.setdefault(name, []).append(row)
    points: list[MetricPoint] = []
    for name, rows in rows_of.items():
        index = np.asarray(rows)
        index = index[np.isfinite(values[index].astype(float))]
        index = index[np.argsort(times[index], kind="stable")]
        for row in _thin(index, values):
            at_s = float(times[row])
            points.append(
                MetricPoint(
                    legal_key(name),
                    float(values[row]),
                    round((started_at + at_s) * 1000),
                    round(at_s * 1000),
                )
            )
    return points


def _thin(index: Any, values: Any) -> list[int]:
    import numpy as np

    if len(index) <= SERIES_POINTS:
        return [int(row) for row in index]
    kept: set[int] = set()
    for stretch in np.array_split(np.arange(len(index)), SERIES_POINTS // 2):
        of_stretch = values[index[stretch]]
        kept |= {int(stretch[of_stretch.argmin()]), int(stretch[of_stretch.argmax()])}
    return [int(index[place]) for place in sorted(kept)]
