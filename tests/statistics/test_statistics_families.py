"""Many ratios judged together: a regression among more than 500 rows can be found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.gate_power import CONF, family_side
from orchestrator.report.analyse.gate import gate
from orchestrator.report.analyse.gate_rules import load_rules
from orchestrator.statistics.bootstrap import ratio_ci
from orchestrator.statistics.judge import judge
from orchestrator.statistics.medians import bootstrap_medians
from orchestrator.statistics.tail import tail
from testing.seeds import drawing_seed

ROWS = 600


@pytest.mark.parametrize(
    ("beyond", "nu", "expected"),
    # Student's t: 2.776 and 2.306 are its 97.5 % points, 6.442 and 31.6 its 99.99 and 99.95 % ones.
    [(2.776, 4, 0.025), (2.306, 8, 0.025), (6.442, 8, 1e-4), (31.599, 2, 5e-4), (0.0, 3, 0.5)],
)
def test_the_tail_of_a_spread_is_student_s(beyond: float, nu: float, expected: float) -> None:
    assert tail(beyond, 1.0, nu) == pytest.approx(expected, rel=2e-3)
    assert tail(-beyond, 1.0, nu) == pytest.approx(1.0 - expected, rel=2e-3)


def test_the_tail_without_doubt_is_the_normal_s() -> None:
    assert tail(4.0, 1.0, math.inf) == pytest.approx(3.167e-5, rel=1e-3)
    assert tail(5.0, 5.0, math.inf) == pytest.approx(0.158655, rel=1e-5)
    assert (tail(1.0, 0.0, 4.0), tail(-1.0, 0.0, 4.0)) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20])
def test_ranks_from_the_table_are_those_of_plain_resampling(n: int) -> None:
    rng = np.random.default_rng([drawing_seed(), n])
    values = rng.lognormal(size=n)
    drawn = bootstrap_medians(values, 100_000, rng)
    plain = np.median(values[rng.integers(n, size=(100_000, n))], axis=1)
    points = np.quantile(plain, [0.05, 0.25, 0.5, 0.75, 0.95])
    for point in points:
        # Six standard errors of a difference of two shares.
        assert abs((drawn <= point).mean() - (plain <= point).mean()) < 6 * 0.5 * math.sqrt(2e-5)


def test_small_p_values_are_told_and_agree_where_draws_can_tell() -> None:
    rng = np.random.default_rng(drawing_seed())
    base = [tuple(rng.lognormal(rng.normal(0, 0.005), 0.02, 20)) for _ in range(5)]
    new = [tuple(1.1 * rng.lognormal(rng.normal(0, 0.005), 0.02, 20)) for _ in range(5)]
    few = ratio_ci(new, base, tolerance=0.03)
    assert few.p_above is not None
    assert few.p_above < 0.05 / 2_000
    # Closer to the edge, where a hundred times as many draws can still count.
    close = float(few.ratio or 1.0) / 1.03 - 1.0
    for share in (0.35, 0.6):
        seen = ratio_ci(new, base, tolerance=(1 + share * close) * 1.03 - 1)
        counted = ratio_ci(new, base, tolerance=(1 + share * close) * 1.03 - 1, resamples=1_000_000)
        assert seen.p_above is not None
        assert counted.p_above is not None
        assert counted.p_above / 5 < seen.p_above < 5 * counted.p_above + 1e-5


def test_the_one_regression_among_hundreds_of_rows_is_found_and_no_other() -> None:
    """With 10,000 draws alone the smallest p was 1/10,001: times 600 it is never below 5 %."""
    rng = np.random.default_rng(drawing_seed())
    hashes = [f"{index:064x}" for index in range(ROWS)]
    base, new = family_side(hashes, None, rng), family_side(hashes, hashes[7], rng)
    found = gate(new, base, load_rules(CONF / "gate" / "default.yaml"))
    assert [row.hash for row in found.rows if row.state == "regression"] == [hashes[7]]
    assert found.exit_code == 1


def test_a_tenth_slower_is_found_among_two_thousand() -> None:
    rng = np.random.default_rng([drawing_seed(), 1])

    def side(factor: float) -> list[tuple[float, ...]]:
        return [tuple(factor * values) for values in rng.lognormal(0.0, 0.02, (5, 20))]

    found = [judge(side(1.1), side(1.0), better="lower").p_worse or 0.0 for _ in range(40)]
    assert sum(p <= 0.05 / 2_000 for p in found) >= 38


def test_at_the_edge_of_the_tolerance_small_p_values_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng([drawing_seed(), 2])

    def side(factor: float) -> list[tuple[float, ...]]:
        return [
            tuple(factor * v) for v in rng.lognormal(rng.normal(0.0, 0.007, (5, 1)), 0.02, (5, 20))
        ]

    found = np.array([judge(side(1.03), side(1.0), better="lower").p_worse for _ in range(300)])
    for level in (0.01, 0.001):
        # Binomial, with a chance of 1e-4 of more.
        most = level * found.size + 3.7 * math.sqrt(level * found.size) + 3
        assert (found <= level).sum() <= most
