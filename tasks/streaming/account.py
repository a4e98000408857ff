"""What a streamed step could be at best, how well its stages overlapped, and which one binds. Pure.

::

    one after the other   |--disk--|--h2d--|--compute--|     wall = sum of busy    efficiency 0
    all at once           |-----compute-----|                wall = longest busy   efficiency 1
"""

from __future__ import annotations

from collections.abc import Mapping


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
    """``max(bytes / bandwidth of each stage, compute)``: no overlap is better than this."""
    return max([compute_s, *(bytes_of[stage] / bandwidth_of[stage] for stage in bandwidth_of)])


def bottleneck(busy_s: Mapping[str, float]) -> str:
    """The stage that was busy longest; the first of equals."""
    return max(busy_s, key=lambda stage: busy_s[stage])
