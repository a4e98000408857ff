"""Change points of a series: where its level steps, and how high each level is. Pure, numpy only.

Method
------
Values are positive and differ by factors, so everything is done on their logarithms.

*Noise.* A value strays from its level by its own error, which is given, and by what differs from
run to run, which is not. The latter is estimated from the differences of consecutive values, by
their median size: a few steps or strays among them do not move it. A value's weight is the inverse
of both variances.

*Values alone.* One that lies to the same side of both its neighbours, four standard deviations of
a difference from each, is no level and counts for none (a bad night; Hampel's idea on differences,
"The influence curve and its role in robust estimation", 1974). The last value has only one
neighbour yet, so it may be the first of a new level.

*Fit.* For each number of steps the weighted least-squares fit of levels, by dynamic programming
over all places (Bellman and Roth, "Curve fitting by segmented straight lines", 1969; Killick,
Fearnhead and Eckley, "Optimal detection of changepoints with a linear computational cost", 2012,
call it segment neighbourhood). A level has two values or more, the last one or more.

*Penalty.* One more step at a place named beforehand leaves a share of the squared residuals that is
Beta(nu/2, 1/2) where there is no step, nu being the degrees of freedom that remain. A step is worth
it where the share is smaller than that law allows with a chance of :data:`FALSE_CHANCE` over the
number of places, so the size of the noise need not be known, and short series ask for larger steps.
The number of steps is the one with the least ``log(residuals) + sum of the penalties``. Residuals
are never taken to be smaller than the values' own errors allow.

Measured by ``benchmarks/history.py``: see ``docs/history.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.statistics.medians import FloatArray
from orchestrator.statistics.tail import beta_quantile

#: Of a step that is none, over all places of a series; chosen by simulation, so that the figure
#: for flat series holds with weights that are themselves estimated.
FALSE_CHANCE = 0.005
# Of a value alone, in standard deviations of a difference.
_FAR = 4.0
# Values nearer than this to each other are the same: of sizes, which do not scatter at all.
_LEAST_ERROR = 1e-4
# Of a normal deviate, the median of its absolute value.
_MEDIAN_SIZE = 0.6745
_MOST_STEPS = 30
_LEAST_VALUES_A_STEP = 3


@dataclass(frozen=True)
class Changes:
    """Levels of a series.

    Attributes
    ----------
    starts : tuple of int
        Where each level begins, the first at 0; every later one is a step.
    levels : tuple of float
        Of each, in the values' unit.
    errors : tuple of float
        Relative standard error of each level: what values scatter by around all of them counts.
    freedom : int
        Degrees of freedom that this scatter is known from.
    alone : frozenset of int
        Values that stand alone and count for no level.
    """

    starts: tuple[int, ...]
    levels: tuple[float, ...]
    errors: tuple[float, ...]
    freedom: int
    alone: frozenset[int] = frozenset()


def find_changes(values: Sequence[float], errors: Sequence[float | None]) -> Changes:
    """The levels that ``values`` lie on.

    Parameters
    ----------
    values : sequence of float, shape (n,)
        Positive, in the order of time; at least one.
    errors : sequence of float or None, shape (n,)
        Relative standard error of each; None where it is not known, which then is what the others
        usually have.
    """
    y = np.log(np.asarray(values, dtype=np.float64))
    own = _own_variances(errors)
    noise = _noise_between(y, own)
    alone = _alone(y, noise + own)
    kept = np.flatnonzero(~alone)
    y, weights = y[kept], 1.0 / (noise + own[kept])
    floor = float((own[kept] * weights).mean())
    starts = _fit(y, weights, floor)
    sums = np.add.reduceat(weights, starts)
    levels = np.add.reduceat(weights * y, starts) / sums
    lengths = np.diff([*starts, y.size])
    squares = float((weights * (y - np.repeat(levels, lengths)) ** 2).sum())
    freedom = y.size - len(starts)
    scatter = max(squares / freedom, floor) if freedom else 1.0
    return Changes(
        (0, *kept[starts[1:]].tolist()),
        tuple(np.exp(levels).tolist()),
        tuple(np.sqrt(scatter / sums).tolist()),
        freedom,
        frozenset(np.flatnonzero(alone).tolist()),
    )


def _own_variances(errors: Sequence[float | None]) -> FloatArray:
    known = [error for error in errors if error is not None]
    usual = float(np.median(known)) if known else 0.0
    own = np.array([usual if error is None else error for error in errors], dtype=np.float64)
    return own**2 + _LEAST_ERROR**2


def _noise_between(y: FloatArray, own: FloatArray) -> float:
    """Variance beyond the values' own errors; 0 where these explain all of it."""
    sizes = np.abs(np.diff(y))
    if sizes.size < 2:
        return 0.0
    pairs = own[1:] + own[:-1]
    low, high = 0.0, float(sizes.max()) / _MEDIAN_SIZE
    for _ in range(40):
        middle = (low + high) / 2.0
        too_small = np.median(sizes / np.sqrt(2.0 * middle**2 + pairs)) > _MEDIAN_SIZE
        low, high = (middle, high) if too_small else (low, middle)
    return low**2


