"""The judge: which way is worse, what an interval decides, and that swapping sides mirrors it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.measure.vocabulary import VOCABULARY
from orchestrator.statistics.judge import Judged, Side, judge, tolerance

MIRRORED = {"regression": "improvement", "improvement": "regression"}

samples = st.lists(st.floats(0.5, 2.0), min_size=1, max_size=6).map(tuple)
sides = st.lists(samples, min_size=1, max_size=4)
directions = st.sampled_from(["lower", "higher", None])
noises = st.one_of(st.none(), st.floats(0.0, 0.1))


def side(factor: float = 1.0, seed: int = 0, attempts: int = 5) -> Side:
    """Attempts with 1 % noise within and 0.3 % between processes."""
    rng = np.random.default_rng(seed)
    return [
        tuple((factor * rng.lognormal(rng.normal(0.0, 0.003), 0.01, 20)).tolist())
        for _ in range(attempts)
    ]


@pytest.mark.parametrize(
    ("metric", "factor", "finding"),
    [
        ("tpot_s", 1.10, "regression"),
        ("tpot_s", 0.90, "improvement"),
        ("tpot_s", 1.00, "equivalent"),
        ("decode_tokens_per_s", 0.90, "regression"),
        ("decode_tokens_per_s", 1.10, "improvement"),
        ("mfu", 0.90, "regression"),
        ("perplexity", 1.10, "regression"),
        ("top1_agreement", 0.90, "regression"),
        ("peak_memory_over_weights_bytes", 1.10, "regression"),
        ("joules_per_token", 1.10, "regression"),
        ("power_w", 1.10, "inconclusive"),
        ("power_w", 1.00, "equivalent"),
    ],
)
def test_it_knows_which_way_is_worse(metric: str, factor: float, finding: str) -> None:
    spec = VOCABULARY[metric]
    found = judge(side(factor, 1), side(seed=2), better=spec.better, exact=spec.exact)
    assert found.finding == finding
    assert found.ratio == pytest.approx(factor, abs=0.01)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < found.ratio < found.ci_high


def test_close_to_the_tolerance_nothing_is_claimed() -> None:
    found = judge(side(1.03, 1), side(seed=2), better="lower")
    assert found.finding == "inconclusive"
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert found.ci_low < 1.03 < found.ci_high


@settings(deadline=None, max_examples=60)
@given(sides, sides, directions, st.booleans(), noises)
def test_swapping_the_sides_mirrors_the_finding(
    a: Side, b: Side, better: str | None, exact: bool, noise: float | None
) -> None:
    terms = {"better": better, "exact": exact, "noise": noise}
    there, back = judge(a, b, **terms), judge(b, a, **terms)  # type: ignore[arg-type]
    if a == b:
        assert there == back
        return
    assert back.finding == MIRRORED.get(there.finding, there.finding)
    assert (there.reason, there.note) == (back.reason, back.note)
    for one, other in ((there.ratio, back.ratio), (there.ci_low, back.ci_high)):
        assert (one is None) == (other is None)
        assert one is None or other is None or one * other == pytest.approx(1.0)


@settings(deadline=None, max_examples=60)
@given(sides, sides, directions, noises)
def test_a_finding_is_what_its_interval_says(
    a: Side, b: Side, better: str | None, noise: float | None
) -> None:
    found: Judged = judge(a, b, better=better, noise=noise)  # type: ignore[arg-type]
    above = 1.0 + tolerance(noise)
    if found.ci_low is None or found.ci_high is None:
        assert found.finding == "inconclusive"
        assert found.reason
        return
    worse = {"lower": found.ci_low > above, "higher": found.ci_high < 1.0 / above}
    good = {"higher": found.ci_low > above, "lower": found.ci_high < 1.0 / above}
    same = 1.0 / above <= found.ci_low and found.ci_high <= above
    expected = {"regression": worse, "improvement": good}.get(found.finding)
    if expected is not None:
        assert expected[better or ""]
    assert (found.finding == "equivalent") == same


def test_tau_grows_with_the_noise_of_the_hardware() -> None:
    assert tolerance(None) == tolerance(0.01) == 0.03
    assert tolerance(0.04) == 0.08
    slow = side(1.06, 1), side(seed=2)
    assert judge(*slow, better="lower").finding == "regression"
    assert judge(*slow, better="lower", noise=0.05).finding == "equivalent"


def test_of_what_is_exact_one_value_decides() -> None:
    def exact(new: float, base: float) -> Judged:
        return judge([(new,)], [(base,)], better="lower", exact=True)

    assert exact(150.0, 100.0) == Judged("regression", 0.03, 1.5, 1.5, 1.5)
    assert exact(101.0, 100.0).finding == exact(100.0, 100.0).finding == "equivalent"
    assert exact(0.0, 0.0) == Judged("equivalent", 0.03)
    nothing = exact(0.1, 0.0)
    assert (nothing.finding, nothing.ratio) == ("inconclusive", None)
    assert nothing.reason == "a median is not positive: there is no ratio"


def test_what_scatters_is_not_exact_whatever_was_declared() -> None:
    base, new = [(100.0,), (109.0,), (93.0,)], [(106.0,), (97.0,), (113.0,)]
    found = judge(new, base, better="lower", exact=True)
    assert found == judge(new, base, better="lower")
    assert found.finding == "inconclusive"


def test_zeros_that_are_all_there_is_are_the_same() -> None:
    zeros = [(0.0,)] * 3
    assert judge(zeros, zeros, better="lower") == Judged("equivalent", 0.03)
    assert judge([(0.0,) * 5], [(0.0,) * 5], better="higher").finding == "equivalent"
    # One of each may be zero by chance, and of zeros and others there is no ratio.
    for other in ([(0.0,)], [(0.0,), (0.1,)]):
        assert judge(other, [(0.0,)], better="lower").finding == "inconclusive"


@pytest.mark.parametrize("noise", [None, 0.01])
def test_one_sample_a_side_decides_nothing(noise: float | None) -> None:
    found = judge([(9.0,)], [(1.0,)], better="lower", noise=noise)
    assert (found.finding, found.ratio, found.ci_low) == ("inconclusive", 9.0, None)
    assert found.reason == "one sample: its uncertainty cannot be known"


def test_nothing_to_judge_is_incomparable() -> None:
    assert judge([], [(1.0,)], better="lower").finding == "incomparable"
    assert judge([(1.0,)], [], better="lower").reason == "no samples of the baseline"
