"""Servers under load, simulated, whose capacity is known: what a search for it should find."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Requests before those that are measured: the queue starts empty.
_WARM_UP = 300
# Of the batching server, in steps of an empty one: what each request in flight adds to a step.
_STEP_GROWTH = 0.12
_LEAST_TOKENS, _MOST_TOKENS = 4, 16
_SLOTS = 24
_TTFT_LIMIT, _TPOT_LIMIT = 7.0, 3.0


def md1(
    rates: Array,
    requests: int,
    rng: np.random.Generator,
    *,
    limit: float,
    service: Array | float = 1.0,
) -> dict[str, Array]:
    """One server, a fixed service time, Poisson arrivals; by Lindley's recursion.

    Parameters
    ----------
    rates : array of float
        Arrivals per unit of time, one for each attempt: ``(attempts,)``.
    requests : int
        Measured ones of an attempt.
    limit : float
        Of the time to first token: waiting and service.
    service : array of float
        Service times, ``(attempts,)``.

    Returns
    -------
    dict of str to array
        Of each limit how much of it each request used, ``(attempts, requests)``.
    """
    total = _WARM_UP + requests
    arrivals = np.cumsum(rng.exponential(size=(len(rates), total)) / rates[:, None], axis=1)
    each = np.broadcast_to(np.asarray(service, dtype=np.float64), (len(rates),))[:, None]
    # Work offered less time passed; its rise above its lowest point so far waits.
    ahead = np.arange(total) * each - arrivals
    waits = ahead - np.minimum.accumulate(ahead, axis=1)
    return {"ttft_s": ((waits + each) / limit)[:, _WARM_UP:]}


@lru_cache
def md1_capacity(target: float, limit: float, wander: float = 0.0) -> float:
    """The rate at which a share ``target`` of an M/D/1 queue's requests meet ``limit``.

    By Erlang's formula for the waiting time.

    Parameters
    ----------
    wander : float
        Standard deviation of the logarithm of the service time between attempts; the share is that
        of all attempts.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)

    def share(rate: float) -> float:
        services = np.exp(wander * nodes)
        met = [_waits_at_most(limit / s - 1.0, rate * s) for s in services.tolist()]
        return float(weights @ met / weights.sum())

    low, high = 0.01, 0.999 * math.exp(-5.0 * wander)
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if share(middle) > target else (low, middle)
    return low


def _waits_at_most(time: float, load: float) -> float:
    """``P(W <= time)`` of an M/D/1 queue, time in services (Erlang 1909)."""
    if load >= 1.0 or time < 0.0:
        return 0.0
    terms = (
        (-load * (time - k)) ** k / math.factorial(k) * math.exp(load * (time - k))
        for k in range(math.floor(time) + 1)
    )
    return (1.0 - load) * math.fsum(terms)


def batching(rates: Array, requests: int, rng: np.random.Generator) -> dict[str, Array]:
    """A server that decodes all requests in flight together, a token of each a step.

    A step takes the longer the more are in flight; arrivals wait for the next step, and for a free
    slot where all are taken. Poisson arrivals, lengths uniform. Parameters and result as of
    :func:`md1`.
    """
    attempts, total = len(rates), _WARM_UP // 3 + requests
    arrivals = np.cumsum(rng.exponential(size=(attempts, total)) / rates[:, None], axis=1)
    tokens = rng.integers(_LEAST_TOKENS, _MOST_TOKENS + 1, size=(attempts, total))
    row = np.arange(attempts)
    due = np.pad(arrivals, ((0, 0), (0, 1)), constant_values=np.inf)
    begun = np.zeros((attempts, total), dtype=np.int64)
    following, in_flight = np.zeros(attempts, dtype=np.int64), np.zeros(attempts, dtype=np.int64)
    # How many end after so many steps more, by the step modulo the longest request.
    ending = np.zeros((attempts, _MOST_TOKENS + 1), dtype=np.int64)
    now, ends = arrivals[:, 0], [arrivals[:, 0]]
    while following.min() < total or in_flight.any():
        step = len(ends) - 1
        while True:
            at = np.flatnonzero((due[row, following] <= now) & (in_flight < _SLOTS))
            if not at.size:
                break
            request = following[at]
            begun[at, request] = step
            ending[at, (step + tokens[at, request]) % (_MOST_TOKENS + 1)] += 1
            in_flight[at] += 1
            following[at] += 1
        later = np.where(following < total, np.maximum(now, due[row, following]), now)
        now = np.where(in_flight > 0, now + 1.0 + _STEP_GROWTH * in_flight, later)
        ends.append(now)
        slot = (step + 1) % (_MOST_TOKENS + 1)
        in_flight -= ending[:, slot]
        ending[:, slot] = 0
    times, column = np.array(ends), row[:, None]
    first = times[begun + 1, column]
    last = times[begun + tokens, column]
    measured = np.s_[:, -requests:]
    return {
        "ttft_s": ((first - arrivals) / _TTFT_LIMIT)[measured],
        "tpot_s": ((last - first) / (tokens - 1) / _TPOT_LIMIT)[measured],
    }


@lru_cache
def batching_capacity() -> float:
    """The rate at which 95 % of the batching server's requests meet both limits.

    By a parabola through the log odds of long simulations around it.
    """
    tried = np.repeat(np.linspace(0.38, 0.44, 4), 300)
    used = batching(tried, 1_000, np.random.default_rng(1))
    met = np.maximum(used["ttft_s"], used["tpot_s"]) <= 1.0
    rates = np.unique(tried)
    share = np.array([met[tried == rate].mean() for rate in rates])
    curve = np.polyfit(np.log(share / (1.0 - share)), rates, 2)
    return float(np.polyval(curve, math.log(19.0)))
