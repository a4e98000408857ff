"""What is said of a metric's samples: centre, interval, spread, shape. Pure, seeded, numpy only.

Never raises for data: what cannot be told is None, and ``reason`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.statistics.bootstrap import ONE_ATTEMPT_NOTE, central, centre_draws, why_not
from orchestrator.statistics.distribution import (
    is_bimodal,
    median_absolute_deviation,
    percentile,
    tukey_outliers,
)
from orchestrator.statistics.medians import Series, median_ci
from orchestrator.statistics.repetitions import lengths_of, repetitions_in


@dataclass(frozen=True)
class Summary:
    """Statistics of one metric of one trial, over all its attempts.

    Attributes
    ----------
    n, attempts : int
        Samples in all, and attempts that have any.
    median : float or None
        Of one attempt, its samples' median; of several, the mean of their medians.
    ci_low, ci_high : float or None
        Interval of ``median`` at ``confidence``; None where it cannot be known.
    confidence : float
        Of the interval, 0.95 by default.
    mean, std, min, max : float or None
        Over all samples; ``std`` with n - 1, None for one sample.
    mad : float or None
        Median absolute deviation, not scaled.
    p95, p99 : float or None
        None below 200 and 1,000 samples.
    outliers_mild, outliers_severe : int
        Outside Tukey's fences at 1.5 and 3 interquartile ranges; each sample counted once.
    bimodal : bool
        See :func:`orchestrator.statistics.distribution.is_bimodal`.
    reason, note : str or None
        Why a figure is None; what to keep in mind about the interval.
    """

    n: int
    attempts: int = 0
    median: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    mean: float | None = None
    std: float | None = None
    mad: float | None = None
    min: float | None = None
    max: float | None = None
    p95: float | None = None
    p99: float | None = None
    outliers_mild: int = 0
    outliers_severe: int = 0
    bimodal: bool = False
    confidence: float = 0.95
    reason: str | None = None
    note: str | None = None


def _of_one(samples: int) -> str:
    one = "one sample" if samples == 1 else "one repetition, whose samples follow each other"
    return f"{one}: its uncertainty cannot be known"


def summarise(values: Series, *, confidence: float = 0.95, resamples: int = 10_000) -> Summary:
    """Statistics of one attempt's samples; the interval is that of their median."""
    return summarise_attempts([values], confidence=confidence, resamples=resamples)


def summarise_by(protocol: Mapping[str, Any], values: Series) -> Summary:
    """:func:`summarise` with the ``confidence`` and ``resamples`` of an identity's ``protocol``."""
    return summarise(
        values,
        confidence=float(protocol.get("confidence", 0.95)),
        resamples=int(protocol.get("resamples", 10_000)),
    )


def summarise_attempts(
    attempts: Sequence[Series], *, confidence: float = 0.95, resamples: int = 10_000
) -> Summary:
    """Statistics over attempts, each a series of samples; the interval is hierarchical.

    Parameters
    ----------
    attempts : sequence of series
        Samples of each attempt, lengths may differ; those without samples are passed over. One
        that is :class:`~orchestrator.statistics.repetitions.ByRepetition` is resampled by them.
    confidence : float
        Of the central interval.
    """
    having = [a for a in attempts if len(a)]
    usable = [np.asarray(a, dtype=np.float64) for a in having]
    n = sum(a.size for a in usable)
    reason = why_not(usable)
    if reason is not None:
        return Summary(n, len(usable), confidence=confidence, reason=reason)
    pooled = np.concatenate(usable)
    centre = float(np.mean([np.median(a) for a in usable]))
    low = high = None
    known = sum(map(repetitions_in, having)) > 1
    if known and len(having) == 1 and lengths_of(having[0]) is None:
        centre, low, high = median_ci(usable[0], confidence)
    elif known:
        centre, draws = centre_draws(having, resamples=resamples)
        low, high = central(draws, confidence)
    mild, severe = tukey_outliers(pooled)
    return Summary(
        n=n,
        attempts=len(usable),
        median=centre,
        ci_low=low,
        ci_high=high,
        mean=float(pooled.mean()),
        std=float(pooled.std(ddof=1)) if n > 1 else None,
        mad=median_absolute_deviation(pooled),
        min=float(pooled.min()),
        max=float(pooled.max()),
        p95=percentile(pooled, 95),
        p99=percentile(pooled, 99),
        outliers_mild=mild,
        outliers_severe=severe,
        bimodal=is_bimodal(pooled),
        confidence=confidence,
        reason=None if known else _of_one(n),
        note=ONE_ATTEMPT_NOTE if known and len(usable) == 1 else None,
    )
