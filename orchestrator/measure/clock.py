"""One clock for everything timed, on the host or on CUDA.

Two kinds of reading, and which to use when::

    with timed(clock) as span:          device synchronised at both edges: whole regions
        forward()
    span.seconds

    marks = [clock.mark()]              never waits for the device: many points inside a region
    for _ in range(n):
        step()
        marks.append(clock.mark())
    clock.seconds_between(marks)        synchronises once, then n intervals

On a CPU a mark is the time of the call; on CUDA it is an event in the current stream, so the same
task code measures both without a per-token synchronisation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

# Opaque: an int on the host, a torch.cuda.Event on CUDA. Only the clock that made it can read it.
Mark: TypeAlias = Any


class Nvtx(Protocol):
    """Nested ranges on a profiler's timeline, as ``torch.cuda.nvtx`` makes them."""

    def range_push(self, msg: str) -> object:
        """Begin a range inside those that are open in this thread."""
        ...

    def range_pop(self) -> object:
        """End the innermost one."""
        ...


class Clock(Protocol):
    """Nanoseconds on CLOCK_MONOTONIC, and a way to wait for the device.

    Attributes
    ----------
    nvtx : Nvtx or None
        Where phases show on the timeline of Nsight Systems; None where there is no CUDA.
    """

    nvtx: Nvtx | None

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary origin; the same origin in every process of a host."""
        ...

    def sync(self) -> None:
        """Return once all work queued on the device has finished."""
        ...

    def mark(self) -> Mark:
        """A point in the device's work, taken without waiting for it."""
        ...

    def seconds_between(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds from each mark to the next (``len(marks) - 1`` values); synchronises once."""
        ...


class HostClock:
    """The host's monotonic clock; work on a CPU is finished when the call returns."""

    nvtx: Nvtx | None = None

    def now_ns(self) -> int:
        """``perf_counter_ns``: CLOCK_MONOTONIC on Linux."""
        return time.perf_counter_ns()

    def sync(self) -> None:
        """Nothing: the CPU has done what it was called for."""
        return None

    def mark(self) -> Mark:
        """The time now, in nanoseconds."""
        return time.perf_counter_ns()

    def seconds_between(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds from each mark to the next, shape ``(len(marks) - 1,)``."""
        return [(after - before) / 1e9 for before, after in pairwise(marks)]


class CudaClock:
    """The host's clock synchronised with one CUDA device; marks are events in its current stream.

    Events resolve about 0.5 us. Work on other devices or streams is not seen by a mark: a model
    spread over several devices is timed with :func:`timed`, whose edges synchronise them all.

    Raises
    ------
    RuntimeError
        From torch, where CUDA cannot be initialised.
    """

    def __init__(self) -> None:
        # Imported here: the package must stay importable, and fast to import, without torch.
        import torch

        self._cuda = torch.cuda
        self._cuda.init()
        # torch's module is there in every build, and raises where NVTX was left out.
        self.nvtx: Nvtx | None = torch.cuda.nvtx if hasattr(torch._C, "_nvtx") else None

    def now_ns(self) -> int:
        """The host's ``perf_counter_ns``; :meth:`sync` first to time the device."""
        return time.perf_counter_ns()

    def sync(self) -> None:
        """Wait for every device that this process sees."""
        for device in range(self._cuda.device_count()):
            self._cuda.synchronize(device)

    def mark(self) -> Mark:
        """An event recorded in the current stream."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds_between(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds between events as the device timed them, shape ``(len(marks) - 1,)``."""
        if not marks:
            return []
        # Events of one stream finish in order: the last one done means all are.
        marks[-1].synchronize()
        return [float(before.elapsed_time(after)) / 1e3 for before, after in pairwise(marks)]


@dataclass
class Span:
    """A timed region; it has ``seconds`` once it has ended without an exception.

    Attributes
    ----------
    begin_ns, end_ns : int, int or None
        On the clock it was timed with; no end while it runs.
    """

    begin_ns: int
    end_ns: int | None = None

    @property
    def seconds(self) -> float:
        """Length of the region.

        Raises
        ------
        ValueError
            It has not ended.
        """
        if self.end_ns is None:
            raise ValueError("the timed region has not ended")
        return (self.end_ns - self.begin_ns) / 1e9


@contextmanager
def timed(clock: Clock) -> Iterator[Span]:
    """Time a region with the device synchronised at both edges."""
    clock.sync()
    span = Span(clock.now_ns())
    yield span
    clock.sync()
    span.end_ns = clock.now_ns()


def clock_for(device_kind: str) -> Clock:
    """The clock of a device kind: ``cpu`` or ``cuda``."""
    return CudaClock() if device_kind == "cuda" else HostClock()
