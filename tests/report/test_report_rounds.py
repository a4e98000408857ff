"""Attempts made in turn: recognised by the clock, compared round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome, Verdict
from orchestrator.measure import Samples
from orchestrator.report.analyse.compare import compare
from orchestrator.report.analyse.pairing import LEAST_ROUNDS, rounds_of

HASH = "a" * 64
K = 6
# A machine that is slower for some minutes: the same factor for both attempts of a round.
DRIFT = (1.0, 1.12, 1.25, 1.2, 1.05, 0.95)


def attempt(factor: float, began: float, seed: int) -> AttemptReport:
    values = factor * np.random.default_rng(seed).lognormal(0.0, 0.005, 20)
    return AttemptReport(
        f"{seed}",
        HASH,
        Outcome.OK,
        started_at=began,
        metrics={"tpot_s": Samples("tpot_s", "s", tuple(values.tolist()))},
        verdict=Verdict("valid"),
    )


def side(factor: float, *, first_at: float, seed: int) -> list[AttemptReport]:
    return [attempt(factor * drift, first_at + 10.0 * n, seed + n) for n, drift in enumerate(DRIFT)]


def begins(reports: Sequence[AttemptReport]) -> list[float]:
    return [report.started_at for report in reports]


def test_attempts_in_turn_are_paired_by_round_whatever_order_they_come_in() -> None:
    a, b = side(1.0, first_at=0.0, seed=0), side(1.0, first_at=4.0, seed=50)
    # Within a round either may come first.
    b[2], a[2] = replace(b[2], started_at=20.0), replace(a[2], started_at=21.0)
    rounds = rounds_of(a[::-1], b)
    assert begins([own for own, _ in rounds]) == [0.0, 10.0, 21.0, 30.0, 40.0, 50.0]
    assert begins([other for _, other in rounds]) == [4.0, 14.0, 20.0, 34.0, 44.0, 54.0]


@pytest.mark.parametrize(
    "b",
    [
        side(1.0, first_at=1_000.0, seed=50),  # another day
        side(1.0, first_at=4.0, seed=50)[:-1],  # one was lost
        [replace(r, started_at=0.0) for r in side(1.0, first_at=0.0, seed=50)],  # no clock
    ],
)
def test_what_was_not_made_in_turn_is_not_paired(b: list[AttemptReport]) -> None:
    assert rounds_of(side(1.0, first_at=0.0, seed=0), b) == []


def test_few_rounds_are_not_worth_their_degrees_of_freedom() -> None:
    few = LEAST_ROUNDS - 1
    a, b = side(1.0, first_at=0.0, seed=0), side(1.0, first_at=4.0, seed=50)
    assert rounds_of(a[:few], b[:few]) == []
    assert len(rounds_of(a[: few + 1], b[: few + 1])) == few + 1


def test_a_slowdown_within_rounds_is_seen_through_drift_that_hides_it_otherwise() -> None:
    a = side(1.0, first_at=0.0, seed=0)
    in_turn = compare({HASH: a}, {HASH: side(1.08, first_at=4.0, seed=50)}).rows[0]
    later = compare({HASH: a}, {HASH: side(1.08, first_at=1_000.0, seed=50)}).rows[0]
    assert in_turn.judged.finding == "regression"
    assert in_turn.note == "attempts made in turn: compared round by round"
    assert in_turn.judged.ratio == pytest.approx(1.08, rel=0.01)
    assert later.judged.finding == "inconclusive"
    assert later.judged.ratio == pytest.approx(in_turn.judged.ratio)


def test_an_attempt_without_the_metric_ends_pairing_for_it() -> None:
    a, b = side(1.0, first_at=0.0, seed=0), side(1.08, first_at=4.0, seed=50)
    b[3] = replace(b[3], metrics={})
    row = compare({HASH: a}, {HASH: b}, metrics=["tpot_s"]).rows[0]
    assert row.note is None
    assert (row.attempts_a, row.attempts_b) == (K, K - 1)
