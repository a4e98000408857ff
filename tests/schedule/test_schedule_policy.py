"""Retry policy: every outcome has one, and repeats are counted as spent by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempt import Outcome
from orchestrator.schedule.policy import retry_policy, units_spent

RESULTS = {Outcome.OK, Outcome.OOM_DEVICE, Outcome.ERROR, Outcome.TIMEOUT, Outcome.INFEASIBLE}


def test_every_outcome_has_a_rule_and_results_are_final() -> None:
    policy = retry_policy()
    assert set(policy) == set(Outcome)
    assert all(policy[outcome].times == 0 for outcome in RESULTS)
    assert policy[Outcome.LOST].elsewhere
    assert policy[Outcome.OOM_HOST].times == 1


def test_backoff_grows() -> None:
    lost = retry_policy()[Outcome.LOST]
    delays = [lost.delay_before(n) for n in range(1, lost.times + 1)]
    assert delays == sorted(set(delays))
    assert delays[0] == lost.delay_s


@pytest.mark.parametrize(
    ("counts", "spent"),
    [
        ({Outcome.OK: 3}, 0),
        ({Outcome.ERROR: 2}, 2),
        ({Outcome.CRASHED: 1}, 0),
        ({Outcome.CRASHED: 2}, 1),
        ({Outcome.INVALID: 3}, 1),
        ({Outcome.INVALID: 4}, 2),
        ({Outcome.LOST: 50, Outcome.CANCELLED: 50}, 0),
        ({Outcome.TIMEOUT: 1, Outcome.CRASHED: 3}, 2),
    ],
)
def test_repeats_spent(counts: dict[Outcome, int], spent: int) -> None:
    assert units_spent(counts, retry_policy(invalid_retries=1)) == spent


@given(st.dictionaries(st.sampled_from(list(Outcome)), st.integers(0, 20)))
def test_more_failures_never_spend_less(counts: dict[Outcome, int]) -> None:
    policy = retry_policy()
    for outcome in counts:
        more = {**counts, outcome: counts[outcome] + 1}
        assert units_spent(more, policy) >= units_spent(counts, policy)
