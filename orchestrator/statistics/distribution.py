"""The shape of a series: outliers, spread, percentiles that may be told, bimodality."""

from __future__ import annotations

import math

import numpy as np

from orchestrator.statistics.medians import FloatArray

# A tail percentile needs samples beyond it: ten of them (docs/protocol.md, What is reported).
PERCENTILE_FLOORS = {95: 200, 99: 1_000}

# Two groups are called modes from these on; see is_bimodal.
BIMODAL_LEAST_SAMPLES = 20
BIMODAL_LEAST_SHARE = 0.1
BIMODAL_SEPARATION = 4.0
BIMODAL_SMALL_SAMPLE = 10.0


def percentile(values: FloatArray, rank: int) -> float | None:
    """The ``rank``-th percentile (95 or 99), or None below its floor: never an extrapolation."""
    if values.size < PERCENTILE_FLOORS[rank]:
        return None
    return float(np.percentile(values, rank))


def median_absolute_deviation(values: FloatArray) -> float:
    """Median distance from the median, not scaled to a normal's standard deviation."""
    return float(np.median(np.abs(values - np.median(values))))


def tukey_outliers(values: FloatArray) -> tuple[int, int]:
    """Counts outside Tukey's fences: ``(mild, severe)``.

    Mild lie beyond 1.5 but within 3 interquartile ranges from the nearer quartile, severe beyond 3.
    """
    first, third = np.percentile(values, [25, 75])
    reach = third - first
    beyond = np.maximum(first - values, values - third)
    severe = int((beyond > 3.0 * reach).sum())
    return int((beyond > 1.5 * reach).sum()) - severe, severe


def is_bimodal(values: FloatArray) -> bool:
    """Whether the samples fall into two separate groups, each of at least a tenth of them.

    The series (its logarithm where all values are positive: latencies are skewed) is split in two
    where the sum of squares within the groups is least. It is bimodal if the groups' means are
    further apart than ``4 + 10/n`` of their pooled standard deviation. A normal cut in two gives
    2.65 in the limit and a uniform 3.5. Measured: at most 1 % of normal and log-normal series are
    flagged (n from 20 to 500); 30 % of samples at 5 standard deviations are found in over 80 % of
    series from n = 40 on.
    Fewer than 20 samples cannot show it: False.
    """
    n = values.size
    if n < BIMODAL_LEAST_SAMPLES:
        return False
    ordered = np.sort(np.log(values) if float(values.min()) > 0.0 else values)
    ordered = ordered - ordered.mean()
    sums, squares = np.cumsum(ordered), np.cumsum(ordered**2)
    left = np.arange(1, n)
    within = (squares[:-1] - sums[:-1] ** 2 / left) + (
        (squares[-1] - squares[:-1]) - (sums[-1] - sums[:-1]) ** 2 / (n - left)
    )
    least = max(3, math.ceil(BIMODAL_LEAST_SHARE * n))
    cut = least - 1 + int(np.argmin(within[least - 1 : n - least]))
    apart = float((sums[-1] - sums[cut]) / (n - cut - 1) - sums[cut] / (cut + 1))
    spread = math.sqrt(max(0.0, float(within[cut])) / (n - 2))
    if spread <= 1e-9 * apart:
        # Two exact values (a rounded counter, a cached path) are two modes.
        return apart > 0.0
    return apart / spread > BIMODAL_SEPARATION + BIMODAL_SMALL_SAMPLE / n
