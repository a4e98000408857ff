"""Searches for a planted culprit in noise that was recorded: how often they are right.

Thresholds are exact binomial ones, so a right search falls under one with a chance of 5 % at most
where it is exactly as good as required; it is better.
"""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.search.rounds import Terms
from testing.bisected import at_least_expected, bisected, recorded, spread
from testing.seeds import drawing_seed


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.long)])
def test_a_planted_slowdown_is_found_and_none_where_there_is_none(count: int) -> None:
    medians, terms = np.array(recorded()["medians_s"]), Terms()
    rng = np.random.default_rng([drawing_seed(), count])
    slow = [bisected(1.1, True, medians, terms, rng) for _ in range(count)]
    calm = [bisected(1.1, False, medians, terms, rng) for _ in range(count)]
    assert sum(each.right for each in slow) >= at_least_expected(count, 0.95)
    assert not [each for each in calm if each.wrong]
    assert np.median([len(each.answer.steps) for each in slow]) <= 10


def test_the_record_scatters() -> None:
    """What is replayed is noise, and not a row of equal numbers."""
    medians = np.array(recorded()["medians_s"])
    assert medians.size >= 60
    assert 0.005 < spread(medians) < 0.2


def test_thresholds_are_those_of_the_binomial_distribution() -> None:
    assert at_least_expected(200, 0.95) == 185
    assert at_least_expected(8, 0.95) == 6
