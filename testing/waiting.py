"""Waiting for what is to happen: as long as it takes, for how long is no test's business."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Ends a test that waits for what never comes; on no machine is it the time that something takes.
PATIENCE_S = 120.0


def until(
    holds: Callable[[], T],
    *,
    alive: Callable[[], object] = lambda: None,
    said: Callable[[], object] = lambda: "",
    every_s: float = 0.05,
) -> T:
    """Wait until ``holds()``; returns what it says.

    Parameters
    ----------
    alive : callable
        Called before each wait; raises where it will never hold.
    said : callable
        What the test fails with.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        alive()
        assert time.monotonic() < deadline, f"not in {PATIENCE_S:.0f} s: {said()}"
        time.sleep(every_s)
    return found
