"""The order in which attempts run: seeded and interleaved, longest first where that saves time."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from orchestrator.attempt import PlannedAttempt

# Durations closer than this are taken for equal: history is no prophecy, and within such a group
# the order stays random.
SAME_RATIO = 1.2


def interleave(
    attempts: Sequence[PlannedAttempt], seed: int, *, slots: int = 1
) -> list[PlannedAttempt]:
    """The order to run in: rounds of one attempt a trial, each shuffled by ``seed``.

    Drift (heat, neighbours) then hits all trials alike, and a sweep that is stopped half way has
    about as many attempts of each.

    Parameters
    ----------
    slots : int
        Where there are several, the last round runs what is expected to take longest first, so
        that no long attempt begins when the others end (LPT: Graham 1969, at most 4/3 of the
        shortest makespan). What was never measured counts as long.
    """
    rounds: defaultdict[int, list[PlannedAttempt]] = defaultdict(list)
    seen: Counter[str] = Counter()
    for attempt in attempts:
        rounds[seen[attempt.trial.hash]].append(attempt)
        seen[attempt.trial.hash] += 1
    generator = random.Random(seed)
    ordered: list[PlannedAttempt] = []
    for number in sorted(rounds):
        generator.shuffle(rounds[number])
        if slots > 1 and number == len(rounds) - 1:
            rounds[number].sort(key=_group, reverse=True)
        ordered.extend(rounds[number])
    return ordered


def _group(attempt: PlannedAttempt) -> float:
    """A number that is equal for about equal durations and grows with them."""
    if attempt.expected_s is None:
        return math.inf
    return math.floor(math.log(max(attempt.expected_s, 1e-3), SAME_RATIO))
