"""What a measurement leaves behind: samples, single values, or an absence with its reason.

Names end in their unit (``ttft_s``, ``weights_bytes``); values are SI base units. Samples are the
truth and are always kept; statistics are computed from them, never stored instead of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Samples:
    """Raw values of one quantity, one per repetition (or per token for ``itl_s``).

    Attributes
    ----------
    name, unit : str
        ``name`` ends in its unit where it has one (``s``, ``bytes``, ``tokens/s``, ``1``).
    values : tuple of float
        Measured samples in the order they were taken; never dropped, never sorted.
    warmup : tuple of float
        The warm-up series, stored and never mixed into ``values``.
    stop_reason : str or None
        Why sampling stopped: ``ci``, ``max_repetitions``, ``max_time``; None where no rule applied.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    warmup: tuple[float, ...] = ()
    stop_reason: str | None = None


@dataclass(frozen=True)
class Value:
    """A quantity that one attempt has once (a size, a count, a peak).

    Attributes
    ----------
    name, unit : str
        As of :class:`Samples`.
    value : float
        In ``unit``.
    """

    name: str
    unit: str
    value: float


@dataclass(frozen=True)
class Absent:
    """A quantity that could not be had, and why. Never 0, never NaN.

    Attributes
    ----------
    name, unit : str
        As of :class:`Samples`.
    reason : str
        One line.
    """

    name: str
    unit: str
    reason: str


Metric: TypeAlias = Samples | Value | Absent


def metric_to_json(metric: Metric) -> dict[str, Any]:
    """Plain JSON form, the inverse of :func:`metric_from_json`."""
    if isinstance(metric, Samples):
        return {
            "kind": "samples",
            "name": metric.name,
            "unit": metric.unit,
            "values": list(metric.values),
            "warmup": list(metric.warmup),
            "stop_reason": metric.stop_reason,
        }
    if isinstance(metric, Value):
        return {"kind": "value", "name": metric.name, "unit": metric.unit, "value": metric.value}
    return {"kind": "absent", "name": metric.name, "unit": metric.unit, "reason": metric.reason}


def metric_from_json(data: dict[str, Any]) -> Metric:
    """Rebuild a metric.

    Raises
    ------
    ValueError
        An unknown kind.
    """
    kind = data["kind"]
    if kind == "samples":
        return Samples(
            data["name"],
            data["unit"],
            tuple(float(v) for v in data["values"]),
            tuple(float(v) for v in data["warmup"]),
            data["stop_reason"],
        )
    if kind == "value":
        return Value(data["name"], data["unit"], float(data["value"]))
    if kind == "absent":
        return Absent(data["name"], data["unit"], data["reason"])
    raise ValueError(f"unknown metric kind {kind!r}")


@dataclass(frozen=True)
class Engaged:
    """Proof that one thing asked for happened (weights, dtype, attention, device, threads ...).

    Attributes
    ----------
    what : str
        The thing: ``weights``, ``attention``.
    asked, got : str
        As the configuration says it, and as it was found on the loaded model.
    ok : bool
        Whether they agree.
    """

    what: str
    asked: str
    got: str
    ok: bool


@dataclass(frozen=True)
class Phase:
    """A named window inside an attempt.

    Attributes
    ----------
    name : str
        ``load``, ``prefill``; telemetry is aggregated over all windows of a name.
    begin_ns, end_ns : int, int or None
        On CLOCK_MONOTONIC; no end if it was cut short.
    index : int
        Which window of this name it is, from 0.
    measured : bool
        Whether what happens in it is measured: rules about throttling look at these.
    extra : dict
        What the task said of it.
    """

    name: str
    begin_ns: int
    end_ns: int | None = None
    index: int = 0
    measured: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
