"""Change points: the best fit there is, steps where they are, and none where there are none.

Rates are thresholds of an exact binomial test: a right method fails one with a chance of 1e-4.
"""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from benchmarks.history import AFTER, RUNS, SPREADS, changes, is_found
from orchestrator.statistics.changes import _segments, find_changes
from orchestrator.statistics.tail import beta_below, beta_quantile, student_quantile
from testing.seeds import drawing_seed

CHANCE = 1e-4
SERIES = 60


def chance_of(count: int, n: int, rate: float) -> float:
    """Of ``count`` or more of ``n`` where each has the chance ``rate``."""
    return beta_below(rate, count, n - count + 1.0)


@pytest.mark.parametrize("spread", SPREADS)
def test_a_tenth_with_five_runs_after_it_is_found_in_its_place(spread: float) -> None:
    rng = np.random.default_rng([drawing_seed(), round(1000 * spread)])
    found = [changes(spread, rng, after=AFTER) for _ in range(SERIES)]
    within = 1 if spread <= 0.02 else AFTER
    missed = sum(not is_found(each, RUNS - AFTER, within) for each in found)
    assert chance_of(missed, SERIES, 0.05) > CHANCE, missed


@pytest.mark.parametrize("spread", SPREADS)
def test_a_flat_series_has_no_step(spread: float) -> None:
    rng = np.random.default_rng([drawing_seed(), 1, round(1000 * spread)])
    stepped = sum(len(changes(spread, rng).starts) > 1 for _ in range(SERIES))
    assert chance_of(stepped, SERIES, 0.01) > CHANCE, stepped


@pytest.mark.parametrize("runs", [4, 6, 10, 20])
def test_short_flat_series_have_none_either(runs: int) -> None:
    rng = np.random.default_rng([drawing_seed(), 2, runs])
    stepped = sum(len(changes(0.02, rng, runs=runs).starts) > 1 for _ in range(SERIES))
    assert chance_of(stepped, SERIES, 0.01) > CHANCE, stepped


def test_several_steps_up_and_down_are_all_found() -> None:
    rng = np.random.default_rng([drawing_seed(), 3])
    levels = np.repeat([1.0, 1.2, 0.9, 1.2, 1.0], 12)
    found = find_changes((levels * np.exp(rng.normal(0, 0.01, 60))).tolist(), [0.005] * 60)
    assert found.starts == (0, 12, 24, 36, 48)
    assert found.levels == pytest.approx([1.0, 1.2, 0.9, 1.2, 1.0], rel=0.02)
    # Fifty-five degrees of freedom: a standard deviation to a tenth.
    expected = 0.01 / math.sqrt(12)
    assert found.freedom == 55
    assert found.errors == pytest.approx([expected] * 5, rel=0.6)


def test_the_fit_is_the_best_of_all_fits() -> None:
    """Against every way to cut ten values, with weights of several sizes."""
    rng = np.random.default_rng([drawing_seed(), 4])
    y, weights = rng.normal(size=10), rng.uniform(0.2, 5.0, 10)

    def squares(first: int, end: int) -> float:
        level = np.average(y[first:end], weights=weights[first:end])
        return float((weights[first:end] * (y[first:end] - level) ** 2).sum())

    residuals, _ = _segments(y, weights, 3)
    for steps in range(4):
        ways = [
            (0, *cuts, 10)
            for cuts in combinations(range(1, 10), steps)
            # A level has two values, the last one one.
            if all(b - a > 1 for a, b in zip((0, *cuts), cuts, strict=False))
        ]
        best = min(sum(squares(a, b) for a, b in pairwise(w)) for w in ways)
        assert residuals[steps] == pytest.approx(best)


def test_a_size_that_does_not_scatter_steps_once_where_it_moved() -> None:
    found = find_changes([100.0] * 6 + [104.0] * 2, [None] * 8)
    assert found.starts == (0, 6)
    assert max(found.errors) < 1e-3
    assert found.levels == pytest.approx((100.0, 104.0))
    assert find_changes([100.0] * 8, [None] * 8).starts == (0,)
    assert find_changes([100.0], [None]).starts == (0,)
    assert find_changes([100.0, 200.0], [None, None]).starts == (0,)


def test_one_bad_night_is_no_level_until_it_is_the_last() -> None:
    rng = np.random.default_rng([drawing_seed(), 5])
    values = np.exp(rng.normal(0, 0.005, 20))
    values[12] *= 1.3
    found = find_changes(values.tolist(), [0.003] * 20)
    assert (found.starts, found.alone) == ((0,), frozenset({12}))
    until_then = find_changes(values[:13].tolist(), [0.003] * 13)
    assert (until_then.starts, until_then.alone) == ((0, 12), frozenset())


def test_values_with_wide_intervals_count_for_less() -> None:
    rng = np.random.default_rng([drawing_seed(), 6])
    values = np.exp(rng.normal(0, 0.003, 24))
    values[18:] *= 1.08
    assert find_changes(values.tolist(), [0.003] * 24).starts == (0, 18)
    # The same values, the last of which say little of themselves.
    assert find_changes(values.tolist(), [0.003] * 18 + [0.2] * 6).starts == (0,)


@pytest.mark.parametrize(("nu", "t"), [(1, 12.706), (4, 2.776), (30, 2.042), (math.inf, 1.960)])
def test_the_quantiles_of_student_s_t(nu: float, t: float) -> None:
    assert student_quantile(0.975, nu) == pytest.approx(t, abs=5e-4)
    assert student_quantile(0.5, nu) == 0.0


@pytest.mark.parametrize("chance", [1e-12, 1e-4, 0.3, 0.999])
def test_a_beta_quantile_turns_the_beta_round(chance: float) -> None:
    for a, b in ((0.5, 0.5), (1.0, 0.5), (24.0, 0.5), (100.0, 3.0)):
        assert beta_below(beta_quantile(chance, a, b), a, b) == pytest.approx(chance, rel=1e-6)
