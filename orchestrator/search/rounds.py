"""Rounds of a bisection: both ends and one candidate, measured in turn; and what they decide.

::

    round        1                 2                 3
    good       |--|                    |--|        |--|
    bad             |--|         |--|                    |--|
    candidate            |--|               |--| |--|           time ->

Whatever slows the machine for a while slows all of a round, so a candidate is compared with the
ends of its own rounds only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, TypeAlias

from orchestrator.statistics.judge import Better, Finding, Judged, judge, tolerance

Samples: TypeAlias = tuple[float, ...]
State = Literal["changed", "same", "undecided", "broken"]

# With fewer the spread of differences within rounds is hardly known.
_FIRST_LOOK = 5
_NEXT_LOOK = 1.5
# An anchor has moved if it is so many standard deviations from its other rounds, the deviation
# estimated from the median of absolute deviations; with fewer rounds nothing is known to move.
_MOVED = 3.0
_PER_MAD = 1.4826
_LEAST_KNOWN = 5
# Rounds before these say nothing about the machine of now.
_REMEMBERED = 16


@dataclass(frozen=True)
class Round:
    """One attempt of each, made in turn.

    Attributes
    ----------
    good, bad, candidate : tuple of float
        Samples of the metric, at least one each. Where all changes are made the candidate is the
        bad end, and has its samples.
    """

    good: Samples
    bad: Samples
    candidate: Samples


@dataclass(frozen=True)
class Terms:
    """What decides.

    Attributes
    ----------
    better : str or None
        Direction of the metric: ``lower`` or ``higher``.
    noise : float or None
        Relative A/A noise of this hardware.
    most_rounds : int
        Of one step; it is undecided after them.
    confidence : float
        That what is named, or that nothing differs, is right; each question gets its share.
    """

    better: Better | None = "lower"
    noise: float | None = None
    most_rounds: int = 400
    confidence: float = 0.95

    def shared(self, questions: int) -> Terms:
        """The same for one of so many questions: their errors add up to no more than allowed."""
        return replace(self, confidence=1.0 - (1.0 - self.confidence) / questions)

    @property
    def tau(self) -> float:
        """Relative change that counts as one."""
        return tolerance(self.noise)

    def judged(self, new: Sequence[Samples], base: Sequence[Samples]) -> Judged:
        """The gate's word on attempts that were made in turn."""
        # Of a metric without a good direction more is called worse: a change is searched for.
        better = self.better or "lower"
        return judge(
            new,
            base,
            better=better,
            noise=self.noise,
            in_rounds=True,
            confidence=self.confidence,
        )


@dataclass(frozen=True)
class Step:
    """One candidate and what its rounds say.

    Attributes
    ----------
    changes : set of str
        That are made on the good end.
    state : str
        ``changed`` as the bad end is, ``same`` as the good end, ``undecided``, or ``broken``: its
        attempts fail.
    judged : Judged or None
        Candidate over good; None of what is broken.
    rounds, void : int
        That were made, and those of them in which an end had moved.
    partly : bool
        The candidate is changed, and by less than the bad end is.
    reason : str or None
        Why it is broken.
    """

    changes: frozenset[str]
    state: State
    judged: Judged | None = None
    rounds: int = 0
    void: int = 0
    partly: bool = False
    reason: str | None = None


def next_look(rounds: int, most: int) -> int:
    """How many rounds a step needs in all before it is judged again."""
    return min(most, max(_FIRST_LOOK, math.ceil(rounds * _NEXT_LOOK)))


def standing(rounds: Sequence[Round], before: Sequence[Round], tau: float) -> list[Round]:
    """The rounds that count: without those in which an end was not where it is in the others.

    ``before`` are earlier rounds, of other candidates: they show where the ends are, too.
    """
    known = [*before[-_REMEMBERED:], *rounds]
    if len(known) < _LEAST_KNOWN:
        return list(rounds)
    held = [True] * len(rounds)
    for end in ("good", "bad"):
        at = [math.log(median(getattr(each, end))) for each in known]
        centre = median(at)
        spread = _PER_MAD * median(abs(value - centre) for value in at)
        limit = max(math.log1p(tau), _MOVED * spread)
        for index, value in enumerate(at[len(known) - len(rounds) :]):
            held[index] &= abs(value - centre) <= limit
    return [each for each, kept in zip(rounds, held, strict=True) if kept]


def decide(
    changes: frozenset[str],
    rounds: Sequence[Round],
    before: Sequence[Round],
    change: Finding | None,
    terms: Terms,
    *,
    strict: bool,
) -> Step:
    """What ``rounds``, all of this candidate, say.

    It is ``changed`` where the gate finds the candidate as much on the bad side of the good end as
    it asks for. It is ``same`` where the gate finds the bad end so far on the bad side of the
    candidate, or the candidate equivalent to the good end. Of a change of 10 % the first two are
    shown by a sixth of the rounds that equivalence within 3 % takes.

    Parameters
    ----------
    before : sequence of Round
        Of earlier steps.
    change : str or None
        What the bad end is to the good one: ``regression`` or ``improvement``; None while that is
        the question.
    strict : bool
        Only what is equivalent to the good end is the same: a candidate may do a part of the
        change.
    """
    counted = standing(rounds, before, terms.tau)
    void = len(rounds) - len(counted)
    if len(counted) < 2:
        return Step(changes, "undecided", None, len(rounds), void)
    good, bad, candidate = (
        [getattr(each, name) for each in counted] for name in ("good", "bad", "candidate")
    )
    judged = terms.judged(candidate, good)
    less = change is not None and candidate != bad
    less = less and terms.judged(bad, candidate).finding == change
    wanted = (change,) if change is not None else ("regression", "improvement")
    state: State = "undecided"
    if judged.finding in wanted:
        state = "changed"
    # A change the other way is not the one that is looked for.
    elif judged.finding != "inconclusive" or (less and not strict):
        state = "same"
    return Step(changes, state, judged, len(rounds), void, less and state == "changed")
