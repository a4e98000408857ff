"""The share of requests that met their limits, and its bounds: requests of a queue are dependent.

Method
------
A bound of a share is binomial, with an effective number of requests in place of the number: the
number over the design effect, the factor by which dependence widens the variance (Kish, *Survey
Sampling*, 1965; Korn and Graubard, "Confidence intervals for proportions with small expected number
of positive counts estimated from cluster survey data", *Survey Methodology* 24, 1998). Misses of a
queue come in clumps: near capacity 200 requests may be worth five.

*The design effect* is what batches of requests vary by (batch means; Law and Kelton, *Simulation
Modeling and Analysis*, 9.5), over what independent ones would. Batches are attempts, their halves
and quarters; the largest counts. Attempts are among them, so what differs between attempts (a
machine that is slower today) is in it. Few misses, or none, show nothing of how they clump; so it
is also measured on each level's own worst requests, whether or not they missed: on those beyond the
quantile that the target asks about (for a target of 95 % the worst twentieth), twice and four
times as many. The largest of all is used.

*Its error.* Samples with few clumps look both better and less variable than the level is, samples
with many both worse and more variable: passes are claimed too easily, failures too rarely. So a
pass is judged at 1.3 times the design effect, a failure at 0.8 times, and p values are those of
Student's t with four degrees of freedom an attempt. The three constants are chosen by simulation:
M/D/1 queues with limits of 5 and 10 services and a server with continuous batching, with and
without a service time that varies by 3 % between attempts; 3 to 40 attempts of 100, 200 and 400
requests; at the capacity itself, where a pass and a failure are both wrong. Of bounds at 95 %,
passes were wrong in 2.8 % (6.0 % in the worst of 126 cases), failures in 2.8 % (5.5 %); of those at
99.5 %, in 0.3 % (1.1 %) and 0.2 % (0.5 %). The target was 95 %; those of 90 and 99 % do no worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.medians import FloatArray
from orchestrator.statistics.tail import beta_below, tail

_PASS_WIDENING = 1.3
_FAIL_WIDENING = 0.8
_FREEDOM_OF_ATTEMPT = 4
# Times the misses that the target allows; no more than half of all requests.
_WORST = (1.0, 2.0, 4.0)
# Batches of an attempt.
_PARTS = (1, 2, 4)
# Beyond it a normal's tail is 0 in double precision.
_FARTHEST = 37.0


@dataclass(frozen=True)
class Attainment:
    """Attainment of one level over its attempts.

    Attributes
    ----------
    requests, attempts : int
    share : float
        Of the requests, those that met every limit.
    design_effect : float
        At least 1.
    target : float
        The attainment asked for.
    """

    requests: int
    attempts: int
    share: float
    design_effect: float
    target: float

    @property
    def effective_requests(self) -> float:
        """Independent requests that would know the share as well."""
        return self.requests / self.design_effect

    def bounds(self, error: float) -> tuple[float, float]:
        """Lower and upper bound of the attainment, each wrong with the chance ``error``."""
        return (
            _where(lambda share: self._p_pass(share) - error),
            _where(lambda share: error - self._p_fail(share)),
        )

    @cached_property
    def p_pass(self) -> float:
        """How likely a level that just meets the target looks this good or better."""
        return self._p_pass(self.target)

    @cached_property
    def p_fail(self) -> float:
        """How likely a level that just meets the target looks this bad or worse."""
        return self._p_fail(self.target)

    def times_to_decide(self, error: float, luck: float = 0.0) -> float:
        """How many times as many requests would decide with the chance ``error`` to be wrong.

        Infinite where the share is the target.

        Parameters
        ----------
        luck : float
            How much further from the target the share turns out to be, in standard errors.
        """
        widening = _PASS_WIDENING if self.share > self.target else _FAIL_WIDENING
        variance = self.target * (1.0 - self.target) * widening / self.effective_requests
        apart = abs(self.share - self.target) / math.sqrt(variance) + luck
        return (NormalDist().inv_cdf(error) / apart) ** 2 if apart else math.inf

    def _p_pass(self, target: float) -> float:
        worth = self.effective_requests / _PASS_WIDENING
        met = self.share * worth
        return self._student(beta_below(target, met, worth - met + 1.0))

    def _p_fail(self, target: float) -> float:
        worth = self.effective_requests / _FAIL_WIDENING
        met = self.share * worth
        return self._student(beta_below(1.0 - target, worth - met, met + 1.0))

    def _student(self, p: float) -> float:
        z = -NormalDist().inv_cdf(p) if 1e-300 < p < 1.0 else math.copysign(_FARTHEST, 0.5 - p)
        return tail(z, 1.0, _FREEDOM_OF_ATTEMPT * self.attempts)


def attainment(attempts: Sequence[ArrayLike], target: float) -> Attainment:
    """Attainment of a level, by the method of this module.

    Parameters
    ----------
    attempts : sequence of array
        Of each attempt its requests in the order they were due, ``(requests,)``: how much of its
        limit each used, the limit it used most of; at most 1 is met, infinite is one that was
        never answered.
    target : float
        The attainment that is asked for, between 0 and 1.

    Raises
    ------
    ValueError
        There is no request.
    """
    used = [np.asarray(each, dtype=np.float64) for each in attempts]
    used = [each for each in used if each.size]
    if not used:
        raise ValueError("no request: attainment is a share of requests")
    pooled = np.concatenate(used)
    share = float((pooled <= 1.0).mean())
    effect = _design_effect(pooled, [each.size for each in used], target)
    return Attainment(pooled.size, len(used), share, effect, target)


def _design_effect(pooled: FloatArray, sizes: list[int], target: float) -> float:
    """Variance of the mean over that of independent requests, the largest of all ways to see it."""
    n = pooled.size
    shares = {min(0.5, times * (1.0 - target)) for times in _WORST}
    ranks = sorted({max(0, round(n * (1.0 - share)) - 1) for share in shares})
    thresholds = np.array([1.0, *np.partition(pooled, ranks)[ranks].tolist()])
    beyond = pooled > thresholds[:, None]
    mean = beyond.mean(axis=1)
    some = (mean > 0.0) & (mean < 1.0)
    if not some.any():
        return 1.0
    mean = mean[some, None]
    counts = np.pad(np.cumsum(beyond[some], axis=1), ((0, 0), (1, 0)))
    starts, lengths = np.cumsum([0, *sizes[:-1]])[:, None], np.array(sizes)[:, None]
    largest = 1.0
    for parts in _PARTS:
        edges = starts + lengths * np.arange(parts + 1) // parts
        batches = edges[:, :-1].size
        if batches < 2:
            continue
        size = np.diff(edges, axis=1).ravel()
        excess = np.diff(counts[:, edges], axis=2).reshape(len(mean), -1) - mean * size
        variance = (excess**2).sum(axis=1) * batches / (batches - 1)
        largest = max(largest, float((variance / (n * mean * (1.0 - mean)).ravel()).max()))
    return largest


def _where(rises: Callable[[float], float]) -> float:
    """Where a function of a share that rises crosses zero; an end where it does not."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rises(middle) < 0.0 else (low, middle)
    return (low + high) / 2.0
