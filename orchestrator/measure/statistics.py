"""Statistics of samples: medians and their bootstrap uncertainty. Pure, seeded, numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def bootstrap_medians(
    values: Sequence[float] | FloatArray, resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Medians of ``resamples`` bootstrap resamples of ``values``, shape ``(resamples,)``.

    Drawn exactly, without forming a resample: the j-th smallest of n values drawn with replacement
    is the value at rank ``floor(n U)``, where ``U`` is the j-th smallest of n uniforms and so
    distributed as ``Beta(j, n - j + 1)``. For even n the next order statistic is drawn given the
    first: the smallest of the remaining ``n - j`` uniforms above ``U``. O(resamples) for any n.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    half = (n + 1) // 2
    lower = rng.beta(half, n - half + 1, size=resamples)
    picked = ordered[np.minimum((n * lower).astype(np.int64), n - 1)]
    if n % 2:
        return picked
    upper = 1.0 - (1.0 - lower) * rng.random(resamples) ** (1.0 / (n - half))
    return (picked + ordered[np.minimum((n * upper).astype(np.int64), n - 1)]) / 2.0


def median_ci(
    values: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Median of one series with its percentile-bootstrap interval: ``(median, low, high)``."""
    draws = bootstrap_medians(values, resamples, np.random.default_rng(seed))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return float(np.median(values)), float(low), float(high)
