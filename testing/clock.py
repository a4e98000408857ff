"""A clock that tests can drive."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.measure.clock import HostClock, Mark, Nvtx


class FakeClock:
    """A clock that moves only when told to, with a device that works asynchronously.

    ``advance`` is time the host spends; ``launch`` queues work on the device and returns at once,
    as a CUDA kernel does. ``sync`` waits for the queue, costs ``sync_ns`` and is counted.
    """

    nvtx: Nvtx | None = None

    def __init__(self, start_ns: int = 0, sync_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._device_free_ns = start_ns
        self._sync_ns = sync_ns
        self.syncs = 0

    def now_ns(self) -> int:
        """Where the clock was moved to."""
        return self._now_ns

    def advance(self, seconds: float) -> None:
        """Let the host spend ``seconds``."""
        self._now_ns += round(seconds * 1e9)

    def launch(self, seconds: float) -> None:
        """Queue work of ``seconds`` on the device; the host goes on at once."""
        begin_ns = max(self._now_ns, self._device_free_ns)
        self._device_free_ns = begin_ns + round(seconds * 1e9)

    def sync(self) -> None:
        """Move on to when the device is free, and ``sync_ns`` further."""
        self.syncs += 1
        self._now_ns = max(self._now_ns, self._device_free_ns) + self._sync_ns

    def mark(self) -> Mark:
        """When the device will have done what is queued now."""
        return max(self._now_ns, self._device_free_ns)

    def seconds_between(self, marks: Sequence[Mark]) -> list[float]:
        """Seconds from each mark to the next; counts as one :meth:`sync`."""
        if not marks:
            return []
        self.sync()
        return HostClock().seconds_between(marks)
