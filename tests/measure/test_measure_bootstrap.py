"""The bootstrap: against plain resampling, and the coverage its docstring claims."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.statistics.bootstrap import (
    centre_draws,
    holm,
    noise_between,
    ratio_ci,
)
from orchestrator.statistics.medians import bootstrap_medians, median_ci
from testing.seeds import drawing_seed

POSITIVE = st.floats(1e-6, 1e6)
SERIES = st.lists(POSITIVE, min_size=2, max_size=40)
TRIAL = st.lists(SERIES, min_size=1, max_size=5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_draws_have_the_bootstrap_s_exact_distribution(n: int) -> None:
    """Every resample of so small a series can be listed; the draws must occur as often."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0][:n]
    listed = [float(np.median(r)) for r in itertools.product(values, repeat=n)]
    exact = {m: listed.count(m) / len(listed) for m in set(listed)}
    draws = bootstrap_medians(values, 200_000, np.random.default_rng(1))
    assert set(draws.tolist()) <= set(exact)
    for median, share in exact.items():
        seen = float((draws == median).mean())
        assert abs(seen - share) < 5.0 * math.sqrt(share * (1.0 - share) / draws.size) + 1e-12


def test_draws_agree_with_plain_resampling_of_a_long_series() -> None:
    rng = np.random.default_rng(2)
    values = rng.lognormal(0.0, 0.3, 200)
    plain = np.median(values[rng.integers(200, size=(10_000, 200))], axis=1)
    draws = bootstrap_medians(values, 10_000, rng)
    for q in (0.025, 0.5, 0.975):
        assert abs(np.quantile(draws, q) - np.quantile(plain, q)) < 0.1 * plain.std()


@given(SERIES)
def test_the_interval_brackets_the_median_and_stays_in_the_data(values: list[float]) -> None:
    median, low, high = median_ci(values)
    assert median == float(np.median(values))
    assert min(values) <= low <= median <= high <= max(values)
    assert median_ci(values, 0.9)[1] >= low


@pytest.mark.parametrize("n", [6, 7, 8, 10, 15, 20, 63, 64, 65, 200])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_of_a_median_covers_what_it_says(n: int, skewed: bool) -> None:
    # Where its ends lie among the ordered values depends on how many there are alone.
    _, *ends = median_ci(list(range(n)))
    rng = np.random.default_rng(drawing_seed())
    drawn = (
        rng.exponential(size=(4000, n)) / math.log(2.0)
        if skewed
        else rng.normal(1.0, 1.0, (4000, n))
    )
    drawn.sort(axis=1)
    low, high = (
        drawn[:, math.floor(end)] * (1.0 - end % 1.0) + drawn[:, math.ceil(end)] * (end % 1.0)
        for end in ends
    )
    covered = float(((low <= 1.0) & (high >= 1.0)).mean())
    # Four standard deviations of such a count, and half a percent for what is interpolated.
    assert abs(covered - 0.95) < 4.0 * math.sqrt(0.95 * 0.05 / 4000) + 0.006


def test_the_ends_of_a_median_s_interval_are_those_of_tables() -> None:
    # Of 17 values the 5th and 13th enclose the median with 95.1 %, of 6 the extremes with 96.9 %.
    assert median_ci(range(1, 18), 1.0 - 2.0 * 3214 / 2**17)[1:] == pytest.approx((5.0, 13.0))
    assert median_ci(range(1, 7), 1.0 - 2.0 / 2**6)[1:] == pytest.approx((1.0, 6.0))


@given(SERIES)
def test_a_power_of_two_scales_everything_exactly(values: list[float]) -> None:
    assert median_ci([4.0 * v for v in values]) == tuple(4.0 * part for part in median_ci(values))


@given(st.permutations([0.9, 1.0, 1.1, 1.2, 1.3, 1.5]))
def test_the_order_of_samples_does_not_matter(values: list[float]) -> None:
    assert median_ci(values) == median_ci(sorted(values))


@given(TRIAL)
def test_one_attempt_is_the_plain_bootstrap_and_several_are_centred(
    trial: list[list[float]],
) -> None:
    centre, draws = centre_draws(trial, resamples=400)
    assert centre == pytest.approx(np.mean([np.median(a) for a in trial]), rel=1e-12)
    assert draws.shape == (400,)
    assert np.isfinite(draws).all()
    if len(trial) == 1:
        slack = 1e-9 * max(trial[0])
        assert min(trial[0]) - slack <= draws.min()
        assert draws.max() <= max(trial[0]) + slack


