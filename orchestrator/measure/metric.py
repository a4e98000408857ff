"""What a measurement leaves behind: samples, single values, or an absence with its reason.

Names end in their unit (``ttft_s``, ``weights_bytes``); values are SI base units. Samples are the
truth and are always kept; statistics are computed from them, never stored instead of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from orchestrator.statistics.judge import Better
from orchestrator.statistics.repetitions import ByRepetition

# What a name may end in -> its unit. The longer ending first.
_ENDINGS = {
    "_tokens_per_s": "tokens/s",
    "_bytes_per_s": "bytes/s",
    "_flop_per_s": "flop/s",
    "_per_s": "1/s",
    "_per_token": "J/token",
    "_bytes": "bytes",
    "_hz": "Hz",
    "_j": "J",
    "_w": "W",
    "_c": "°C",
    "_s": "s",
}
#: What figures of all measured phases together, and of the whole attempt, begin with.
MEASURED, ATTEMPT = "measured", "attempt"
_LESS_IS_BETTER = frozenset({"s", "bytes", "J", "J/token", "nats", "°C"})
_SPELLINGS = {"degC": "°C", "celsius": "°C"}


@dataclass(frozen=True)
class MetricSpec:
    """What a metric is. Declared by who records it, carried in the attempt's report.

    Attributes
    ----------
    name, unit : str
        As of :class:`Samples`.
    better : str or None
        ``lower`` or ``higher``; None for a metric that has no good direction.
    exact : bool
        The configuration has it (a size, the perplexity of fixed tokens): it does not scatter, so
        one value decides.
    title : str
        What people call it, without the unit: ``TTFT``. By default the name without its unit.
    meaning : str
        One line for footnotes and tooltips; may be empty.
    """

    name: str
    unit: str
    better: Better | None = None
    exact: bool = False
    title: str = ""
    meaning: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", spelled(self.unit))
        object.__setattr__(self, "title", self.title or _plain_title(self.name))

    @classmethod
    def undeclared(cls, name: str, unit: str | None = None) -> MetricSpec:
        """What can be said of a metric that nobody declared, from its name and unit alone.

        Times, sizes, energies and temperatures are better low, rates are better high, anything else
        has no good direction; nothing is taken to be exact.
        """
        unit = unit_of(name) if unit is None else spelled(unit)
        if unit.endswith("/s"):
            return cls(name, unit, "higher")
        return cls(name, unit, "lower" if unit in _LESS_IS_BETTER else None)


def unit_of(name: str) -> str:
    """The unit that a name ends in; ``1`` where it ends in none."""
    return next((unit for ending, unit in _ENDINGS.items() if name.endswith(ending)), "1")


def spelled(unit: str) -> str:
    """The one spelling of a unit that has several: ``°C`` for ``degC``."""
    return _SPELLINGS.get(unit, unit)


def _plain_title(name: str) -> str:
    phase, dot, rest = name.rpartition(".")
    for ending in _ENDINGS:
        if rest.endswith(ending) and len(rest) > len(ending):
            rest = rest.removesuffix(ending)
            break
    return f"{phase}{dot}{rest}".replace(".", " ").replace("_", " ")


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
    lengths : tuple of int
        How many of ``values`` each repetition has; empty where each has one, or where it is not
        known.
    """

    _json_kind: ClassVar[str] = "samples"

    name: str
    unit: str
    values: tuple[float, ...]
    warmup: tuple[float, ...] = ()
    stop_reason: str | None = None
    lengths: tuple[int, ...] = ()

    @property
    def series(self) -> tuple[float, ...]:
        """``values`` as statistics take them: by repetition where a repetition has several."""
        return ByRepetition(self.values, self.lengths) if self.lengths else self.values


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

    _json_kind: ClassVar[str] = "value"

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

    _json_kind: ClassVar[str] = "absent"

    name: str
    unit: str
    reason: str


Metric: TypeAlias = Samples | Value | Absent


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
