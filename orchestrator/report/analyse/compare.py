"""Compares trials: ratio of medians with its interval, and a verdict a row. Pure functions.

The rule (``docs/protocol.md``): R = median of B over median of A; with tau the tolerance,

- the interval of R entirely past ``1 + tau`` or ``1 - tau``: ``regression`` or ``improvement``,
- entirely within: ``equivalent``, otherwise ``inconclusive``,
- different hardware, weights, or simulated against real: ``incomparable``.

Each of these is a statement about one end of the interval, so ``confidence`` is that of one end:
at 0.95 the interval is the central 90 % one, of which R lies past either end in 5 % of cases (as in
tests of equivalence by two one-sided tests, Schuirmann 1987). A/A pairs are far safer than that,
for their R would have to pass tau as well; ``benchmarks/gate_power.py`` measures both errors. How
the interval is made: :mod:`orchestrator.statistics.bootstrap`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.measure.metric import Absent, Samples, Value
from orchestrator.report.analyse.rounds import rounds_of
from orchestrator.report.analyse.rows import better_when, metric_of

TOLERANCE = 0.03
NOISE_FACTOR = 2.0
CONFIDENCE = 0.95
RESAMPLES = 10_000

Attempts = Mapping[str, Sequence[AttemptReport]]

# What a configuration has rather than what scatters from process to process: one value decides.
EXACT_METRICS = frozenset(
    {
        "kl_to_reference",
        "perplexity",
        "top1_agreement",
        "weights_bits_per_parameter",
        "weights_bytes",
    }
)


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one pair of trials.

    Attributes
    ----------
    hash_a, hash_b : str
        The two trials.
    metric, unit : str
        The metric, and its SI unit.
    median_a, median_b : float or None
        Pooled over attempts; None where a side has no value.
    attempts_a, attempts_b, samples_a, samples_b : int
        What stands behind them.
    tau : float
        Relative tolerance this row was judged by.
    ratio : float or None
        Median of B over median of A.
    ci_low, ci_high : float or None
        Its central interval, each end at the comparison's confidence.
    verdict : str
        ``regression``, ``improvement``, ``equivalent``, ``inconclusive`` or ``incomparable``.
    p_worse : float or None
        Of "B is worse than A by no more than tau"; small where it is worse by more.
    better : str or None
        ``lower`` or ``higher``; None for a metric that has no good direction.
    reason, note : str or None
        Why there is no ratio or no verdict; what to keep in mind about the interval.
    """

    hash_a: str
    hash_b: str
    metric: str
    unit: str
    verdict: str
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    median_a: float | None = None
    median_b: float | None = None
    attempts_a: int = 0
    attempts_b: int = 0
    samples_a: int = 0
    samples_b: int = 0
    p_worse: float | None = None
    tau: float = TOLERANCE
    better: str | None = None
    reason: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Every pair's rows, and what could not be paired.

    Attributes
    ----------
    rows : tuple of ComparedMetric
        A metric of a pair each.
    tau : float
        Relative tolerance: changes within it are no changes.
    confidence : float
        At which each end of an interval holds.
    only_a, only_b : tuple of str
        Hashes of trials that the other side lacks.
    """

    rows: tuple[ComparedMetric, ...]
    tau: float
    confidence: float
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    @property
    def ci_confidence(self) -> float:
        """Confidence of the central interval whose ends hold at ``confidence`` each."""
        return 2.0 * self.confidence - 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form: ``rows`` and the terms they were judged by."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "tau": self.tau,
            "confidence": self.confidence,
            "ci_confidence": self.ci_confidence,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


@dataclass(frozen=True)
class Chosen:
    """The attempts of one pair that may be compared, or why none may."""

    a: tuple[AttemptReport, ...] = ()
    b: tuple[AttemptReport, ...] = ()
    reason: str | None = None
    note: str | None = None


def tolerance(
    noise: float | None, *, least: float = TOLERANCE, factor: float = NOISE_FACTOR
) -> float:
    """``tau = max(3 %, 2 x the A/A noise recorded for this hardware)``.

    Parameters
    ----------
    noise : float or None
        :func:`orchestrator.statistics.summary.noise_between` of A/A attempts; None where unknown.
    """
    return max(least, factor * noise) if noise is not None else least


def compare(
    a: Attempts,
    b: Attempts,
    *,
    tau: float = TOLERANCE,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    allow_different: bool = False,
    metrics: Sequence[str] | None = None,
    between: float | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Compare ``b`` (new) with ``a`` (base).

    Parameters
    ----------
    a, b : mapping of config hash to attempts
        Trials pair by hash; a single trial on each side pairs with the other whatever its hash.
    tau : float
        Tolerance around 1.
    confidence : float
        Of each end of the interval.
    allow_different : bool
        Compare across hardware and weights. Simulated attempts never compare with real ones.
    metrics : sequence of str, optional
        Names of task metrics or telemetry; all task metrics with a direction by default.
    between : float, optional
        Relative spread between processes, used where both sides have a single attempt.
    names : tuple of str
        What reasons call the two sides.
    """
    pairs = pair(a, b)
    rows = [
        row
        for hash_a, hash_b in pairs
        for row in _compare_pair(
            (hash_a, a[hash_a]),
            (hash_b, b[hash_b]),
            metrics=metrics,
            allow_different=allow_different,
            tau=tau,
            confidence=confidence,
            resamples=resamples,
            between=between,
            names=names,
        )
    ]
    paired_a, paired_b = {p[0] for p in pairs}, {p[1] for p in pairs}
    return Comparison(
        tuple(rows),
        tau,
        confidence,
        tuple(h for h in a if h not in paired_a),
        tuple(h for h in b if h not in paired_b),
    )


