"""Estimates when a sweep will be done, with the spread its own durations justify. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance

# 80 % of normally distributed estimates fall within this many standard deviations.
_Z80 = 1.2816


def remaining_s(
    durations_s: Sequence[float],
    *,
    waiting: int,
    running_s: Sequence[float] = (),
    slots: int = 1,
) -> tuple[float, float] | None:
    """An 80 % interval of the wall time left, in seconds.

    Parameters
    ----------
    durations_s : sequence of float, shape (m,)
        How long finished attempts held their slot.
    waiting : int
        Attempts that have not started.
    running_s : sequence of float
        How long each running attempt has run.
    slots : int
        Attempts that run at a time.

    Returns
    -------
    tuple of float or None
        None before the first attempt has finished: nothing is known, nothing is said.
    """
    seen = len(durations_s)
    left = waiting + len(running_s)
    if seen == 0:
        return None
    if left == 0:
        return (0.0, 0.0)
    mean = fmean(durations_s)
    # One duration says nothing about spread: half of it is assumed.
    spread = variance(durations_s) if seen > 1 else (mean / 2) ** 2
    # An attempt already longer than the mean will still take some time.
    tails = [max(mean - elapsed, 0.1 * mean) for elapsed in running_s]
    parallel = max(1, min(slots, left))
    work = waiting * mean + sum(tails)
    expected = max(work / parallel, mean if waiting else max(tails))
    # Of the sum of `left` draws, plus that the mean itself comes from `seen` of them.
    deviation = math.sqrt(spread * left * (1 + left / seen)) / parallel
    return (max(expected - _Z80 * deviation, 0.0), expected + _Z80 * deviation)
