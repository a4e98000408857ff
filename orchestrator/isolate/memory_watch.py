"""Watches from outside that a measured process and its descendants stay within a memory limit."""

from __future__ import annotations

import time
from collections.abc import Callable

from orchestrator.host.processes import descendants
from orchestrator.isolate.linux import proportional_bytes, resident_bytes

_FAMILY_PERIOD_S = 0.2
_CONFIRM_PERIOD_S = 1.0


class MemoryWatch:
    """Says when a process tree is over ``limit_bytes``.

    Every look sums resident sets, which is cheap and too much: pages shared with the fork server or
    among forked workers count once for each. Only where that sum is over the limit are proportional
    sets summed, which is right and costs the measured process its page-table lock for milliseconds.

    Parameters
    ----------
    pid : int
        Root of the tree.
    limit_bytes : int
        Most it may hold.
    now : callable
        Monotonic seconds.
    """

    def __init__(
        self, pid: int, limit_bytes: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit_bytes = limit_bytes
        self.peak_bytes = 0
        self._pid = pid
        self._now = now
        self._family: list[int] = []
        self._family_at_s = float("-inf")
        self._confirmed_at_s = float("-inf")
        self._confirmed_resident = 0
        self._headroom_bytes = 0

    def exceeded(self) -> bool:
        """Look once; True where the limit is really exceeded."""
        now_s = self._now()
        if now_s - self._family_at_s >= _FAMILY_PERIOD_S:
            self._family = [self._pid, *descendants(self._pid)]
            self._family_at_s = now_s
        resident = sum(resident_bytes(pid) for pid in self._family)
        if resident <= self.limit_bytes:
            self.peak_bytes = max(self.peak_bytes, resident)
            return False
        recently = now_s - self._confirmed_at_s < _CONFIRM_PERIOD_S
        if recently and resident - self._confirmed_resident < self._headroom_bytes // 2:
            return False
        held = sum(
            found if (found := proportional_bytes(pid)) is not None else resident_bytes(pid)
            for pid in self._family
        )
        self._confirmed_at_s, self._confirmed_resident = now_s, resident
        self._headroom_bytes = self.limit_bytes - held
        self.peak_bytes = max(self.peak_bytes, held)
        return held > self.limit_bytes
