"""Repeats a measurement under a protocol: fixed warm-up, then samples until a rule says enough.

::

    for repetition in repeat(recorder, identity["protocol"], watch="tpot_s"):
        ...                                          timed work, nothing of ours running
        repetition.add("tpot_s", "s", value)
        repetition.extend("itl_s", "s", intervals)
    # between repetitions: samples go to the recorder, the stopping rules are asked
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias, TypeVar
from weakref import WeakSet

from orchestrator.measure.clock import timed
from orchestrator.measure.recorder import Recorder
from orchestrator.measure.stopping import StoppingProtocol

# Recorders whose sampling has begun: a cold start taken after that is not cold.
_sampling_begun: WeakSet[Recorder] = WeakSet()


# Gives a context manager for the phase of that name.
PhaseMaker: TypeAlias = Callable[[str], AbstractContextManager[Any]]


class Phases(Protocol):
    """Marks the phases of one repetition, their edges outside what is timed."""

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """The phase ``name`` is what happens inside."""
        ...

    def together(self, name: str) -> AbstractContextManager[Any]:
        """What happens inside is of phases that :meth:`window` tells afterwards."""
        ...

    def window(self, name: str, begin_ns: int, end_ns: int) -> None:
        """The phase ``name`` was then, on the recorder's clock."""
        ...


class NoPhases:
    """Marks nothing."""

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def together(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def window(self, name: str, begin_ns: int, end_ns: int) -> None:
        return


class RecordedPhases(NoPhases):
    """Marks phases as measured ones of ``recorder``."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        return self._recorder.phase(name)

    def window(self, name: str, begin_ns: int, end_ns: int) -> None:
        self._recorder.window(name, begin_ns, end_ns)


no_phase = NoPhases()
PhasesT = TypeVar("PhasesT", bound=PhaseMaker)


class Repetition:
    """One execution of the measured work and what it showed.

    Holds its own samples and is closed when the next one begins: nothing carries over from one
    repetition to the next.

    Attributes
    ----------
    index : int
        Counts from 0, warm-up and measured repetitions each by themselves.
    warmup : bool
        Whether its samples go to the warm-up series.
    """

    def __init__(self, index: int, *, warmup: bool) -> None:
        self.index = index
        self.warmup = warmup
        self._series: dict[str, tuple[str, list[float]]] = {}
        self._open = True

    def add(self, name: str, unit: str, value: float) -> None:
        """Record one value of this repetition."""
        self.extend(name, unit, (value,))

    def extend(self, name: str, unit: str, values: Sequence[float]) -> None:
        """Record several values of this repetition (per token, per step).

        Raises
        ------
        RuntimeError
            If the repetition is over.
        ValueError
            If ``name`` has another unit already.
        """
        if not self._open:
            raise RuntimeError(f"repetition {self.index} is over: {name} belongs to a later one")
        known, series = self._series.setdefault(name, (unit, []))
        if known != unit:
            raise ValueError(f"{name} is in {known}, not {unit}")
        series.extend(values)

    @contextmanager
    def phases(self, recorder: Recorder, measured: PhasesT) -> Iterator[PhasesT | NoPhases]:
        """``measured`` for a measured repetition; a warm-up is all one phase ``warmup``."""
        if not self.warmup:
            yield measured
            return
        with recorder.phase("warmup", measured=False):
            yield no_phase

    def _close(self, recorder: Recorder) -> None:
        self._open = False
        role = "warmup" if self.warmup else "measured"
        for name, (unit, values) in self._series.items():
            if values:
                recorder.samples(name, unit, values, role=role, together=len(values) > 1)

    def _watched(self, watch: str) -> float:
        _, values = self._series.get(watch, ("", []))
        if not values:
            raise ValueError(f"repetition {self.index} recorded no {watch}, which is watched")
        # Values within one repetition follow each other and are not independent: one counts.
        return statistics.median(values)


def repeat(recorder: Recorder, protocol: Mapping[str, Any], *, watch: str) -> Iterator[Repetition]:
    """Yield repetitions until the protocol is satisfied.

    Parameters
    ----------
    recorder : Recorder
        Gets each repetition's samples once it is over, and the stop reason of ``watch``.
    protocol : mapping
        ``warmup``, ``min_repetitions``, ``max_repetitions``, ``max_time_s``,
        ``ci_relative_half_width``, ``confidence``.
    watch : str
        The metric whose median decides; each measured repetition must record it. Where a
        repetition records several values, their median counts as one.

    Yields
    ------
    Repetition
        A fresh one each time. One that the caller leaves by ``break`` or an exception is not whole
        and leaves no samples.

    Raises
    ------
    InputError
        If the protocol cannot be meant.
    ValueError
        If a measured repetition did not record ``watch``.
    """
    clock = recorder.clock
    rules = StoppingProtocol.of(protocol)
    _sampling_begun.add(recorder)
    for index in range(rules.warmup):
        repetition = Repetition(index, warmup=True)
        yield repetition
        repetition._close(recorder)
    values: list[float] = []
    begin_ns = clock.now_ns()
    reason: str | None = None
    while reason is None:
        repetition = Repetition(len(values), warmup=False)
        yield repetition
        elapsed_s = (clock.now_ns() - begin_ns) / 1e9
        repetition._close(recorder)
        values.append(repetition._watched(watch))
        reason = rules.stop_reason(values, elapsed_s)
    recorder.stop(watch, reason)


@contextmanager
def first_call(recorder: Recorder) -> Iterator[None]:
    """Time the very first call after load, before any warm-up, as ``first_call_s``.

    Raises
    ------
    RuntimeError
        If sampling has begun already: the start would not be cold.
    """
    if recorder in _sampling_begun:
        raise RuntimeError("first_call_s must be taken before any repetition")
    with timed(recorder.clock) as span:
        yield
    recorder.value("first_call_s", "s", span.seconds)
