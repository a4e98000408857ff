"""Summaries and the shape of a series; what cannot be told is None with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.statistics.distribution import (
    is_bimodal,
    median_absolute_deviation,
    tukey_outliers,
)
from orchestrator.statistics.summary import Summary, summarise, summarise_attempts

SERIES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60)


@given(SERIES)
def test_a_summary_is_in_order(values: list[float]) -> None:
    summary = summarise(values, resamples=300)
    assert summary.n == len(values)
    assert summary.min is not None
    assert summary.max is not None
    for figure in (summary.median, summary.ci_low, summary.ci_high, summary.mean):
        assert figure is not None
        slack = 1e-9 * max(1.0, abs(summary.min), abs(summary.max))
        assert summary.min - slack <= figure <= summary.max + slack
    assert summary.std is not None
    assert summary.std >= 0.0
    assert summary.median == float(np.median(values))
    json.dumps(asdict(summary), allow_nan=False)


def test_known_values() -> None:
    summary = summarise([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (summary.median, summary.mean, summary.min, summary.max) == (3.0, 22.0, 1.0, 100.0)
    assert summary.std == pytest.approx(43.617657)
    assert summary.mad == 1.0
    assert (summary.outliers_mild, summary.outliers_severe) == (0, 1)


def test_several_attempts_weigh_the_same_whatever_they_sampled() -> None:
    summary = summarise_attempts([[1.0] * 90, [3.0] * 10, []])
    assert (summary.median, summary.n, summary.attempts) == (2.0, 100, 2)


def width(summary: Summary) -> float:
    assert summary.ci_low is not None
    assert summary.ci_high is not None
    return summary.ci_high - summary.ci_low


def test_several_attempts_show_their_spread() -> None:
    rng = np.random.default_rng(0)
    same = [rng.normal(1.0, 0.01, 30) for _ in range(5)]
    moved = [a + shift for a, shift in zip(same, (-0.1, -0.05, 0.0, 0.05, 0.1), strict=True)]
    assert width(summarise_attempts(moved)) > 5 * width(summarise_attempts(same))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "no samples"),
        ([math.nan, 1.0, math.inf], "2 of 3 samples not finite"),
        ([1e200, 1.0, 0.0], "1 of 3 samples too large to judge"),
        ([3.0], "one sample: its uncertainty cannot be known"),
    ],
)
def test_what_cannot_be_told_is_none_with_a_reason(values: list[float], reason: str) -> None:
    summary = summarise(values)
    assert (summary.ci_low, summary.ci_high, summary.std) == (None, None, None)
    assert summary.reason == reason
    json.dumps(asdict(summary), allow_nan=False)


def test_no_variance_is_no_trouble() -> None:
    summary = summarise([2.0] * 30)
    assert (summary.ci_low, summary.ci_high, summary.std, summary.mad) == (2.0, 2.0, 0.0, 0.0)
    assert (summary.outliers_mild, summary.outliers_severe, summary.bimodal) == (0, 0, False)


@pytest.mark.parametrize(
    ("n", "has_p95", "has_p99"),
    [(199, False, False), (200, True, False), (999, True, False), (1000, True, True)],
)
def test_tail_percentiles_have_a_floor(n: int, has_p95: bool, has_p99: bool) -> None:
    summary = summarise(np.arange(n, dtype=float), resamples=100)
    assert (summary.p95 is not None, summary.p99 is not None) == (has_p95, has_p99)


def test_p95_is_that_of_the_samples() -> None:
    assert summarise(np.arange(201, dtype=float)).p95 == 190.0


@given(SERIES)
def test_each_outlier_is_counted_once_and_adding_a_far_one_counts_it(values: list[float]) -> None:
    mild, severe = tukey_outliers(np.array(values))
    assert 0 <= mild + severe <= len(values) // 2
    far = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 1e9])
    assert tukey_outliers(far)[1] == 1


def test_tukey_s_fences() -> None:
    # Quartiles 1 and 3, reach 2: mild beyond 6 and -2, severe beyond 9 and -5.
    values = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 4.0])
    assert tukey_outliers(values) == (0, 0)
    # A ninth and tenth value move the quartiles: 1.0 and 3.0 stay, by symmetry of what is added.
    assert tukey_outliers(np.concatenate([values, [7.0, -3.0]])) == (2, 0)
    assert tukey_outliers(np.concatenate([values, [8.9, -4.9]])) == (2, 0)
    assert tukey_outliers(np.concatenate([values, [9.1, -5.1]])) == (0, 2)


@given(SERIES, st.floats(-100.0, 100.0))
def test_mad_ignores_a_shift(values: list[float], shift: float) -> None:
    moved = median_absolute_deviation(np.array(values) + shift)
    assert moved == pytest.approx(median_absolute_deviation(np.array(values)), abs=1e-6)


Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.mark.parametrize("n", [20, 30, 50, 200])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(1.0, 0.03, n),
        lambda rng, n: rng.normal(0.0, 1.0, n),
        lambda rng, n: rng.lognormal(0.0, 0.03, n),
        lambda rng, n: rng.lognormal(0.0, 0.3, n),
    ],
    ids=["normal", "standard normal", "log-normal", "skewed log-normal"],
)
def test_one_mode_is_seldom_called_two(draw: Draw, n: int) -> None:
    rng = np.random.default_rng(n)
    flagged = sum(is_bimodal(draw(rng, n)) for _ in range(500))
    assert flagged <= 10, "2 % of 500; the docstring says 1 %"


@pytest.mark.parametrize(("n", "least"), [(50, 0.75), (200, 0.95)])
def test_two_modes_are_found(n: int, least: float) -> None:
    rng = np.random.default_rng(n)
    found = [is_bimodal(rng.normal(20.0, 1.0, n) + 5.0 * (rng.random(n) < 0.3)) for _ in range(200)]
    assert np.mean(found) >= least


def test_two_exact_values_are_two_modes_and_rare_ones_are_outliers() -> None:
    assert is_bimodal(np.array([1.0, 2.0] * 15))
    assert not is_bimodal(np.array([1.0] * 29 + [2.0]))
    assert not is_bimodal(np.array([1.0, 2.0] * 9)), "18 samples cannot show it"
