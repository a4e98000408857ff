"""Calls a function at a steady pace from a daemon thread, and stops at once when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pacer:
    """Calls ``tick`` every ``period_s()`` seconds until :meth:`stop`.

    Rounds missed because the machine was busy are skipped, never made up for in a burst.

    Parameters
    ----------
    tick : callable
        One round; an exception ends the pacing and is kept in ``failure``.
    period_s : callable
        Asked before every wait, so that a sampler can slow itself down.
    at_edges : callable, optional
        A first round at once and a last one when stopped, on the same thread: where a driver
        hangs, this thread hangs and no other.
    """

    def __init__(
        self,
        name: str,
        tick: Callable[[], None],
        period_s: Callable[[], float],
        *,
        at_edges: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self._tick, self._period_s, self._at_edges = tick, period_s, at_edges
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first steady round comes one period from now."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> bool:
        """End the pacing; False where a round hangs (a driver that does not answer)."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            if self._at_edges is not None:
                self._at_edges()
            due = time.monotonic() + self._period_s()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                self._tick()
                due = max(due + self._period_s(), time.monotonic())
            if self._at_edges is not None:
                self._at_edges()
        except Exception as error:
            self.failure = error
