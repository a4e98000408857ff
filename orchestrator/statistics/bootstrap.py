"""Bootstrap of medians: one series, attempts then samples, and the ratio of two trials.

Method
------
*One series.* Its own interval needs no draw (:func:`orchestrator.statistics.medians.median_ci`).
Medians of resamples are drawn exactly, through order statistics, so their cost does not grow with
the number of samples.

*Several attempts* (each a process, the sampling unit). A trial's centre is the mean of its
attempts' medians: each process weighs the same, however many samples it took. A resample draws
attempts with replacement, then samples within each attempt drawn. Done plainly this is wrong in two
ways that small numbers of attempts make large: k attempts resampled show only (k - 1)/k of their
variance, while the spread of their medians, which already holds the noise of sampling within them,
has that noise added once more (Davison and Hinkley, *Bootstrap Methods and their Application*,
3.8). So the drawn attempts' deviations are scaled: by a factor that makes the variance of the draws
equal max(spread of the medians, noise within), and by ``sqrt(nu / chi2_nu)``, drawn anew each
resample, for a spread known from ``nu`` degrees of freedom only (Student's t by another road;
``nu`` is Welch's). Measured on log-normal samples, noise of 0 to 0.7 % between and 0.2 to 3 %
within attempts, 14 to 40 samples each, k = 2, 3, 5 and 10: one-sided 95 % bounds of the ratio hold
in 94.6 to 98.2 % of cases (over 95 % where the noise within dominates: the bootstrap variance of a
median of few samples is too large). In the normal limit the plain double bootstrap's hold in 82.6
to 98.5 %.

*Rounds.* Where both trials' attempts were made in turn (k of each), what slows the machine
for a while slows both of a round. Attempts are then drawn by round, the same rounds for both
trials, and the spread is that of the differences within rounds, with k - 1 degrees of freedom.
On a virtual machine whose host is shared, medians of attempts of two seconds spread by 11 %, halves
of their differences within rounds by 7 % (18 rounds): the same interval from 0.4 as many attempts.

*Small p values.* A p value is the share of draws on the wrong side, as long as some twenty draws
are. Below that it is the tail of Student's t with the standard deviation of the draws
(:mod:`orchestrator.statistics.tail`), held to what the draws allow: a correction over thousands of
tests asks for p values of 1e-5, which 10,000 draws cannot show. Its degrees of freedom are those of
both sides' attempts together, also where the noise within is the larger part: that far out it
matters that the larger of two estimates may be too small. (Welch's are for the interval; with equal
numbers of attempts a side the pooled ones hold without equal variances.) Of rounds it is the
smaller of two such tails, doubled: of the differences, and of the sides as if not made in turn,
which knows its spread from twice as many degrees of freedom. Where no spread is known the degrees
of freedom are those of the noise, about the root of n for the median of n samples.

*Samples of a repetition* (tokens of a sequence) follow each other and are not independent. Where a
series says which repetition its samples are of, repetitions are drawn instead: a draw moves the
share of samples below the median by the mean of what its repetitions show of it, and the resample's
median is the series' own quantile there (Bahadur's representation, with the distribution itself in
place of its density). R of them show (R - 1)/R of their variance and know it from R - 1 degrees of
freedom; deviations are widened for both as those of attempts are. On generated AR(1) series
(coefficients 0 to 0.98, 64 to 256 tokens, 5 to 30 repetitions) 95 % intervals cover in 94.7 to
96.3 % of cases; taken as independent, in 20 to 80 %.

*One attempt* has no spread between processes to show: its interval holds the noise within it only,
unless the other trial has several attempts, or a spread is given (``between``); a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.statistics.medians import FloatArray, IndexArray, Series, bootstrap_medians
from orchestrator.statistics.repetitions import lengths_of, repetitions_in
from orchestrator.statistics.tail import tail

# So many draws make a p value; with fewer the law behind them says it. The smallest that is told.
_COUNTED_DRAWS = 20
_LEAST_P = 1e-300
# Squares of larger numbers, and quotients of their squares, are none in double precision.
_LARGEST = 1e75

# What one attempt cannot show; appended to results that rest on it.
ONE_ATTEMPT_NOTE = "one attempt: the interval holds no spread between processes"
ROUNDS_NOTE = "attempts made in turn: compared round by round"


@dataclass(frozen=True)
class Ratio:
    """Ratio of two trials' centres with its interval.

    Attributes
    ----------
    ratio : float or None
        Centre of ``new`` over centre of ``base``; None where ``reason`` says why.
    ci_low, ci_high : float or None
        Central interval of the confidence asked for; None where it cannot be known.
    p_above, p_below : float or None
        One-sided, of "the ratio is at most 1 + tolerance" and "at least 1 / (1 + tolerance)": small
        where the ratio lies above, below the band.
    reason, note : str or None
        Why something is None; what to keep in mind where nothing is.
    """

    ratio: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    p_above: float | None = None
    p_below: float | None = None
    reason: str | None = None
    note: str | None = None


def central(draws: FloatArray, confidence: float) -> tuple[float, float]:
    """The interval that holds a share ``confidence`` of the draws, as many below it as above."""
    outside = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [outside, 1.0 - outside])
    return float(low), float(high)


@dataclass(frozen=True)
class _Trial:
    """Attempts of one trial, ready to be resampled."""

    attempts: list[Series]
    medians: FloatArray
    noise_within: float  # mean bootstrap variance of one attempt's median
    widening: float = 1.0  # of draws within an attempt: few repetitions show less than they vary
    freedom: float = math.inf  # of the noise within; finite where it rests on few repetitions

    @property
    def centre(self) -> float:
        return float(self.medians.mean())

    @property
    def k(self) -> int:
        return len(self.attempts)

    @property
    def spread(self) -> float:
        """Variance between the attempts' medians; NaN for one attempt."""
        return float(self.medians.var(ddof=1)) if self.k > 1 else math.nan

    def resample(
        self, resamples: int, rng: np.random.Generator, drawn_attempts: IndexArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Mean deviation of drawn attempts from the centre, and of drawn samples within them.

        ``drawn_attempts``, shape ``(k, resamples)``, are drawn here unless given.
        """
        if drawn_attempts is None:
            drawn_attempts = rng.integers(self.k, size=(self.k, resamples))
        within = np.zeros(drawn_attempts.size)
        if all(len(attempt) == 1 for attempt in self.attempts):
            # Of one value each nothing varies within; the generator goes on from where it would.
            rng.random(within.size)
        else:
            flat = drawn_attempts.ravel()
            for index, attempt in enumerate(self.attempts):
                at = np.flatnonzero(flat == index)
                within[at] = bootstrap_medians(attempt, at.size, rng) - self.medians[index]
        between = (self.medians - self.centre)[drawn_attempts].sum(axis=0)
        inside = within.reshape(drawn_attempts.shape).sum(axis=0) / self.k
        if math.isfinite(self.freedom):
            inside *= self.widening * _student(self.freedom, resamples, rng)
        return between / self.k, inside


def _trial(attempts: Sequence[Series], resamples: int, rng: np.random.Generator) -> _Trial:
    kept: list[Series] = [a if lengths_of(a) else np.asarray(a, float) for a in attempts if len(a)]
    pilot = max(200, resamples // 10)  # a variance needs fewer draws than a quantile
    widening, freedom = 1.0, math.inf
    if any(lengths_of(a) for a in kept):
        # One repetition shows nothing of its noise; the others of its kind stand for it.
        counts = [count for a in kept if (count := repetitions_in(a)) > 1]
        if counts:
            freedom = float(sum(count - 1 for count in counts))
            # The share below is looked up at the series' own median, which lies closer to its
            # repetitions than the true one: (R + 1) in place of R makes up for that.
            widening = math.sqrt((sum(counts) + len(counts)) / freedom)
    return _Trial(
        kept,
        np.array([np.median(a) for a in kept]),
        widening**2 * float(np.mean([bootstrap_medians(a, pilot, rng).var() for a in kept])),
        widening,
        freedom,
    )


def centre_of(attempts: Sequence[Series]) -> float | None:
    """The centre of a trial alone, without an interval; None where :func:`why_not` says why."""
    if why_not(attempts) is not None:
        return None
    return float(np.mean([np.median(np.asarray(a, dtype=np.float64)) for a in attempts if len(a)]))


def centre_draws(
    attempts: Sequence[Series], *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, FloatArray]:
    """Centre of a trial and the draws of its hierarchical bootstrap, shape ``(resamples,)``.

    ``attempts`` must hold at least one finite value.
    """
    rng = np.random.default_rng(seed)
    trial = _trial(attempts, resamples, rng)
    between, within = trial.resample(resamples, rng)
    if trial.k > 1 and trial.spread > 0.0:
        # The spread may be small by luck. It is drawn before the noise within is taken off it, so
        # that together they never vary by less than the spread does.
        drawn = _student(trial.k - 1.0, resamples, rng) ** 2 - trial.noise_within / trial.spread
        between *= np.sqrt(np.maximum(0.0, drawn) * trial.k / (trial.k - 1))
    return trial.centre, trial.centre + between + within


def ratio_ci(
    new: Sequence[Series],
    base: Sequence[Series],
    *,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    between: float | None = None,
    in_rounds: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """Ratio of two trials' centres, by the method of this module.

    Parameters
    ----------
    new, base : sequence of series
        Samples of each attempt; attempts without samples are passed over.
    confidence : float
        Of the central interval.
    tolerance : float
        The band that ``p_above`` and ``p_below`` are tested against: this much above 1, and the
        inverse of that below.
    between : float, optional
        Relative standard deviation between attempts known from elsewhere (an A/A record of this
        hardware); used only where both trials have a single attempt.
    in_rounds : bool
        The n-th attempts of both were made in one round; both have as many, two or more.
    """
    for attempts in (new, base):
        reason = why_not(attempts)
        if reason is not None:
            return Ratio(None, reason=reason)
    rng = np.random.default_rng(seed)
    trials = [_trial(side, resamples, rng) for side in (new, base)]
    if any(trial.centre < 1.0 / _LARGEST for trial in trials):
        return Ratio(None, reason="a median is not positive: there is no ratio")
    ratio = trials[0].centre / trials[1].centre
    single = all(trial.k == 1 for trial in trials)
    if single and not between and any(repetitions_in(t.attempts[0]) == 1 for t in trials):
        one = "one sample" if any(len(t.attempts[0]) == 1 for t in trials) else "one repetition"
        return Ratio(ratio, reason=f"{one}: its uncertainty cannot be known")
    # Two attempts far apart have draws without bounds; e**50 is as good as infinite.
    in_rounds = in_rounds and 1 < trials[0].k == trials[1].k
    deviations = (
        _deviations_in_rounds(trials[0], trials[1], resamples, rng)
        if in_rounds
        else _ratio_deviations(trials, between, resamples, rng)
    )
    draws = ratio * np.exp(np.clip(deviations.draws, -50.0, 50.0))
    apart = math.log(ratio)
    band = math.log1p(tolerance)
    return Ratio(
        ratio,
        *central(draws, confidence),
        deviations.p_value(draws <= 1.0 + tolerance, apart - band),
        deviations.p_value(draws >= 1.0 / (1.0 + tolerance), -apart - band),
        note=ROUNDS_NOTE if in_rounds else _note(trials, between),
    )


def why_not(attempts: Sequence[Series]) -> str | None:
    """Why no statistic can be had from ``attempts``, or None if one can."""
    values = [np.asarray(a, dtype=np.float64) for a in attempts if len(a)]
    if not values:
        return "no samples"
    sizes = np.abs(np.concatenate(values))
    for bad, what in (~np.isfinite(sizes), "not finite"), (sizes > _LARGEST, "too large to judge"):
        if bad.any():
            return f"{int(bad.sum())} of {sizes.size} samples {what}"
    return None


def noise_between(attempts: Sequence[Series]) -> float | None:
    """Relative standard deviation of attempts' medians: the A/A noise of one trial.

    None with fewer than two attempts, samples that are not finite, or a centre not positive.
    """
    usable = [a for a in attempts if len(a)]
    if why_not(usable) is not None or len(usable) < 2:
        return None
    medians = np.array([np.median(np.asarray(a, dtype=np.float64)) for a in usable])
    centre = float(medians.mean())
    return float(medians.std(ddof=1)) / centre if centre > 0.0 else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    by_size = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, index in enumerate(by_size):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True)
class _Deviations:
    """Draws of the log ratio's deviation from its centre, and what their tail is read from.

    ``laws`` are standard deviations with their degrees of freedom; each is right by itself.
    """

    draws: FloatArray
    laws: tuple[tuple[float, float], ...]

    @classmethod
    def of_noise(cls, noise: FloatArray, *trials: _Trial) -> _Deviations:
        samples = (repetitions_in(attempt) for trial in trials for attempt in trial.attempts)
        return cls(noise, ((float(noise.std()), sum(map(math.sqrt, samples))),))

    def p_value(self, contradicts: NDArray[np.bool_], beyond: float) -> float:
        """Chance of a deviation of ``beyond`` or more to one side; never 0.

        ``contradicts`` are the draws that far out; see *Small p values* above.
        """
        count, n = int(contradicts.sum()), contradicts.size
        if count >= _COUNTED_DRAWS:
            return (count + 1) / (n + 1)
        reach = 3.0 * math.sqrt(count)
        smallest, largest = max(0.0, count - reach) / n, (count + reach + 1) / (n + 1)
        law = len(self.laws) * min(tail(beyond, sd, nu) for sd, nu in self.laws)
        return max(smallest, min(law, largest), _LEAST_P)


def _ratio_deviations(
    trials: list[_Trial], known: float | None, resamples: int, rng: np.random.Generator
) -> _Deviations:
    between = np.zeros(resamples)
    within = np.zeros(resamples)
    variances: list[float] = []  # of each side's centre, from the spread of its medians; relative
    freedoms: list[int] = []
    resampled = 0.0  # the part of them that plain resampling shows
    noise = 0.0
    for sign, trial, other in ((1, trials[0], trials[1]), (-1, trials[1], trials[0])):
        own_between, own_within = trial.resample(resamples, rng)
        within += sign * own_within / trial.centre
        noise += trial.noise_within / trial.centre**2 / trial.k
        if trial.k > 1:
            between += sign * own_between / trial.centre
            source = trial
        elif other.k > 1:
            # One process against several: it is taken to be as scattered as they are.
            drawn = rng.integers(other.k, size=resamples)
            between += sign * (other.medians[drawn] - other.centre) / other.centre
            source = other
        else:
            continue
        variance = source.spread / source.centre**2 / trial.k
        variances.append(variance)
        freedoms.append(source.k - 1)
        resampled += variance * (source.k - 1) / source.k
    if not variances:
        if known:
            sd = known * math.sqrt(1.0 / trials[0].k + 1.0 / trials[1].k)
            within = within + rng.normal(0.0, sd, size=resamples)
        return _Deviations.of_noise(within, *trials)
    total = sum(variances)
    if total <= 0.0:
        return _Deviations.of_noise(within, *trials)
    scale = math.sqrt(max(0.0, total - noise) / resampled)
    shared = 1 in (trials[0].k, trials[1].k)  # both sides then rest on the same attempts
    nu = (
        float(freedoms[0])
        if shared
        else total**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    )
    spread = scale * between
    pooled = float(freedoms[0] if shared else sum(freedoms))
    sd = math.hypot(float(within.std()), float(spread.std()))
    return _Deviations(within + _student(nu, resamples, rng) * spread, ((sd, pooled),))


def _deviations_in_rounds(
    new: _Trial, base: _Trial, resamples: int, rng: np.random.Generator
) -> _Deviations:
    """As :func:`_ratio_deviations`, of two trials whose n-th attempts share a round."""
    k = new.k
    rounds = rng.integers(k, size=(k, resamples))
    new_between, new_within = new.resample(resamples, rng, rounds)
    base_between, base_within = base.resample(resamples, rng, rounds)
    within = new_within / new.centre - base_within / base.centre
    differences = new.medians / new.centre - base.medians / base.centre
    variance = float(differences.var(ddof=1)) / k
    if variance <= 0.0:
        return _Deviations.of_noise(within, new, base)
    noise = (new.noise_within / new.centre**2 + base.noise_within / base.centre**2) / k
    scale = math.sqrt(max(0.0, variance - noise) / (variance * (k - 1) / k))
    between = new_between / new.centre - base_between / base.centre
    spread = scale * between
    sd = math.hypot(float(within.std()), float(spread.std()))
    apart = (new.spread / new.centre**2 + base.spread / base.centre**2) / k
    laws = ((sd, k - 1.0), (math.sqrt(max(apart, noise)), 2.0 * (k - 1.0)))
    return _Deviations(within + _student(k - 1.0, resamples, rng) * spread, laws)


def _student(nu: float, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Factors that turn a normal deviate into Student's t with ``nu`` degrees of freedom."""
    factors: FloatArray = np.sqrt(nu / rng.chisquare(nu, size=resamples))
    return factors


def _note(trials: list[_Trial], between: float | None) -> str | None:
    if all(trial.k > 1 for trial in trials):
        return None
    if any(trial.k > 1 for trial in trials):
        return "one attempt per side: the other side's spread between processes stands for it"
    if between:
        return f"one attempt per side: a spread of {between:.2%} between processes is assumed"
    return ONE_ATTEMPT_NOTE