@given(TRIAL, TRIAL, st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_ratio_scales_and_its_interval_brackets_it(
    new: list[list[float]], base: list[list[float]], factor: float
) -> None:
    found = ratio_ci(new, base, resamples=400)
    assert found.ratio is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low <= found.ci_high
    scaled = ratio_ci([[factor * v for v in a] for a in new], base, resamples=400)
    assert scaled.ratio == pytest.approx(factor * found.ratio, rel=1e-9)
    assert scaled.ci_low == pytest.approx(factor * found.ci_low, rel=1e-6)


@given(TRIAL)
def test_p_values_are_probabilities_and_agree_with_the_interval(trial: list[list[float]]) -> None:
    found = ratio_ci(trial, trial, resamples=400, tolerance=0.03, confidence=0.9)
    assert found.ratio == pytest.approx(1.0)
    for p_value in (found.p_above, found.p_below):
        assert p_value is not None
        assert 0.0 < p_value <= 1.0
    assert found.ci_low is not None
    assert found.p_above is not None
    if found.ci_low > 1.03 * (1 + 1e-9):
        assert found.p_above <= 0.05 + 2.0 / 400


def test_equal_attempts_without_spread_give_a_point() -> None:
    found = ratio_ci([[2.0, 2.0]] * 3, [[1.0, 1.0]] * 3, tolerance=0.03)
    assert (found.ratio, found.ci_low, found.ci_high) == (2.0, 2.0, 2.0)
    assert found.p_above is not None
    # As small as can be told: nothing scatters, and no number of draws would show another side.
    assert 0.0 < found.p_above < 1e-100


def test_what_cannot_be_told_says_why() -> None:
    assert ratio_ci([], [[1.0]]).reason == "no samples"
    assert ratio_ci([[1.0]], [[], []]).reason == "no samples"
    assert ratio_ci([[1.0, math.nan]], [[1.0]]).reason == "1 of 2 samples not finite"
    for nothing in (0.0, -1.0, 1e-320):
        assert ratio_ci([[1.0, 1.0]], [[nothing, nothing]]).reason == (
            "a median is not positive: there is no ratio"
        )
    single = ratio_ci([[2.0]], [[1.0]])
    assert (single.ratio, single.ci_low, single.p_above) == (2.0, None, None)
    assert single.reason == "one sample: its uncertainty cannot be known"


def test_one_attempt_borrows_the_spread_of_the_other_side() -> None:
    rng = np.random.default_rng(4)
    base = [rng.lognormal(m, 0.001, 20) for m in (-0.02, -0.01, 0.0, 0.01, 0.02)]
    alone = ratio_ci(base[2:3], base[2:3])
    against_many = ratio_ci(base[2:3], base)
    assert alone.note is not None
    assert against_many.note is not None
    assert _width(against_many) > 10 * _width(alone)


@pytest.mark.parametrize("attempts", [2, 3, 5])
def test_intervals_of_few_attempts_that_differ_cover_what_they_say(attempts: int) -> None:
    """Noise of 1 % between attempts, and of 0.56 % in the median of each."""
    rng = np.random.default_rng(drawing_seed())
    covered = 0
    for _ in range(300):
        made = [rng.normal(rng.normal(1.0, 0.01), 0.02, 20) for _ in range(attempts)]
        _, draws = centre_draws(made, resamples=1000)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= 1.0 <= high
    # Four standard deviations of such a count below 95 %; with two attempts it was 89 %.
    assert covered >= 300 * (0.95 - 4.0 * math.sqrt(0.95 * 0.05 / 300))


def test_a_known_spread_stands_in_where_each_side_has_one_attempt() -> None:
    rng = np.random.default_rng(4)
    new, base = [rng.lognormal(0.0, 0.001, 20)], [rng.lognormal(0.0, 0.001, 20)]
    known = ratio_ci(new, base, between=0.01)
    assert _width(known) == pytest.approx(2 * 1.96 * 0.01 * math.sqrt(2), rel=0.1)
    assert "1.00%" in (known.note or "")
    assert ratio_ci([[2.0]], [[1.0]], between=0.01).ci_low is not None


def _width(found: object) -> float:
    low, high = found.ci_low, found.ci_high  # type: ignore[attr-defined]
    return float(high - low)


@pytest.mark.parametrize(
    ("attempts", "between", "within"),
    [
        (3, 0.007, 0.001),
        (5, 0.0, 0.03),
        pytest.param(5, 0.007, 0.03, marks=pytest.mark.long),
        pytest.param(10, 0.007, 0.012, marks=pytest.mark.long),
    ],
)
def test_intervals_cover_what_they_say(attempts: int, between: float, within: float) -> None:
    """A/A pairs: the central 90 % interval of the ratio holds 1 in about 90 % of them."""
    rng = np.random.default_rng(attempts)
    held = []
    for seed in range(300):
        sides = [
            [rng.lognormal(rng.normal(0.0, between), within, 30) for _ in range(attempts)]
            for _ in range(2)
        ]
        found = ratio_ci(sides[0], sides[1], confidence=0.9, resamples=600, seed=seed)
        assert found.ci_low is not None
        assert found.ci_high is not None
        held.append(found.ci_low <= 1.0 <= found.ci_high)
    # 300 draws of 90 % lie over 84 % (3.4 standard deviations); where the noise within attempts
    # dominates, intervals are somewhat wide, as the module says.
    assert 0.84 <= np.mean(held) <= 0.985


@pytest.mark.parametrize(
    ("shared", "alone"),
    [
        (0.1, 0.02),
        (0.0, 0.02),
        pytest.param(0.05, 0.0, marks=pytest.mark.long),
    ],
)
def test_intervals_in_rounds_cover_and_leave_out_what_a_round_shares(
    shared: float, alone: float
) -> None:
    """A/A pairs whose attempts share a disturbance by round, and have noise of their own."""
    rng = np.random.default_rng(3)
    k, held, widths, plain_widths = 6, [], [], []
    for seed in range(300):
        rounds = rng.normal(0.0, shared, k)
        sides = [
            [rng.lognormal(mean + rng.normal(0.0, alone), 0.01, 30) for mean in rounds]
            for _ in range(2)
        ]
        options = {"confidence": 0.9, "resamples": 600, "seed": seed}
        found = ratio_ci(*sides, in_rounds=True, **options)
        held.append((found.ci_low or 9.0) <= 1.0 <= (found.ci_high or 0.0))
        widths.append(_width(found))
        plain_widths.append(_width(ratio_ci(*sides, **options)))
    assert 0.84 <= np.mean(held) <= 0.985
    if shared > alone:
        assert np.median(widths) < 0.5 * np.median(plain_widths)
    else:
        assert np.median(widths) < 1.25 * np.median(plain_widths)


def test_rounds_need_as_many_attempts_on_both_sides() -> None:
    new, base = [[1.0, 1.1]] * 3, [[1.0, 1.2]] * 2
    assert ratio_ci(new, base, in_rounds=True) == ratio_ci(new, base)
    assert ratio_ci(new[:1], base[:1], in_rounds=True) == ratio_ci(new[:1], base[:1])


@pytest.mark.parametrize(("between", "within"), [(0.007, 0.001), (0.007, 0.03), (0.0, 0.03)])
def test_the_interval_of_a_trial_covers_its_centre(between: float, within: float) -> None:
    """Attempts of one trial: the central 90 % interval holds the true centre in about 90 %."""
    rng = np.random.default_rng(11)
    held, plain = [], []
    for seed in range(300):
        trial = [rng.lognormal(rng.normal(0.0, between), within, 30) for _ in range(4)]
        centre, draws = centre_draws(trial, resamples=600, seed=seed)
        low, high = np.quantile(draws, [0.05, 0.95])
        held.append(low <= 1.0 <= high)
        # What resampling the attempts' medians alone would say: k - 1 of k parts of their spread.
        spread = 1.645 * np.std([np.median(a) for a in trial]) / math.sqrt(len(trial))
        plain.append(abs(centre - 1.0) <= spread)
    assert 0.84 <= np.mean(held) <= 0.985
    assert np.mean(plain) < np.mean(held) - 0.04


def test_noise_between_attempts() -> None:
    assert noise_between([[1.0], [1.02], [0.98]]) == pytest.approx(0.02)
    assert noise_between([[1.0, 1.1]]) is None
    assert noise_between([[1.0], [math.nan]]) is None
    assert noise_between([[-1.0], [1.0]]) is None


@given(st.lists(st.floats(0.0, 1.0), max_size=12))
def test_holm_is_monotone_and_never_below_the_p_value(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(a >= p and a <= 1.0 for a, p in zip(adjusted, p_values, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert len(p_values) != 1 or adjusted == p_values


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
