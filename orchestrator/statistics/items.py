"""The ratio of two means over the same items, each item its own pair. Pure.

Two formats of one model mostly agree item by item; what is left when one is subtracted from the
other scatters far less than either. The interval is Fieller's (1954): the ratios ``r`` for which
the differences ``new - r * base`` have a mean that zero is not too far from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import covariance, fmean, variance

#: Fewer have no interval: their mean need not be normal.
LEAST_ITEMS = 30


@dataclass(frozen=True)
class PairedRatio:
    """Mean of the new over mean of the base.

    Attributes
    ----------
    ratio, ci_low, ci_high : float or None
        None where ``reason`` says why.
    reason : str or None
    """

    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    reason: str | None = None


def paired_ratio(new: Sequence[float], base: Sequence[float], confidence: float) -> PairedRatio:
    """The ratio of the means of ``new`` and ``base``, (items,) each, paired item by item.

    Swapping them gives the reciprocals.
    """
    from orchestrator.statistics.tail import student_quantile

    of_new, of_base = fmean(new), fmean(base)
    if of_new <= 0.0 or of_base <= 0.0:
        return PairedRatio(reason="a mean is not positive: there is no ratio")
    count, ratio = len(new), of_new / of_base
    if count < LEAST_ITEMS:
        return PairedRatio(ratio, reason=f"{count} items: {LEAST_ITEMS} are needed for an interval")
    share = student_quantile(0.5 + confidence / 2.0, count - 1) ** 2 / count
    a = of_base**2 - share * variance(base)
    b = of_base * of_new - share * covariance(base, new)
    c = of_new**2 - share * variance(new)
    if a <= 0.0 or c <= 0.0:
        return PairedRatio(ratio, reason="the items scatter too much for an interval")
    root = math.sqrt(max(b * b - a * c, 0.0))
    # Not as (b - root) / a: where the sides are equal nearly all of its digits cancel.
    return PairedRatio(ratio, c / (b + root), (b + root) / a)


def chance_of_more(new: Sequence[float], base: Sequence[float], ratio: float) -> float:
    """How likely differences like these or larger are, if the true ratio were ``ratio``."""
    from orchestrator.statistics.tail import tail

    differences = [n - ratio * b for n, b in zip(new, base, strict=True)]
    error = math.sqrt(variance(differences) / len(differences))
    return tail(fmean(differences), error, len(differences) - 1.0)
