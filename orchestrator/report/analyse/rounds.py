"""Whether two trials were measured in turn, so that what disturbed one disturbed the other.

::

    round        1        2        3
    A          |--|        |--|   |--|
    B             |--|  |--|         |--|      time ->

A sweep makes its attempts like this (:mod:`orchestrator.schedule.order`). A machine that is slower
for a while then slows both attempts of a round, and their ratio does not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from orchestrator.attempt import AttemptReport

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
