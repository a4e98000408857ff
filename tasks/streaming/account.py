"""What a streamed step could be at best, how well its stages overlapped, and which one binds. Pure.

::

    one after the other   |--disk--|--h2d--|--compute--|     wall = sum of busy    efficiency 0
    all at once           |-----compute-----|                wall = longest busy   efficiency 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def overlap_efficiency(busy_s: Mapping[str, float], wall_s: float) -> float | None:
    """``(sum of busy - wall) / (sum of busy - max busy)``; None where there is but one stage.

    1 where the wall is the longest stage, 0 where it is the sum of them, below 0 where time was
    lost beside them.
    """
    total_s = sum(busy_s.values())
    hidden_s = total_s - max(busy_s.values(), default=0.0)
    return (total_s - wall_s) / hidden_s if hidden_s > 0.0 else None


def bound_s(
    bytes_of: Mapping[str, float], bandwidth_of: Mapping[str, float], compute_s: float
) -> float:
    """``max(bytes / bandwidth of each stage, compute)``: no overlap is better than this.

    Of the best that was seen of each, :func:`best_rate` and the shortest computing: a typical rate
    is exceeded half of the time, and then a step would beat what cannot be beaten.
    """
    return max([compute_s, *(bytes_of[stage] / bandwidth_of[stage] for stage in bandwidth_of)])


def best_rate(alone_per_s: float, step_bytes: float, tpots_s: Sequence[float]) -> float:
    """The most bytes a second that a path gave: by itself, or under a sequence's mean step."""
    return max(alone_per_s, step_bytes / min(tpots_s))


def bottleneck(busy_s: Mapping[str, float]) -> str:
    """The stage that was busy longest; the first of equals."""
    return max(busy_s, key=lambda stage: busy_s[stage])
