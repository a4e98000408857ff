"""What arithmetic expects of a trial: sizes, the operations behind each time, and both as metrics.

::

    Task.expect(identity, config) -> Expectation
        sizes                                 predicted_weights_bytes ...
        steps x measured ceilings --time-->   predicted_ttft_s            measured_over_predicted.*
        steps x data sheet        --time-->   predicted_ttft_s.datasheet
        work over measured time and peak      mfu.measured_peak ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from statistics import median

from orchestrator.errors import ConfigError
from orchestrator.measure import derive
from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.model.measured_device import Measured
from orchestrator.model.operations import Operation
from orchestrator.model.roofline import Ceilings, Estimate, estimate

PREFIX = "predicted_"
RATIO_PREFIX = "measured_over_predicted."
DATASHEET = ".datasheet"
MEASURED_PEAK = ".measured_peak"


@dataclass(frozen=True)
class Transfer:
    """Bytes that come from outside the device's memory, at a rate that the attempt measured.

    Attributes
    ----------
    bandwidth : str
        The metric it was measured as, bytes a second.
    nbytes : int
    """

    bandwidth: str
    nbytes: int


@dataclass(frozen=True)
class Steps:
    """The operations that one time metric is made of.

    Attributes
    ----------
    ideal, eager : tuple of Operation
        As the best program would do it, held against the data sheet; and as the measured one does,
        held against the measured ceilings.
    transfers : tuple of Transfer
        What is brought in for it.
    overlapped : bool
        Transfers and operations go on at once; False: one after the other.
    """

    ideal: tuple[Operation, ...]
    eager: tuple[Operation, ...]
    transfers: tuple[Transfer, ...] = ()
    overlapped: bool = False

    def with_transfers(self, computing: Estimate, rates: Mapping[str, float]) -> Estimate | str:
        """``computing`` and the transfers; one line where a rate is not known."""
        stages = [computing]
        for transfer in self.transfers:
            if transfer.bandwidth not in rates:
                return f"{transfer.bandwidth} is measured in the attempt itself"
            seconds = transfer.nbytes / rates[transfer.bandwidth]
            stages.append(Estimate(seconds, {transfer.bandwidth: seconds}))
        if self.overlapped:
            return max(stages, key=lambda stage: stage.time_s)
        return reduce(add, stages)


@dataclass(frozen=True)
class Work:
    """What a utilisation is the share of: FLOPs done in a time, against the peak of a dtype.

    Attributes
    ----------
    flops : float
        Of one repetition.
    metric : str
        The time they took.
    dtype : str
        What the products are computed in.
    """

    flops: float
    metric: str
    dtype: str


@dataclass(frozen=True)
class Expectation:
    """What arithmetic says of a trial.

    Attributes
    ----------
    sizes_bytes : mapping of str to int
        By the name of the metric that measures it where there is one (``weights_bytes``).
    memory_bytes : int
        Of everything at its highest.
    steps : mapping of str to Steps, or callable
        By the name of the time metric; a function that makes them where making them costs, because
        planning mostly asks for sizes.
    floor_bytes : int or None
        What is needed for certain, to the byte: more than the device has is impossible. The rest of
        ``memory_bytes`` is an estimate of what a program holds for a moment.
    work : mapping of str to Work
        By the name of the utilisation (``mfu``), which is given against the measured peak too.
    """

    sizes_bytes: Mapping[str, int]
    memory_bytes: int
    steps: Mapping[str, Steps] | Callable[[], Mapping[str, Steps]] = field(default_factory=dict)
    floor_bytes: int | None = None
    work: Mapping[str, Work] = field(default_factory=dict)

    def made_steps(self) -> Mapping[str, Steps]:
        """The steps, made if they were not yet."""
        return self.steps() if callable(self.steps) else self.steps

    def times_s(
        self,
        ceilings: Ceilings,
        *,
        measured: bool,
        rates: Mapping[str, float] | None = None,
    ) -> dict[str, Estimate | str]:
        """Each time metric's estimate, or one line why there is none.

        Parameters
        ----------
        measured : bool
            The ceilings are measured ones: take the program as it is, not the ideal one.
        rates : mapping of str to float, optional
            Of transfers, bytes a second.
        """
        found: dict[str, Estimate | str] = {}
        for name, steps in self.made_steps().items():
            try:
                computing = estimate(steps.eager if measured else steps.ideal, ceilings)
            except ConfigError as error:
                found[name] = str(error)
            else:
                found[name] = steps.with_transfers(computing, rates or {})
        return found


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
        found[name] = _utilisation(name, work, measured.get(work.metric), limits.measured)
    return found


def _utilisation(
    name: str, work: Work, times: Metric | None, ceilings: Measured | str
) -> Samples | Absent:
    """The share of what products in its dtype reached on this device, for each repetition."""
    if isinstance(ceilings, str):
        return Absent(name, "1", ceilings)
    peak = ceilings.peak(work.dtype)
    if peak is None:
        return Absent(name, "1", f"no product in {work.dtype} could be measured")
    if not isinstance(times, Samples) or not times.values:
        return Absent(name, "1", f"{work.metric} was not measured")
    shares = tuple(derive.mfu(work.flops, seconds, peak) or 0.0 for seconds in times.values)
    return Samples(name, "1", shares)


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
