"""Compares trials: the ratio of B to A for each metric, and what it means. Pure.

What a ratio means is :mod:`orchestrator.statistics.judge`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.measure.metric import MetricSpec
from orchestrator.measure.vocabulary import EVALUATION, QUALITY
from orchestrator.report.analyse.measured import metric_of, samples_of, spec_of, why_no_ratio
from orchestrator.report.analyse.pairing import Attempts, Chosen, Configs, choose, pair, rounds_of
from orchestrator.statistics.judge import (
    CONFIDENCE,
    Judged,
    incomparable,
    judge,
    judge_items,
    tolerance,
)

# Two of them compare where they are of the same tokens in the same windows.
_OF_A_TEXT = frozenset(spec.name for spec in QUALITY)


@dataclass(frozen=True)
class ComparedMetric:
    """One metric of one pair of trials.

    Attributes
    ----------
    hash_a, hash_b : str
        The two trials.
    spec : MetricSpec
        The metric.
    judged : Judged
        The ratio of B to A, and what it means.
    median_a, median_b : float or None
        Pooled over attempts; None where a side has no value.
    attempts_a, attempts_b, samples_a, samples_b : int
        What stands behind them.
    conditions_a, conditions_b : str or None
        Under which these were made; None where that is not known.
    note : str or None
        What to keep in mind.
    """

    hash_a: str
    hash_b: str
    spec: MetricSpec
    judged: Judged
    median_a: float | None = None
    median_b: float | None = None
    attempts_a: int = 0
    attempts_b: int = 0
    samples_a: int = 0
    samples_b: int = 0
    conditions_a: str | None = None
    conditions_b: str | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, flat."""
        flat = {k: v for k, v in asdict(self).items() if k not in ("spec", "judged")}
        judged = asdict(self.judged)
        verdict = judged.pop("finding")
        named = {"metric": self.spec.name, "unit": self.spec.unit, "better": self.spec.better}
        return {**named, "verdict": verdict, **judged, **flat}


@dataclass(frozen=True)
class Comparison:
    """Every pair's rows, and what could not be paired.

    Attributes
    ----------
    rows : tuple of ComparedMetric
        A metric of a pair each.
    tau : float
        Relative change that counts as one.
    only_a, only_b : tuple of str
        Hashes of trials that the other side lacks.
    """

    rows: tuple[ComparedMetric, ...]
    tau: float
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form: ``rows`` and the terms they were judged by."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "tau": self.tau,
            "confidence": CONFIDENCE,
            "ci_confidence": 2.0 * CONFIDENCE - 1.0,
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(
    a: Attempts,
    b: Attempts,
    *,
    configs: Configs | None = None,
    noise: float | None = None,
    allow_different: bool = False,
    metrics: Sequence[str] | None = None,
) -> Comparison:
    """Compare ``b`` (new) with ``a`` (base).

    Parameters
    ----------
    a, b : mapping of config hash to attempts
        Trials pair by hash; a single trial on each side pairs with the other whatever its hash.
    configs : mapping of config hash to identity, optional
        With them, trials that differ in their environment's packages alone pair too, and all
        packages that two environments do not share are told.
    noise : float, optional
        Relative A/A noise recorded for this hardware.
    allow_different : bool
        Compare across hardware and weights. Simulated attempts never compare with real ones.
    metrics : sequence of str, optional
        Names of task metrics or telemetry; all task metrics with a direction by default.
    """
    pairs = pair(a, b, configs)
    rows = []
    for hash_a, hash_b in pairs:
        both = [*a[hash_a], *b[hash_b]]
        chosen = choose(
            a[hash_a],
            b[hash_b],
            allow_different=allow_different,
            configs=((configs or {}).get(hash_a), (configs or {}).get(hash_b)),
        )
        for name in metrics if metrics is not None else _with_direction(both):
            if any(metric_of(report, name) is not None for report in both):
                spec = spec_of(both, name)
                rows.append(against(chosen, spec, (hash_a, hash_b), noise=noise))
    paired_a, paired_b = {p[0] for p in pairs}, {p[1] for p in pairs}
    return Comparison(
        tuple(rows),
        tolerance(noise),
        tuple(h for h in a if h not in paired_a),
        tuple(h for h in b if h not in paired_b),
    )


def against(
    chosen: Chosen,
    spec: MetricSpec,
    hashes: tuple[str, str],
    *,
    noise: float | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> ComparedMetric:
    """One metric of ``chosen``'s B against its A; ``names`` are what reasons call the two."""
    if chosen.reason is not None:
        return ComparedMetric(*hashes, spec, incomparable(chosen.reason, noise))
    a, b = chosen.a, chosen.b
    rounds = rounds_of(a, b)
    if rounds:
        a, b = tuple(one for one, _ in rounds), tuple(other for _, other in rounds)
    base, new = samples_of(a, spec.name), samples_of(b, spec.name)
    if spec.name in _OF_A_TEXT and _text(a) != _text(b):
        return ComparedMetric(*hashes, spec, incomparable("quality over other tokens", noise))
    if spec.name.startswith(EVALUATION) and _items(a) != _items(b):
        return ComparedMetric(*hashes, spec, incomparable("evaluated on other items", noise))
    scores = _scores(a, spec.name), _scores(b, spec.name)
    if missing := why_no_ratio(names, (a, b), spec.name):
        judged = incomparable(missing, noise)
    elif scores[0] and scores[1]:
        judged = judge_items(scores[1], scores[0], better=spec.better, noise=noise)
    else:
        judged = judge(
            new,
            base,
            better=spec.better,
            exact=spec.exact,
            noise=noise,
            in_rounds=len(rounds) == len(base) == len(new),
        )
    return ComparedMetric(
        *hashes,
        spec,
        judged,
        _centre(base),
        _centre(new),
        len(base),
        len(new),
        sum(map(len, base)),
        sum(map(len, new)),
        conditions_a=_conditions(a),
        conditions_b=_conditions(b),
        note="; ".join(note for note in (chosen.note, judged.note) if note) or None,
    )


def _conditions(side: Sequence[AttemptReport]) -> str | None:
    return side[-1].conditions.id if side[-1].conditions else None


def _text(side: Sequence[AttemptReport]) -> str | None:
    """Digest of the tokens that quality was measured over, and of how they were cut."""
    windows = side[-1].facts.get("quality_windows") or {}
    return windows.get("digest") or side[-1].facts.get("quality_tokens_digest")


def _items(side: Sequence[AttemptReport]) -> str | None:
    """Digest of what a harness asked."""
    found: str | None = (side[-1].facts.get("evaluation") or {}).get("digest")
    return found


def _scores(side: Sequence[AttemptReport], name: str) -> list[float] | None:
    """Of a metric that is the mean over items, what each scored; the same in every attempt."""
    found: list[float] | None = (side[-1].facts.get("evaluation_items") or {}).get(name)
    return found


def _centre(samples: Sequence[tuple[float, ...]]) -> float | None:
    from orchestrator.statistics.bootstrap import centre_of

    return centre_of(samples)


def _with_direction(reports: Iterable[AttemptReport]) -> list[str]:
    reports = list(reports)
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    return [name for name in names if spec_of(reports, name).better is not None]
