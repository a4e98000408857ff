"""Probabilities too small for resampling to see: tails of Student's t, the normal and the beta."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

# Of the quadrature over the logarithm of chi-squared. The left end is far enough for one degree of
# freedom: what lies beyond has a probability of 1e-13.
_LOWEST_LOG = -60.0
_POINTS = 800
# Of the continued fraction; it needs some root of the larger parameter.
_MOST_TERMS = 10_000
# The logarithm of the least number that is told from 0.
_LEAST_EXPONENT = -700.0


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


def beta_below(x: float, a: float, b: float) -> float:
    """``P(B <= x)`` of a beta variable: the regularised incomplete beta function ``I_x(a, b)``.

    By its continued fraction (DLMF 8.17.22) in Lentz's form. ``I_p(k, n - k + 1)`` is the chance of
    ``k`` successes or more in ``n`` trials, and stays so where neither is a whole number.

    Parameters
    ----------
    x : float
        Between 0 and 1.
    a, b : float
        Positive; where one is 0 the variable is that end.
    """
    if a <= 0.0 or x >= 1.0:
        return 1.0
    if b <= 0.0 or x <= 0.0:
        return 0.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - beta_below(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    fraction, c, d = 1.0, 1.0, 0.0
    for index in range(_MOST_TERMS):
        m = index // 2
        if index == 0:
            term = 1.0
        elif index % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _not_zero(1.0 + term * d)
        c = _not_zero(1.0 + term / c)
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return math.exp(log_front) * (fraction - 1.0) / a


@lru_cache(maxsize=1 << 14)
def beta_quantile(chance: float, a: float, b: float) -> float:
    """The ``x`` of which :func:`beta_below` is ``chance``; small ones to as many digits as others.

    Parameters
    ----------
    chance : float
        Between 0 and 1, neither of them.
    a, b : float
        Positive.
    """
    low, high = _LEAST_EXPONENT, 0.0  # of the logarithm
    while high - low > 1e-12 * max(1.0, -low):
        middle = (low + high) / 2.0
        low, high = (middle, high) if beta_below(math.exp(middle), a, b) < chance else (low, middle)
    return math.exp(high)


def student_quantile(share: float, nu: float) -> float:
    """The ``t`` that Student's t is below with the chance ``share``, one of at least a half.

    Parameters
    ----------
    nu : float
        Positive; infinite for the normal.
    """
    if share == 0.5:
        return 0.0
    if math.isinf(nu):
        return NormalDist().inv_cdf(share)
    # P(|t| > x) = I_{nu / (nu + x^2)}(nu / 2, 1 / 2), DLMF 8.17.
    return math.sqrt(nu * (1.0 / beta_quantile(2.0 * (1.0 - share), nu / 2.0, 0.5) - 1.0))


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
