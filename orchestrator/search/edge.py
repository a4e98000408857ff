"""Where the edge seems to be, and the cheapest levels that would enclose it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.search.levels import Scale
from orchestrator.search.probe import Probe

# A level that is already looked at stands in for one so close to it, in widths.
_NEAR = 0.25
# No level is thought to be closer to the edge: the estimate is not that good.
_CLOSEST = 0.05


def estimated_edge(probes: Sequence[Probe], target: float, scale: Scale) -> float:
    """Position at which attainment crosses ``target``.

    A line through the log odds of the levels, weighted by what each knows. Only decides where to
    look, never whether a level passes.

    Parameters
    ----------
    probes : sequence of Probe
        At least two, from the lowest on; the edge is between the first and the last.
    """
    at = [scale.position(probe.level) for probe in probes]
    odds = [probe.log_odds for probe in probes]
    weights = [1.0 / error for _, error in odds]
    slope, start = (float(c) for c in np.polyfit(at, [each for each, _ in odds], 1, w=weights))
    if slope >= 0.0:
        return (at[0] + at[-1]) / 2.0
    return min(at[-1], max(at[0], (math.log(target / (1.0 - target)) - start) / slope))


def aims(
    passed: float | None,
    failed: float | None,
    open_levels: Sequence[float],
    edge: float,
    width: float,
    scale: Scale,
) -> list[tuple[float, ...]]:
    """Sets of levels, any of which might enclose the edge as closely as wanted; cheapest first.

    Attempts that a level takes grow with the inverse square of its distance from the edge. Where
    one end of the interval stands, the other may move close to it; or both are new.

    Parameters
    ----------
    passed, failed : float or None
        The highest level that passed, the lowest that failed.
    open_levels : sequence of float
        Looked at already and not decided.
    edge : float
        Its estimated position.
    width : float
        Wanted, in widths of the scale.
    """

    def taken(level: float, towards: int) -> float:
        """The level, or one looked at already that is as good: a little closer to the edge."""
        at = scale.position(level)
        for other in sorted(open_levels, reverse=towards < 0):
            apart = (scale.position(other) - at) * towards
            if 0.0 <= apart <= _NEAR and (edge - scale.position(other)) * towards > 0.0:
                return other
        return level

    def lower(position: float) -> float:
        level = scale.above(position)
        return taken(level if failed is None else min(level, scale.next_to(failed, -1)), 1)

    def upper(position: float, beyond: float) -> float:
        return taken(max(scale.below(position), scale.next_to(beyond, 1)), -1)

    def cost(level: float, towards: int) -> float:
        return max((edge - scale.position(level)) * towards, _CLOSEST) ** -2

    first = lower(edge - 0.5 * width)
    second = upper(scale.position(first) + width, first)
    sets: list[tuple[float, tuple[float, ...]]]
    sets = [(cost(first, 1) + cost(second, -1), (first, second))]
    if passed is not None:
        only = upper(scale.position(passed) + width, passed)
        sets.append((cost(only, -1), (only,)))
    if failed is not None:
        only = lower(scale.position(failed) - width)
        sets.append((cost(only, 1), (only,)))
    least, most = passed or 0.0, failed or math.inf
    return [levels for _, levels in sorted(sets) if all(least < each < most for each in levels)]
