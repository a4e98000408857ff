"""Attainment of a level: its bounds hold where requests depend on each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.statistics.attainment import Attainment, attainment
from orchestrator.statistics.tail import beta_below
from testing.queues import md1, md1_capacity
from testing.seeds import drawing_seed

Array = NDArray[np.float64]


@pytest.mark.parametrize(
    ("x", "a", "b", "expected"),
    # Of whole numbers a binomial's tail: P(X >= a) of a + b - 1 trials with the chance x.
    [
        (0.5, 1.0, 1.0, 0.5),
        (0.95, 20.0, 1.0, 0.95**20),
        (0.3, 2.0, 2.0, 3 * 0.3**2 * 0.7 + 0.3**3),
        (0.1, 1.0, 400.0, 1.0 - 0.9**400),
        (0.95, 300.0, 1.0, 0.95**300),
        (0.25, 0.5, 0.5, 1.0 / 3.0),  # the arcsine law
        (0.0, 2.0, 3.0, 0.0),
        (1.0, 2.0, 3.0, 1.0),
        (0.4, 0.0, 3.0, 1.0),
        (0.4, 3.0, 0.0, 0.0),
    ],
)
def test_the_incomplete_beta_function(x: float, a: float, b: float, expected: float) -> None:
    assert beta_below(x, a, b) == pytest.approx(expected, rel=1e-8)


@given(st.floats(0.01, 0.99), st.floats(0.1, 2_000.0), st.floats(0.1, 2_000.0))
def test_the_incomplete_beta_function_mirrors(x: float, a: float, b: float) -> None:
    assert beta_below(x, a, b) + beta_below(1.0 - x, b, a) == pytest.approx(1.0)


def queue(level: float, attempts: int, rng: np.random.Generator) -> list[Array]:
    """Attempts of 200 requests of an M/D/1 queue, at a rate relative to its capacity for 95 %."""
    rates = np.full(attempts, level * md1_capacity(0.95, 5.0))
    return list(md1(rates, 200, rng, limit=5.0)["ttft_s"])


def test_at_capacity_a_bound_is_as_rarely_wrong_as_it_says() -> None:
    rng = np.random.default_rng([drawing_seed(), 5])
    cases, attempts = 400, 8
    made = queue(1.0, cases * attempts, rng)
    found = [attainment(made[i::cases], 0.95) for i in range(cases)]
    most = 0.05 * cases + 3.7 * math.sqrt(0.05 * 0.95 * cases)
    assert sum(each.p_pass <= 0.05 for each in found) <= most
    assert sum(each.p_fail <= 0.05 for each in found) <= most
    # As independent requests they would not: the test can fail.
    plain = [Attainment(f.requests, f.attempts, f.share, 1.0, 0.95) for f in found]
    assert sum(each.p_pass <= 0.05 for each in plain) > most
    assert sum(each.p_fail <= 0.05 for each in plain) > most


def test_away_from_capacity_few_attempts_decide() -> None:
    rng = np.random.default_rng([drawing_seed(), 6])
    assert attainment(queue(0.5, 8, rng), 0.95).p_pass < 1e-3
    assert attainment(queue(1.3, 8, rng), 0.95).p_fail < 1e-3


def test_no_miss_is_not_certainty() -> None:
    """Of 600 requests none missed; those that came closest came alone, or one after the other."""
    alone = np.random.default_rng(3).random((3, 200))
    together = np.sort(alone, axis=1)
    found = [attainment(list(each), 0.95) for each in (alone, together)]
    assert found[0].share == found[1].share == 1.0
    assert found[0].effective_requests > 200 > 20 > found[1].effective_requests
    assert found[0].p_pass < 1e-3 < 0.05 < found[1].p_pass


def test_attempts_that_differ_are_worth_few_requests() -> None:
    good, bad = np.zeros(200), np.full(200, math.inf)
    found = attainment([good, good, bad], 0.95)
    assert found.share == pytest.approx(2 / 3)
    assert found.effective_requests == pytest.approx(2.0)
    assert found.p_fail > 0.05
    assert attainment([bad] * 3, 0.95).p_fail < 1e-6


def test_bounds_enclose_the_share_and_agree_with_p_values() -> None:
    found = attainment(queue(0.95, 8, np.random.default_rng(1)), 0.95)
    low, high = found.bounds(0.025)
    assert low < found.share < high
    for error in (found.p_pass, found.p_fail):
        assert min(abs(bound - 0.95) for bound in found.bounds(error)) < 1e-6
    assert attainment([np.zeros(50)] * 3, 0.95).bounds(0.025)[1] == pytest.approx(1.0)
    assert attainment([np.full(50, 2.0)] * 3, 0.95).bounds(0.025)[0] == pytest.approx(0.0)


def test_what_it_takes_to_decide() -> None:
    found = Attainment(4_000, 10, 0.97, 10.0, 0.95)
    times = found.times_to_decide(0.01)
    more = Attainment(round(4_000 * times), round(10 * times), 0.97, 10.0, 0.95)
    # By the normal law, which a binomial close to 1 and Student's t are not quite.
    assert 0.003 < more.p_pass < 0.03
    assert found.times_to_decide(0.01, luck=1.0) < times
    assert math.isinf(Attainment(4_000, 10, 0.95, 10.0, 0.95).times_to_decide(0.01))


def test_attempts_may_have_different_lengths_and_none() -> None:
    rng = np.random.default_rng(2)
    whole = attainment([rng.random(40) * 1.02, rng.random(7), rng.random(1), np.array([])], 0.95)
    assert (whole.requests, whole.attempts) == (48, 3)
    assert whole.design_effect >= 1.0
    with pytest.raises(ValueError, match="no request"):
        attainment([], 0.95)