def pair(a: Attempts, b: Attempts) -> list[tuple[str, str]]:
    """Hashes to compare: the same one on both sides, or the only one of each."""
    shared = [(h, h) for h in a if h in b]
    if not shared and len(a) == 1 and len(b) == 1:
        return [(next(iter(a)), next(iter(b)))]
    return shared


def choose(
    a: Sequence[AttemptReport],
    b: Sequence[AttemptReport],
    *,
    allow_different: bool = False,
    names: tuple[str, str] = ("A", "B"),
) -> Chosen:
    """Attempts that were measured well and under the same conditions.

    Where sides hold attempts of several machines or weights, those of the conditions that both have
    and that most attempts share are compared; a note says so.
    """
    usable = []
    for name, side in zip(names, (a, b), strict=True):
        good = [r for r in side if r.outcome is Outcome.OK and r.verdict.state != "invalid"]
        if not good:
            return Chosen(reason=f"{name} has no valid attempt ({_endings(side)})")
        usable.append(good)
    conditions = [Counter(_conditions(r, allow_different) for r in side) for side in usable]
    shared = conditions[0].keys() & conditions[1].keys()
    if not shared:
        return Chosen(reason=_difference(conditions[0], conditions[1]))
    best = max(shared, key=lambda c: (not c[0], min(side[c] for side in conditions), str(c)))
    kept = [tuple(r for r in side if _conditions(r, allow_different) == best) for side in usable]
    left = sum(map(len, usable)) - sum(map(len, kept))
    note = f"{left} attempts under other conditions left out" if left else None
    return Chosen(kept[0], kept[1], note=note)


def samples_of(attempts: Iterable[AttemptReport], metric: str) -> list[Sequence[float]]:
    """Samples of a metric, a series per attempt that has any; a single value is one sample."""
    found: list[Sequence[float]] = []
    for report in attempts:
        data = metric_of(report, metric)
        if isinstance(data, Samples) and data.values:
            found.append(data.values)
        elif isinstance(data, Value):
            found.append((data.value,))
    return found


def absence(attempts: Iterable[AttemptReport], metric: str) -> str:
    """Why a metric has no samples, as its task said it."""
    for report in attempts:
        data = metric_of(report, metric)
        if isinstance(data, Absent):
            return data.reason
    return "not measured"


def verdict_of(low: float, high: float, tau: float, better: str) -> str:
    """The verdict of an interval of R for a metric of which ``lower`` or ``higher`` is better."""
    if low > 1.0 + tau:
        return "regression" if better == "lower" else "improvement"
    if high < 1.0 - tau:
        return "improvement" if better == "lower" else "regression"
    return "equivalent" if low >= 1.0 - tau and high <= 1.0 + tau else "inconclusive"


def _compare_pair(
    a: tuple[str, Sequence[AttemptReport]],
    b: tuple[str, Sequence[AttemptReport]],
    *,
    metrics: Sequence[str] | None,
    allow_different: bool,
    **terms: Any,
) -> list[ComparedMetric]:
    chosen = choose(a[1], b[1], allow_different=allow_different, names=terms["names"])
    wanted = metrics if metrics is not None else _metrics_with_direction([*a[1], *b[1]])
    rows = []
    for name in wanted:
        unit = _unit([*a[1], *b[1]], name)
        if unit is None:
            continue
        if chosen.reason is not None:
            rows.append(
                ComparedMetric(
                    a[0], b[0], name, unit, "incomparable", tau=terms["tau"], reason=chosen.reason
                )
            )
            continue
        rows.append(_compare_metric(a[0], b[0], name, unit, chosen, **terms))
    return rows


