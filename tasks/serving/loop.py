"""An event loop whose timers are not rounded up to milliseconds, as ``epoll`` rounds them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import selectors
import time
from collections.abc import Coroutine
from select import select
from typing import Any, TypeVar

_PR_SET_TIMERSLACK = 29
# What it takes to wake up, at most, on most machines: so long before a timer it stays awake.
_EARLY_S = 0.0001

T = TypeVar("T")


def take_precedence(first: bool) -> None:
    """Let this thread run before all others of its core, where that is allowed; or not any more."""
    how = (os.SCHED_RR, os.sched_param(1)) if first else (os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, *how)


class _PreciseSelector(selectors.EpollSelector):
    """Waits with ``select`` for its own descriptor, by the microsecond, and is awake in time."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        until_s = time.monotonic() + timeout
        if timeout > _EARLY_S:
            select([self.fileno()], (), (), timeout - _EARLY_S)
        while not (found := super().select(0)) and time.monotonic() < until_s:
            continue
        return found


def run_precisely(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` in such a loop; the thread wakes without the 50 microseconds that Linux adds."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    loop = asyncio.SelectorEventLoop(_PreciseSelector())
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
