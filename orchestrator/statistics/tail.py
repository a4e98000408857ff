"""Probabilities too small for resampling to see: the tail of noise plus a spread known from few."""

from __future__ import annotations

import math

import numpy as np

# Of the quadrature over the logarithm of chi-squared. The left end is far enough for one degree of
# freedom: what lies beyond has a probability of 1e-13.
_LOWEST_LOG = -60.0
_POINTS = 800


def tail(beyond: float, noise_sd: float, spread_sd: float, nu: float) -> float:
    """``P(N(0, noise_sd^2) + spread_sd t(nu) >= beyond)`` with independent parts.

    This is what the draws of :mod:`orchestrator.statistics.bootstrap` tend to for attempts of
    normal medians: noise that is known, and a spread between attempts known from ``nu`` degrees of
    freedom. Given the chi-squared under Student's t the sum is normal, so one integral is left.

    Parameters
    ----------
    beyond : float
        May be negative.
    noise_sd, spread_sd : float
        Not negative; where both are 0 the sum is 0.
    nu : float
        Positive; infinite for a spread that is known.
    """
    if not spread_sd or math.isinf(nu):
        return _normal_tail(beyond, math.hypot(noise_sd, spread_sd))
    highest = nu + 12.0 * math.sqrt(2.0 * nu) + 60.0
    logs = np.linspace(_LOWEST_LOG, math.log(highest), _POINTS)
    chi2 = np.exp(logs)
    weights = np.exp(nu / 2.0 * (logs - math.log(nu)) - (chi2 - nu) / 2.0)
    sds = np.sqrt(noise_sd**2 + spread_sd**2 * nu / chi2)
    tails = np.array([_normal_tail(beyond, sd) for sd in sds.tolist()])
    return float((weights * tails).sum() / weights.sum())


def _normal_tail(beyond: float, sd: float) -> float:
    if not sd:
        return 0.0 if beyond > 0.0 else 1.0
    return 0.5 * math.erfc(beyond / sd / math.sqrt(2.0))
