"""Ratios of means over the same items, and how small a difference so many items tell."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.statistics.items import LEAST_ITEMS, chance_of_more, paired_ratio
from orchestrator.statistics.judge import judge_items
from testing.seeds import drawing_seed

ITEMS, SEARCHES = 300, 200


def items(random: random.Random, spread: float) -> tuple[list[float], list[float], float, float]:
    """Loss and accuracy of two formats over items of four choices.

    The base has a margin for the right answer that differs from item to item. The new one's
    log-likelihoods are off by ``spread`` nats, each by itself, which is what rounding weights does.
    """
    losses: tuple[list[float], list[float]] = ([], [])
    right = [0, 0]
    for _ in range(ITEMS):
        base = [random.gauss(1.3, 1.0), *(random.gauss(0.0, 1.0) for _ in range(3))]
        new = [each + random.gauss(0.0, spread) for each in base]
        for side, logs in enumerate((base, new)):
            losses[side].append(math.log(math.fsum(map(math.exp, logs))) - logs[0])
            right[side] += logs[0] == max(logs)
    return *losses, right[0] / ITEMS, right[1] / ITEMS


def test_a_loss_of_seven_points_is_found_by_the_losses() -> None:
    random_ = random.Random(drawing_seed())
    found, points = 0, []
    for _ in range(SEARCHES):
        base, new, before, after = items(random_, 0.69)
        points.append(before - after)
        found += judge_items(new, base, better="lower").finding == "regression"
    assert math.isclose(math.fsum(points) / SEARCHES, 0.07, abs_tol=0.01)
    assert found >= 0.9 * SEARCHES


def test_without_a_difference_next_to_nothing_is_found() -> None:
    random_ = random.Random(drawing_seed())
    wrong = 0
    for _ in range(SEARCHES):
        base = [random_.expovariate(1.0) for _ in range(ITEMS)]
        new = [each * random_.lognormvariate(-0.02, 0.2) for each in base]  # a mean of 1
        wrong += judge_items(new, base, better="lower").finding in ("regression", "improvement")
    assert wrong <= 0.05 * SEARCHES


def test_the_interval_covers_the_true_ratio() -> None:
    random_ = random.Random(drawing_seed())
    inside = 0
    for _ in range(1000):
        base = [random_.expovariate(1.0) for _ in range(60)]
        new = [1.2 * each * random_.uniform(0.7, 1.3) for each in base]
        found = paired_ratio(new, base, 0.9)
        assert found.ci_low is not None
        assert found.ci_high is not None
        inside += found.ci_low <= 1.2 <= found.ci_high
    # Four standard deviations of a binomial count below nine tenths.
    assert inside >= 900 - 4 * math.sqrt(1000 * 0.9 * 0.1)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=LEAST_ITEMS, max_size=80)
)
def test_swapping_the_sides_gives_the_reciprocal(pairs: list[tuple[float, float]]) -> None:
    new, base = zip(*pairs, strict=True)
    found, swapped = paired_ratio(new, base, 0.9), paired_ratio(base, new, 0.9)
    assert found.ratio is not None
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    assert (found.ci_low is None) == (swapped.ci_low is None)
    if found.ci_low is not None and found.ci_high is not None:
        assert found.ci_low <= found.ratio * (1 + 1e-9)
        assert found.ratio <= found.ci_high * (1 + 1e-9)
        assert swapped.ci_high == pytest.approx(1 / found.ci_low)
        assert swapped.ci_low == pytest.approx(1 / found.ci_high)


def test_equal_scores_are_equivalent() -> None:
    judged = judge_items([0.5] * 40, [0.5] * 40, better="lower")
    assert (judged.finding, judged.ratio, judged.ci_low, judged.ci_high) == ("equivalent", 1, 1, 1)


def test_what_cannot_be_told_says_why() -> None:
    few = judge_items([1.0, 2.0], [1.0, 1.0], better="lower")
    assert few.finding == "inconclusive"
    assert few.reason == "2 items: 30 are needed for an interval"
    none = judge_items([0.0] * 40, [0.0] * 40, better="higher")
    assert none.reason == "a mean is not positive: there is no ratio"


def test_few_items_are_surer_of_nothing_than_student_s_t() -> None:
    # Abramowitz and Stegun, table 26.10: P(t > 3.659) = 0.0005 of 29 degrees of freedom.
    mean = 3.659 / math.sqrt(30.0)
    new = [1.0 + mean + side * math.sqrt(29.0 / 30.0) for side in (1.0, -1.0) * 15]
    assert chance_of_more(new, [1.0] * 30, 1.0) == pytest.approx(0.0005, rel=0.02)
