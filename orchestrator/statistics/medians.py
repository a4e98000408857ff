"""The median of one series: its interval, and those of resamples, drawn without forming one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.statistics.repetitions import lengths_of
from orchestrator.statistics.tail import beta_below

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]
Series = Sequence[float] | FloatArray

# A series of up to so many samples has its middle ranks in a table; ranks rarer than this are never
# drawn in practice.
_TABLE_SAMPLES = 64
_LEAST_SHARE = 1e-18


def bootstrap_medians(values: Series, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Medians of ``resamples`` bootstrap resamples of ``values``, shape ``(resamples,)``.

    Drawn exactly, without forming a resample: the j-th smallest of n values drawn with replacement
    is the value at rank ``floor(n U)``, where ``U`` is the j-th smallest of n uniforms and so
    distributed as ``Beta(j, n - j + 1)``. For even n the next order statistic is drawn given the
    first: the smallest of the remaining ``n - j`` uniforms above ``U``. O(resamples) for any n.
    Short series take the ranks from a table of their probabilities, which is several times faster.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    lengths = lengths_of(values)
    if lengths is not None:
        return _medians_by_repetition(ordered, np.asarray(values), lengths, resamples, rng)
    if n <= _TABLE_SAMPLES:
        return _middle_ranks(n).draw(ordered, resamples, rng)
    half = (n + 1) // 2
    lower = rng.beta(half, n - half + 1, size=resamples)
    picked = ordered[np.minimum((n * lower).astype(np.int64), n - 1)]
    if n % 2:
        return picked
    upper = 1.0 - (1.0 - lower) * rng.random(resamples) ** (1.0 / (n - half))
    return (picked + ordered[np.minimum((n * upper).astype(np.int64), n - 1)]) / 2.0


def median_ci(values: Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Median of at least one value, and its interval between two order statistics.

    How likely a value of a given rank lies beyond the median is binomial, whatever the values'
    distribution. Between the two ranks around the chance asked for, the interval's ends lie as
    Hettmansperger and Sheather put them ("Confidence intervals based on interpolated order
    statistics", *Statistics & Probability Letters* 4, 1986). At 95 % it covers in 94.4 to 95.3 % of
    normal and exponential series from six values on; of five, whose extremes are its ends, in
    93.7 %. The percentile bootstrap covers in 87 % of those with 7 or 15 values: their resamples
    have few medians.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n, tail = ordered.size, (1.0 - confidence) / 2.0

    def beyond(k: int) -> float:
        """The k-th smallest lies above the median: so many or more of n do."""
        return beta_below(0.5, n - k + 1.0, k)

    k, most = 0, (n + 1) // 2
    while k < most:
        middle = (k + most + 1) // 2
        k, most = (middle, most) if beyond(middle) <= tail else (k, middle - 1)
    rank = 0.0
    if k:
        share = (tail - beyond(k)) / (beyond(k + 1) - beyond(k))
        rank = k - 1 + (n - k) * share / (k + (n - 2 * k) * share)
    low, high = np.interp([rank, n - 1 - rank], np.arange(n), ordered)
    return float(np.median(ordered)), float(low), float(high)


def median_interval(values: Sequence[float], tail: float) -> tuple[float, float]:
    """Ends beyond each of which a share ``tail`` of all bootstrap medians of ``values`` lies.

    Without a draw, so that a tail of one in a million costs no more than one in ten. Of over 64
    values, an even number of them, the law of the mean of the two middle ranks is taken to be the
    mean of their laws, which are a rank apart.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    if n > _TABLE_SAMPLES:
        rank = _low_rank(n, tail)
        return float(ordered[rank]), float(ordered[n - 1 - rank])
    middle = _middle_ranks(n)
    medians = (ordered[middle.lower] + ordered[middle.upper]) / 2.0
    order = np.argsort(medians)
    medians, shares = medians[order], middle.shares[order]
    from_below, from_above = np.cumsum(shares), np.cumsum(shares[::-1])
    low = int(np.searchsorted(from_below, tail))
    high = medians.size - 1 - int(np.searchsorted(from_above, tail))
    return float(medians[low]), float(medians[high])


