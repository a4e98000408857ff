"""Predictions as metrics, next to what was measured.

::

    Task.expect(identity, config) -> Expectation
        sizes                                 predicted_weights_bytes ...
        steps x measured ceilings --time-->   predicted_ttft_s            measured_over_predicted.*
        steps x data sheet        --time-->   predicted_ttft_s.datasheet
        work over measured time and peak      mfu.measured_peak ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from orchestrator.measure import derive
from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.model.expectation import Expectation, Work
from orchestrator.model.measured_device import Measured
from orchestrator.model.roofline import Ceilings, Estimate

PREFIX = "predicted_"
RATIO_PREFIX = "measured_over_predicted."
DATASHEET = ".datasheet"
MEASURED_PEAK = ".measured_peak"


def is_derived(name: str) -> bool:
    """Whether a metric is one of :func:`predicted_metrics`, or a statistic of one."""
    return name.startswith((PREFIX, RATIO_PREFIX)) or MEASURED_PEAK in name


@dataclass(frozen=True)
class Limits:
    """The two kinds of ceilings of a device, or the reason why one is missing."""

    measured: Measured | str
    datasheet: Ceilings | str


def predicted_metrics(
    expectation: Expectation, measured: Mapping[str, Metric], limits: Limits
) -> dict[str, Metric]:
    """``predicted_*`` of a trial, and ``measured_over_predicted.*`` of what was measured.

    Parameters
    ----------
    measured : mapping of str to Metric
        The attempt's metrics; a series counts with its median.
    """
    found: dict[str, Metric] = {}
    for name, size in expectation.sizes_bytes.items():
        found[PREFIX + name] = Value(PREFIX + name, "bytes", float(size))
        _add_ratio(found, name, name, float(size), measured)
    name = f"{PREFIX}memory_bytes"
    found[name] = Value(name, "bytes", float(expectation.memory_bytes))
    rates = {
        name: metric.value
        for name, metric in measured.items()
        if isinstance(metric, Value) and metric.unit == "bytes/s" and metric.value > 0
    }
    for suffix, ceilings in (("", limits.measured), (DATASHEET, limits.datasheet)):
        if isinstance(ceilings, str):
            times: dict[str, Estimate | str] = dict.fromkeys(expectation.made_steps(), ceilings)
        else:
            times = expectation.times_s(ceilings, measured=not suffix, rates=rates)
        for metric, time in times.items():
            name = f"{PREFIX}{metric}{suffix}"
            if isinstance(time, str):
                found[name] = Absent(name, "s", time)
                continue
            found[name] = Value(name, "s", time.time_s)
            _add_ratio(found, metric, metric + suffix, time.time_s, measured)
    for utilisation, work in expectation.work.items():
        name = utilisation + MEASURED_PEAK
        found[name] = _utilisation(name, work, measured, limits.measured)
    return found


def _utilisation(
    name: str, work: Work | str, measured: Mapping[str, Metric], ceilings: Measured | str
) -> Samples | Absent:
    """The share of what products in its dtype reached on this device, for each repetition."""
    if isinstance(work, str):
        return Absent(name, "1", work)
    times = measured.get(work.metric)
    if isinstance(ceilings, str):
        return Absent(name, "1", ceilings)
    peak = ceilings.peak(work.dtype)
    if peak is None:
        return Absent(name, "1", f"no product in {work.dtype} could be measured")
    if not isinstance(times, Samples) or not times.values:
        return Absent(name, "1", f"{work.metric} was not measured")
    shares = [derive.mfu(work.flops, seconds, peak) for seconds in times.values]
    known = tuple(share for share in shares if share is not None)
    if len(known) < len(shares):
        return Absent(name, "1", f"{work.metric} is too short for this clock, or the peak is 0")
    return Samples(name, "1", known)


def _add_ratio(
    found: dict[str, Metric],
    metric: str,
    name: str,
    predicted: float,
    measured: Mapping[str, Metric],
) -> None:
    value = _typical(measured.get(metric))
    if value is not None and predicted > 0:
        ratio = f"{RATIO_PREFIX}{name}"
        found[ratio] = Value(ratio, "1", value / predicted)


def _typical(metric: Metric | None) -> float | None:
    if isinstance(metric, Samples):
        return median(metric.values) if metric.values else None
    return metric.value if isinstance(metric, Value) else None
