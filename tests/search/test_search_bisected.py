"""Searches for a planted culprit in noise that was recorded: how often they are right.

Thresholds are exact binomial ones, so a right search falls under one with a chance of 5 % at most
where it is exactly as good as required; it is better.
"""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.search.rounds import Terms
from testing.bisected import (
    Bisected,
    at_least_expected,
    bisected,
    recorded,
    searches,
    spread,
)
from testing.seeds import drawing_seed


def right(slow: list[Bisected], calm: list[Bisected]) -> None:
    assert sum(each.right for each in slow) >= at_least_expected(len(slow), 0.95)
    assert not [each for each in calm if each.wrong]
    assert np.median([len(each.answer.steps) for each in slow]) <= 10


def test_a_planted_slowdown_is_found_and_none_where_there_is_none() -> None:
    # Deviations of a quarter, on the logarithm: a machine so calm takes a few rounds a step.
    medians, terms = np.array(recorded()["medians_s"]) ** 0.25, Terms()
    rng = np.random.default_rng([drawing_seed(), 12])
    slow, calm = (
        [bisected(1.1, planted, medians, terms, rng) for _ in range(12)]
        for planted in (True, False)
    )
    right(slow, calm)


@pytest.mark.long
def test_so_it_is_in_200_searches_each_with_the_noise_as_it_was() -> None:
    right(searches(True, 200), searches(False, 200))


def test_the_record_scatters() -> None:
    """What is replayed is noise, and not a row of equal numbers."""
    medians = np.array(recorded()["medians_s"])
    assert medians.size >= 60
    assert 0.005 < spread(medians) < 0.2


def test_thresholds_are_those_of_the_binomial_distribution() -> None:
    assert at_least_expected(200, 0.95) == 185
    assert at_least_expected(8, 0.95) == 6