def _compare_metric(
    hash_a: str,
    hash_b: str,
    metric: str,
    unit: str,
    chosen: Chosen,
    *,
    tau: float,
    confidence: float,
    resamples: int,
    between: float | None,
    names: tuple[str, str],
) -> ComparedMetric:
    # Imported here: numpy is not needed to draw a progress line or to print help.
    from orchestrator.statistics.summary import ratio_ci, summarise_attempts

    rounds = rounds_of(chosen.a, chosen.b)
    if rounds:
        chosen = replace(chosen, a=tuple(a for a, _ in rounds), b=tuple(b for _, b in rounds))
    base, new = samples_of(chosen.a, metric), samples_of(chosen.b, metric)
    better = better_when(metric, unit)
    common: dict[str, Any] = {
        "hash_a": hash_a,
        "hash_b": hash_b,
        "metric": metric,
        "unit": unit,
        "attempts_a": len(base),
        "attempts_b": len(new),
        "samples_a": sum(map(len, base)),
        "samples_b": sum(map(len, new)),
        "tau": tau,
        "better": better,
    }
    for name, side, reports in zip(names, (base, new), (chosen.a, chosen.b), strict=True):
        if not side:
            reason = f"{name}: {absence(reports, metric)}"
            return ComparedMetric(**common, verdict="incomparable", reason=reason)
    common["median_a"] = summarise_attempts(base, resamples=1).median
    common["median_b"] = summarise_attempts(new, resamples=1).median
    found = ratio_ci(
        new,
        base,
        confidence=2.0 * confidence - 1.0,
        tolerance=tau,
        between=between,
        in_rounds=len(rounds) == len(base) == len(new),
        resamples=resamples,
    )
    common["ratio"] = found.ratio
    notes = [note for note in (chosen.note, found.note) if note]
    common["note"] = "; ".join(notes) or None
    low, high = found.ci_low, found.ci_high
    p_worse = found.p_above if better == "lower" else found.p_below
    if found.ratio is not None and low is None and metric in EXACT_METRICS:
        low = high = found.ratio
        p_worse = None
    if metric in EXACT_METRICS and common["median_a"] == common["median_b"] == 0.0:
        # No ratio, and no doubt: the reference's distance to itself.
        return ComparedMetric(**common, verdict="equivalent")
    if found.ratio is None or low is None or high is None:
        return ComparedMetric(**common, verdict="inconclusive", reason=found.reason)
    common |= {"ci_low": low, "ci_high": high}
    if better is None:
        reason = f"neither more nor less of {metric} is known to be better"
        return ComparedMetric(**common, verdict="inconclusive", reason=reason)
    return ComparedMetric(**common, verdict=verdict_of(low, high, tau, better), p_worse=p_worse)


_Conditions = tuple[bool, str | None, str | None]


def _conditions(report: AttemptReport, allow_different: bool) -> _Conditions:
    """Simulated, hardware fingerprint, weights digest: what must be equal to compare."""
    known = {**report.facts, **{k: v for k, v in report.provenance.items() if v is not None}}
    simulated = bool(report.facts.get("simulated") or report.provenance.get("simulated"))
    if allow_different:
        return simulated, None, None
    hardware, weights = known.get("hardware_fingerprint"), known.get("weights_digest")
    return (
        simulated,
        None if hardware is None else str(hardware),
        None if weights is None else str(weights),
    )


def _difference(a: Counter[_Conditions], b: Counter[_Conditions]) -> str:
    one, other = a.most_common(1)[0][0], b.most_common(1)[0][0]
    if one[0] != other[0]:
        return "simulated attempts do not compare with real ones"
    for what, position in (("hardware", 1), ("weights", 2)):
        if one[position] != other[position]:
            shown = [str(c[position])[:24] if c[position] else "unknown" for c in (one, other)]
            return f"different {what}: {shown[0]} and {shown[1]}"
    return "no attempts under the same conditions"


def _endings(side: Sequence[AttemptReport]) -> str:
    if not side:
        return "none recorded"
    names = Counter(
        "invalid by its verdict"
        if r.outcome is Outcome.OK and r.verdict.state == "invalid"
        else r.outcome.value
        for r in side
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


def _metrics_with_direction(reports: Sequence[AttemptReport]) -> list[str]:
    units: dict[str, str] = {}
    for report in reports:
        for name, data in report.metrics.items():
            units.setdefault(name, data.unit)
    return [name for name, unit in units.items() if better_when(name, unit) is not None]


def _unit(reports: Sequence[AttemptReport], metric: str) -> str | None:
    """The metric's unit, or None where no attempt knows it."""
    return next((m.unit for r in reports if (m := metric_of(r, metric)) is not None), None)
