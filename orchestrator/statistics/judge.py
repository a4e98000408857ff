"""Decides what the ratio of two trials means: the only place that does. Every view renders it.

::

    R    centre of new / centre of base, with its hierarchical bootstrap interval
    tau  max(3 %, 2 x the A/A noise recorded for this hardware)

    interval of R past 1 + tau, or under 1 / (1 + tau)   improvement or regression
    interval within these two                            equivalent
    interval across one of them, or none to be had       inconclusive
    no samples that may be set against each other        incomparable

The band is symmetric about 1 for ratios, so swapping the sides mirrors the finding. How the
interval is made: :mod:`orchestrator.statistics.bootstrap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

from orchestrator.statistics.items import chance_of_more, paired_ratio
from orchestrator.statistics.repetitions import repetitions_in

Better: TypeAlias = Literal["lower", "higher"]
Finding: TypeAlias = Literal[
    "improvement", "regression", "equivalent", "inconclusive", "incomparable"
]
Side: TypeAlias = Sequence[tuple[float, ...]]

TOLERANCE = 0.03
NOISE_FACTOR = 2.0
#: Of each end of the interval, which makes it the central 90 % one: a finding is a statement about
#: one end, or one about either (two one-sided tests, Schuirmann 1987).
CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Judged:
    """What a ratio means.

    Attributes
    ----------
    finding : str
        ``improvement``, ``regression``, ``equivalent``, ``inconclusive`` or ``incomparable``.
    tau : float
        Relative change that counts as one.
    ratio, ci_low, ci_high : float or None
        New over base and its interval; ``reason`` says why one is missing. Of exact
        values both ends are the ratio itself.
    p_worse : float or None
        Of "worse by no more than ``tau``"; small where new is worse by more.
    reason, note : str or None
        Why the finding is not more than it is; what to keep in mind about the interval.
    """

    finding: Finding
    tau: float
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p_worse: float | None = None
    reason: str | None = None
    note: str | None = None


def tolerance(noise: float | None) -> float:
    """``tau = max(3 %, 2 x A/A noise)``.

    Parameters
    ----------
    noise : float or None
        Relative standard deviation between attempts of one trial on this hardware; None where
        unknown.
    """
    return max(TOLERANCE, NOISE_FACTOR * (noise or 0.0))


def incomparable(reason: str, noise: float | None = None) -> Judged:
    """The finding about two sides that may not be compared."""
    return Judged("incomparable", tolerance(noise), reason=reason)


def judge(
    new: Side,
    base: Side,
    *,
    better: Better | None,
    exact: bool = False,
    noise: float | None = None,
    in_rounds: bool = False,
    confidence: float = CONFIDENCE,
) -> Judged:
    """What the ratio of ``new`` to ``base`` means.

    Parameters
    ----------
    new, base : sequence of tuple of float
        Samples of each attempt that has any; a quantity that an attempt has once is one sample.
    better : str or None
        ``lower`` or ``higher``; of a metric without a good direction no change is called one.
    exact : bool
        The values do not scatter by what they are: where they indeed do not, one a side decides.
    noise : float, optional
        Relative A/A noise of this hardware. Also the spread between processes that is assumed where
        each side has one attempt.
    in_rounds : bool
        The n-th attempts of both sides were made in turn.
    confidence : float
        Of each end of the interval; more than usual for whoever asks many times and follows each
        answer.

    Returns
    -------
    Judged
        The same for the same samples, whoever asks.
    """
    tau = tolerance(noise)
    if not new or not base:
        return incomparable(f"no samples of {'the baseline' if new else 'the new attempts'}", noise)
    if exact and (levels := _levels(new, base)) is not None:
        return _exact(*levels, tau, better)
    sides = tuple(map(_kept, new)), tuple(map(_kept, base))
    # One order for both directions: then the same draws answer for A over B and for B over A.
    if sides[0] < sides[1]:
        found = _sampled(sides[1], sides[0], tau, _other(better), noise, in_rounds, confidence)
        return _mirrored(found)
    return _sampled(*sides, tau, better, noise, in_rounds, confidence)


def judge_items(
    new: Sequence[float],
    base: Sequence[float],
    *,
    better: Better | None,
    noise: float | None = None,
) -> Judged:
    """What the ratio of the means of scores means: of the same items, (items,) each.

    Sampling error is that of the items: how far another choice of them might have moved the ratio.
    """
    tau = tolerance(noise)
    found = paired_ratio(new, base, 2.0 * CONFIDENCE - 1.0)
    if found.reason is not None:
        return Judged("inconclusive", tau, found.ratio, reason=found.reason)
    p_above = chance_of_more(new, base, 1.0 + tau)
    # Less by that much is the other side more.
    p_below = chance_of_more(base, new, 1.0 + tau)
    p_worse = {"lower": p_above, "higher": p_below}.get(better or "")
    judged = Judged("inconclusive", tau, found.ratio, found.ci_low, found.ci_high, p_worse)
    return _found(replace(judged, note=f"paired by item, {len(new)} items"), better)


def judge_levels(
    new: float,
    base: float,
    *,
    error: float,
    freedom: int,
    better: Better | None,
    noise: float | None = None,
) -> Judged:
    """What the ratio of two levels of one series means, both positive.

    Parameters
    ----------
    error : float
        Relative standard error of the ratio.
    freedom : int
        Degrees of freedom that it is known from: all values of the series have a part in it.
    """
    from orchestrator.statistics.tail import student_quantile, tail

    tau, ratio = tolerance(noise), new / base
    if not freedom:
        reason = "too few runs: its uncertainty cannot be known"
        return Judged("inconclusive", tau, ratio, reason=reason)
    reach = math.exp(min(student_quantile(CONFIDENCE, freedom) * error, 50.0))
    band = math.log1p(tau)
    p_worse = {
        "lower": tail(math.log(ratio) - band, error, freedom),
        "higher": tail(-math.log(ratio) - band, error, freedom),
    }.get(better or "")
    return _found(Judged("inconclusive", tau, ratio, ratio / reach, ratio * reach, p_worse), better)


def _kept(samples: Sequence[float]) -> tuple[float, ...]:
    return samples if isinstance(samples, tuple) else tuple(samples)


def _levels(new: Side, base: Side) -> tuple[float, float] | None:
    """The one value of either side; None where one has several: it does scatter."""
    values = [{value for samples in side for value in samples} for side in (new, base)]
    return (values[0].pop(), values[1].pop()) if all(len(v) == 1 for v in values) else None


def _exact(new: float, base: float, tau: float, better: Better | None) -> Judged:
    if new == base:
        ratio = 1.0 if base else None
        return Judged("equivalent", tau, ratio, ratio, ratio)
    if new <= 0.0 or base <= 0.0:
        reason = "a median is not positive: there is no ratio"
        return Judged("inconclusive", tau, reason=reason)
    ratio = new / base
    if not 0.0 < ratio < math.inf:
        return Judged("inconclusive", tau, reason="too far apart for a ratio")
    return _found(Judged("inconclusive", tau, ratio, ratio, ratio), better)


@lru_cache(maxsize=1 << 15)
def _sampled(
    new: Side,
    base: Side,
    tau: float,
    better: Better | None,
    noise: float | None,
    in_rounds: bool,
    confidence: float,
) -> Judged:
    # Imported here: numpy is not needed to draw a progress line or to print help.
    from orchestrator.statistics.bootstrap import ratio_ci

    # A spread between processes that is assumed does not stand for what one sample cannot show.
    alone = len(new) == len(base) == 1 and 1 in map(repetitions_in, (new[0], base[0]))
    if not alone and not any(map(any, (*new, *base))):
        return Judged("equivalent", tau)  # zeros have no ratio, and are the same
    found = ratio_ci(
        new,
        base,
        confidence=2.0 * confidence - 1.0,
        tolerance=tau,
        between=None if alone else noise,
        in_rounds=in_rounds,
        resamples=RESAMPLES,
    )
    if found.ci_low is None:
        return Judged("inconclusive", tau, found.ratio, reason=found.reason)
    judged = Judged(
        "inconclusive",
        tau,
        found.ratio,
        found.ci_low,
        found.ci_high,
        {"lower": found.p_above, "higher": found.p_below}.get(better or ""),
        note=found.note,
    )
    return _found(judged, better)


def _found(judged: Judged, better: Better | None) -> Judged:
    """``judged``, which has an interval, with what it means."""
    assert judged.ci_low is not None
    assert judged.ci_high is not None
    above, below = 1.0 + judged.tau, 1.0 / (1.0 + judged.tau)
    if below <= judged.ci_low and judged.ci_high <= above:
        return replace(judged, finding="equivalent")
    if better is None:
        return replace(judged, reason="neither more nor less of it is known to be better")
    if judged.ci_low > above:
        return replace(judged, finding="regression" if better == "lower" else "improvement")
    if judged.ci_high < below:
        return replace(judged, finding="improvement" if better == "lower" else "regression")
    return judged


def _other(better: Better | None) -> Better | None:
    return {"lower": "higher", "higher": "lower"}.get(better or "")  # type: ignore[return-value]


def _mirrored(judged: Judged) -> Judged:
    """What A over B means, from what B over A means in the opposite direction of better."""
    if judged.ratio is None:
        return judged
    low, high = judged.ci_low, judged.ci_high
    return replace(
        judged,
        ratio=1.0 / judged.ratio,
        ci_low=None if high is None else 1.0 / high,
        ci_high=None if low is None else 1.0 / low,
    )