def _low_rank(n: int, tail: float) -> int:
    """Lowest rank, from 0, with a share ``tail`` of the medians of n draws at it or below."""
    halves = {(n + 1) // 2, n // 2 + 1}
    low, high = 0, n // 2
    while low < high:
        rank = (low + high) // 2
        share = (rank + 1) / n
        # At least half of n draws are among the ``rank + 1`` lowest of n values.
        found = sum(beta_below(share, half, n - half + 1.0) for half in halves) / len(halves)
        low, high = (low, rank) if found >= tail else (rank + 1, high)
    return low


def _medians_by_repetition(
    ordered: FloatArray,
    values: FloatArray,
    lengths: tuple[int, ...],
    resamples: int,
    rng: np.random.Generator,
) -> FloatArray:
    n, repetitions = values.size, len(lengths)
    median = np.median(ordered)
    # A sample at the median itself is half below it: ties then move nothing.
    below = (values < median) + 0.5 * (values == median)
    starts = np.cumsum((0, *lengths[:-1]))
    moved = np.add.reduceat(below - below.mean(), starts) * (repetitions / n)
    # Small integers are drawn several times as fast.
    kind = np.uint16 if repetitions <= 1 << 16 else np.int64
    drawn = np.zeros(resamples)
    for _ in range(repetitions):
        drawn += moved.take(rng.integers(repetitions, size=resamples, dtype=kind))
    drawn /= repetitions
    ranks = np.clip(n * (0.5 - drawn) - 0.5, 0.0, n - 1.0)
    medians: FloatArray = np.interp(ranks, np.arange(n), ordered)
    return medians


@dataclass(frozen=True)
class _MiddleRanks:
    """The one or two middle ranks of n draws with replacement from n ordered values.

    ``lower`` and ``upper`` are pairs of ranks, ``shares`` their probabilities; ``keep`` and
    ``other`` are Walker's alias table over them: a pair picked evenly is kept with probability
    ``keep``, else it is ``other``.
    """

    lower: IndexArray
    upper: IndexArray
    shares: FloatArray
    keep: FloatArray
    other: IndexArray

    def draw(self, ordered: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
        medians = (ordered[self.lower] + ordered[self.upper]) / 2.0
        scaled = rng.random(resamples) * self.keep.size
        picked = scaled.astype(np.int64)
        picked = np.where(scaled - picked < self.keep[picked], picked, self.other[picked])
        drawn: FloatArray = medians[picked]
        return drawn


@lru_cache(maxsize=_TABLE_SAMPLES)
def _middle_ranks(n: int) -> _MiddleRanks:
    """Exact probabilities, in whole numbers of the n**n resamples that there are."""
    half = (n + 1) // 2
    # At least `half` of n draws among the i lowest values: that puts the half-th smallest there.
    at_most = [
        sum(math.comb(n, d) * i**d * (n - i) ** (n - d) for d in range(half, n + 1))
        for i in range(n + 1)
    ]
    first = [at_most[i + 1] - at_most[i] for i in range(n)]
    counts: dict[tuple[int, int], int] = {}
    for i in range(n):
        apart = 0
        if n % 2 == 0:
            below = math.comb(n, half) * ((i + 1) ** half - i**half)
            for j in range(i + 1, n):
                counts[i, j] = below * ((n - j) ** half - (n - j - 1) ** half)
                apart += counts[i, j]
        counts[i, i] = first[i] - apart
    shares = {pair: count / n**n for pair, count in counts.items()}
    pairs = [pair for pair, share in shares.items() if share > _LEAST_SHARE]
    kept = np.array([shares[pair] for pair in pairs])
    lower, upper = np.array(pairs, dtype=np.int64).T
    return _MiddleRanks(lower, upper, kept, *_alias(kept))


def _alias(shares: FloatArray) -> tuple[FloatArray, IndexArray]:
    """Walker's alias table (Vose 1991)."""
    keep = shares / shares.sum() * shares.size
    other = np.arange(shares.size)
    small = [i for i in range(shares.size) if keep[i] < 1.0]
    large = [i for i in range(shares.size) if keep[i] >= 1.0]
    while small and large:
        less, more = small.pop(), large[-1]
        other[less] = more
        keep[more] -= 1.0 - keep[less]
        if keep[more] < 1.0:
            small.append(large.pop())
    return keep, other
