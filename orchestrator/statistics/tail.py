"""Probabilities too small for resampling to see: the tails of Student's t and of the normal."""

from __future__ import annotations

import math

import numpy as np

# Of the quadrature over the logarithm of chi-squared. The left end is far enough for one degree of
# freedom: what lies beyond has a probability of 1e-13.
_LOWEST_LOG = -60.0
_POINTS = 800


def tail(beyond: float, sd: float, nu: float) -> float:
    """``P(sd t(nu) >= beyond)``.

    Given the chi-squared under Student's t the rest is normal, so one integral is left.

    Parameters
    ----------
    beyond : float
        May be negative.
    sd : float
        Not negative; 0 leaves no spread at all.
    nu : float
        Positive; infinite for the normal.
    """
    if math.isinf(nu) or not sd:
        return _normal_tail(beyond, sd)
    highest = nu + 12.0 * math.sqrt(2.0 * nu) + 60.0
    logs = np.linspace(_LOWEST_LOG, math.log(highest), _POINTS)
    chi2 = np.exp(logs)
    weights = np.exp(nu / 2.0 * (logs - math.log(nu)) - (chi2 - nu) / 2.0)
    sds = sd * np.sqrt(nu / chi2)
    tails = np.array([_normal_tail(beyond, each) for each in sds.tolist()])
    return float((weights * tails).sum() / weights.sum())


def _normal_tail(beyond: float, sd: float) -> float:
    if not sd:
        return 0.0 if beyond > 0.0 else 1.0
    return 0.5 * math.erfc(beyond / sd / math.sqrt(2.0))
