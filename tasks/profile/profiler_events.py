"""What a profiler saw, as plain values: operators on the host, work on the device, phases."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

Shapes = tuple[tuple[int, ...], ...]


class Kind(str, Enum):
    """What an event is."""

    OPERATOR = "operator"  # a call on the host; calls nest
    KERNEL = "kernel"  # computes on the device
    COPY = "copy"  # moves bytes to, from or within the device
    PHASE = "phase"  # a window that the task marked; no work of its own


class Event(NamedTuple):
    """One thing with a beginning and an end, on the host's clock.

    A tuple, for a long decode makes a million of them.

    Attributes
    ----------
    lane : int
        Thread on the host, stream on the device. Operators of a lane nest or follow each other.
    correlation : int
        Of an operator: its own number; of work on the device: that of the operator that launched
        it; 0 where it is not known.
    shapes : tuple of tuple of int
        Of the operator's tensor inputs.
    dtypes : tuple of str
        Theirs, as the profiler names them, aligned with ``shapes``.
    flops : int
        As the profiler counts them for matrix products; 0 where it counts none.
    moved_bytes : int
        Of a copy.
    """

    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    lane: int = 0
    correlation: int = 0
    shapes: Shapes = ()
    dtypes: tuple[str, ...] = ()
    flops: int = 0
    moved_bytes: int = 0

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    @property
    def on_device(self) -> bool:
        return self.kind in (Kind.KERNEL, Kind.COPY)
