"""One clock for everything timed: host, CUDA, and a fake that tests can drive."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Nanoseconds on CLOCK_MONOTONIC, and a way to wait for the device."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary origin; the same origin in every process of a host."""
        ...

    def sync(self) -> None:
        """Return once all work queued on the device has finished."""
        ...


class HostClock:
    """The host's monotonic clock; work on a CPU is finished when the call returns."""

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def sync(self) -> None:
        return None


class FakeClock:
    """A clock that moves only when told to; ``sync`` costs ``sync_ns`` and is counted."""

    def __init__(self, start_ns: int = 0, sync_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._sync_ns = sync_ns
        self.syncs = 0

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)

    def sync(self) -> None:
        self.syncs += 1
        self._now_ns += self._sync_ns