def _alone(y: FloatArray, variances: FloatArray) -> np.ndarray:
    found = np.zeros(y.size, dtype=bool)
    if y.size > _LEAST_VALUES_A_STEP:
        apart = np.diff(y) / np.sqrt(variances[1:] + variances[:-1])
        before, after = apart[:-1], -apart[1:]
        found[1:-1] = np.minimum(before, after) > _FAR
        found[1:-1] |= np.maximum(before, after) < -_FAR
    return found


def _fit(y: FloatArray, weights: FloatArray, floor: float) -> list[int]:
    """Where levels begin, the first at 0.

    ``floor`` is the part of the variances that is the values' own error.
    """
    n = y.size
    most = min(_MOST_STEPS, n // _LEAST_VALUES_A_STEP)
    residuals, came_from = _segments(y, weights, most)
    best, cost, steps = math.inf, 0.0, 0
    for count in range(most + 1):
        left = n - count - 1  # degrees of freedom that remain
        if left < 1 or not math.isfinite(residuals[count]):
            break
        if count:
            cost += _penalty(left, n - 1)
        total = math.log(max(float(residuals[count]), left * floor)) + cost
        if total < best:
            best, steps = total, count
    starts, end = [], n
    for count in range(steps, 0, -1):
        end = int(came_from[count, end])
        starts.append(end)
    return [0, *reversed(starts)]


def _segments(y: FloatArray, weights: FloatArray, most: int) -> tuple[FloatArray, np.ndarray]:
    """Least weighted squares of all values with 0 … ``most`` steps, and the ways there.

    Returns
    -------
    residuals : shape (most + 1,)
        Infinite where so many levels have no room.
    came_from : shape (most + 1, n + 1)
        Where the last level begins in the best fit of the values before a place.
    """
    n = y.size
    y = y - np.average(y, weights=weights)  # differences of large sums would lose digits
    sums = [np.concatenate(([0.0], np.cumsum(weights * y**power))) for power in (0, 1, 2)]
    best = np.full((most + 1, n + 1), np.inf)
    came_from = np.zeros((most + 1, n + 1), dtype=np.int64)
    for end in range(1, n + 1):
        # Of a level from each place to here; inside the series one value is no level.
        latest = end if end == n else end - 1
        if end > 1 or n == 1:
            w, wy, wyy = (s[end] - s[:latest] for s in sums)
            level = np.maximum(wyy - wy**2 / w, 0.0)
            best[0, end] = level[0]
            if most and latest > 1:
                through = best[:-1, 1:latest] + level[1:]
                at = np.argmin(through, axis=1)
                best[1:, end] = through[np.arange(most), at]
                came_from[1:, end] = at + 1
    return best[:, n], came_from


def _penalty(left: int, places: int) -> float:
    """What one more step must take off the logarithm of the residuals; see *Penalty* above."""
    return -math.log(beta_quantile(FALSE_CHANCE / places, left / 2.0, 0.5))
