"""Stopping rules, each a decision over the samples so far."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from orchestrator.measure.stopping import StoppingProtocol, WithinConfidence

STANDARD = {
    "warmup": 2,
    "min_repetitions": 10,
    "max_repetitions": 50,
    "max_time_s": 60.0,
    "ci_relative_half_width": 0.02,
    "confidence": 0.95,
    "resamples": 10_000,
}


def test_one_sample_is_never_enough() -> None:
    assert not WithinConfidence(10.0).met([1.0])


def test_a_narrow_series_is_enough_and_a_wide_one_is_not() -> None:
    rule = WithinConfidence(0.02)
    assert rule.met([1.0, 1.001, 0.999, 1.0, 1.002] * 2)
    assert not rule.met([1.0, 1.3, 0.8, 1.1, 0.9] * 2)


def test_the_interval_may_reach_no_further_to_either_side() -> None:
    # Nothing below the median, 3 % above it: 1.5 % on average, and still too wide for 2 %.
    skewed = [1.0] * 6 + [1.03] * 5
    assert not WithinConfidence(0.02).met(skewed)
    assert WithinConfidence(0.035).met(skewed)


def test_one_lucky_look_is_not_enough() -> None:
    rule = WithinConfidence(0.02)
    wide_then_narrow = [0.9, 1.1, 0.9, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    looks = [rule.met(wide_then_narrow + [1.0] * more) for more in range(12)]
    first = looks.index(True)
    assert all(looks[first:])
    narrow = [rule._narrow(wide_then_narrow + [1.0] * more) for more in range(12)]
    assert narrow.index(True) == first - 2


def test_more_looks_ask_for_more() -> None:
    values = np.random.default_rng(3).lognormal(0.0, 0.03, 25).tolist()
    widths = [
        next(
            w
            for w in np.arange(0.005, 0.2, 0.0025)
            if WithinConfidence(float(w), looks=looks).met(values)
        )
        for looks in (1, 41)
    ]
    assert widths[0] < widths[1]


def test_a_median_of_zero_stops_only_without_any_spread() -> None:
    rule = WithinConfidence(0.5)
    assert rule.met([0.0] * 5)
    assert not rule.met([-1.0, 0.0, 1.0, 0.0, 0.5])


def test_the_first_rule_met_gives_the_reason() -> None:
    rules = StoppingProtocol.of(STANDARD)
    steady, wild = [1.0] * 9, [1.0, 2.0] * 25
    assert rules.stop_reason(steady, 1e6) is None, "fewer than the least number"
    assert rules.stop_reason([*steady, 1.0], 1e6) == "ci"
    assert rules.stop_reason(wild[:49], 0.0) is None
    assert rules.stop_reason(wild, 0.0) == "max_repetitions"
    assert rules.stop_reason(wild[:20], 60.0) == "max_time"
    assert rules.stop_reason(wild[:20], 59.0) is None


def test_a_noisy_series_seldom_stops_early_by_luck() -> None:
    """3 % noise needs about 40 samples for 2 %; half of all series seem narrow by the 12th."""
    from orchestrator.statistics.medians import median_ci

    def seems_narrow(values: list[float]) -> bool:
        median, low, high = median_ci(values)
        return (high - low) / 2.0 <= 0.02 * median

    rng = np.random.default_rng(11)
    rules = StoppingProtocol.of(STANDARD)
    series = [rng.lognormal(0.0, 0.03, 15).tolist() for _ in range(60)]
    lucky = sum(any(seems_narrow(s[:n]) for n in range(10, 16)) for s in series)
    stopped = sum(any(rules.stop_reason(s[:n], 0.0) for n in range(10, 16)) for s in series)
    assert lucky >= 30
    assert stopped <= 3


@pytest.mark.parametrize("sd", [0.0, 0.002, 0.005])
def test_a_quiet_series_stops_at_once(sd: float) -> None:
    values = np.random.default_rng(5).lognormal(0.0, sd, 10).tolist()
    assert StoppingProtocol.of(STANDARD).stop_reason(values, 0.0) == "ci"


@pytest.mark.parametrize("n", [2, 3, 10, 11, 64, 65, 66, 201])
@pytest.mark.parametrize("tail", [0.025, 0.001])
def test_the_interval_is_that_of_as_many_resamples_as_one_likes(n: int, tail: float) -> None:
    from orchestrator.statistics.medians import bootstrap_medians, median_interval

    values = np.random.default_rng(n).permutation(n).astype(float)
    draws = bootstrap_medians(values, 400_000, np.random.default_rng(1))
    ends = np.quantile(draws, [tail, 1.0 - tail], method="inverted_cdf")
    assert median_interval(values.tolist(), tail) == pytest.approx(ends, abs=1.0)


def test_a_look_takes_no_more_memory_the_more_looks_there_may_be() -> None:
    rules = StoppingProtocol.of({**STANDARD, "max_repetitions": 10_000_000, "confidence": 0.9999})
    values = np.random.default_rng(2).lognormal(0.0, 0.03, 1000).tolist()
    tracemalloc.start()
    try:
        assert rules.stop_reason(values, 0.0) == "ci"
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
