"""Which attempts of two trials may be set against each other, or why none may.

Also whether two trials were measured in turn, so that what disturbed one disturbed the other.

::

    round        1        2        3
    A          |--|        |--|   |--|
    B             |--|  |--|         |--|      time ->

A sweep makes its attempts like this (:mod:`orchestrator.schedule.order`). A machine that is slower
for a while then slows both attempts of a round, and their ratio does not see it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.report.analyse.measured import valid

Attempts = Mapping[str, Sequence[AttemptReport]]


@dataclass(frozen=True)
class Chosen:
    """The attempts of one pair that may be compared, or why none may."""

    a: tuple[AttemptReport, ...] = ()
    b: tuple[AttemptReport, ...] = ()
    reason: str | None = None
    note: str | None = None


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
    and that most attempts share are compared; a note says so. Weights are looked at only where both
    sides are one trial: two configurations may well name two models.
    """
    usable = []
    for name, side in zip(names, (a, b), strict=True):
        good = valid(side)
        if not good:
            return Chosen(reason=f"{name} has no valid attempt ({_endings(side)})")
        usable.append(good)
    one_trial = len({report.config_hash for side in usable for report in side}) == 1
    conditions = [[_conditions(r, allow_different, one_trial) for r in side] for side in usable]
    counts = [Counter(side) for side in conditions]
    shared = counts[0].keys() & counts[1].keys()
    if not shared:
        return Chosen(reason=_difference(*(c.most_common(1)[0][0] for c in counts)))
    best = max(shared, key=lambda c: (not c[0], min(side[c] for side in counts), str(c)))
    kept = [
        tuple(r for r, c in zip(side, of, strict=True) if c == best)
        for side, of in zip(usable, conditions, strict=True)
    ]
    left = sum(map(len, usable)) - sum(map(len, kept))
    note = f"{left} attempts under other conditions left out" if left else None
    return Chosen(kept[0], kept[1], note=note)


_Conditions = tuple[bool, "str | None", "str | None"]


def _conditions(report: AttemptReport, allow_different: bool, one_trial: bool) -> _Conditions:
    """Simulated, hardware fingerprint, weights digest: what must be equal to compare."""
    known = {**report.facts, **{k: v for k, v in report.provenance.items() if v is not None}}
    simulated = bool(report.facts.get("simulated") or report.provenance.get("simulated"))
    if allow_different:
        return simulated, None, None
    hardware, weights = known.get("hardware_fingerprint"), known.get("weights_digest")
    return (
        simulated,
        None if hardware is None else str(hardware),
        None if weights is None or not one_trial else str(weights),
    )


def _difference(one: _Conditions, other: _Conditions) -> str:
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


# Judged by rounds, k attempts a side have k - 1 degrees of freedom where they would have 2 (k - 1).
# From five on that widens an interval by less than a sixth, where rounds have nothing in common.
LEAST_ROUNDS = 5


def rounds_of(
    a: Sequence[AttemptReport], b: Sequence[AttemptReport]
) -> list[tuple[AttemptReport, AttemptReport]]:
    """The attempts of two trials, round by round; empty where they were not made in turn.

    That is decided by the clock alone: both n-th attempts began before either of the next round.
    """
    if len(a) != len(b) or len(a) < LEAST_ROUNDS:
        return []
    rounds = list(zip(sorted(a, key=_began), sorted(b, key=_began), strict=True))
    in_turn = all(
        max(map(_began, first)) < min(map(_began, then)) for first, then in pairwise(rounds)
    )
    return rounds if in_turn else []


def _began(report: AttemptReport) -> float:
    return report.started_at
