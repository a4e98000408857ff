"""What is left to do, given what was recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempt import Outcome, Trial
from orchestrator.plan.schema import RetryConfig, Settings, VerdictConfig
from orchestrator.schedule.todo import Todo, compute_todo

TRIAL = Trial(hash="a" * 64, identity={})


def todo_of(
    trials: list[Trial],
    existing: Any,
    *,
    repeats: int = 1,
    force: bool = False,
    retry_failed: bool = False,
    invalid_retries: int = 1,
) -> Todo:
    retry, verdict = RetryConfig(retry_failed), VerdictConfig(invalid_retries)
    settings = Settings(repeats=repeats, force=force, retry=retry, verdict=verdict)
    return compute_todo(trials, existing, settings)


def past(*outcomes: str | None) -> dict[str, list[Any]]:
    return {TRIAL.hash: [_past(outcome, n) for n, outcome in enumerate(outcomes, start=1)]}


def _past(outcome: object, number: int) -> SimpleNamespace:
    """Attempt number n took n seconds."""
    return SimpleNamespace(
        outcome=outcome, number=number, started_at=0.0, ended_at=float(number), host="node-1"
    )


def look(*outcomes: str | None, **asked: Any) -> tuple[str, str | None, list[int]]:
    todo = todo_of([TRIAL], past(*outcomes), **asked)
    (state,) = todo.states.values()
    return state.state, state.reason, [attempt.number for attempt in todo.attempts]


def test_the_expected_duration_is_that_of_earlier_measurements() -> None:
    def expected(*outcomes: str | None) -> list[float | None]:
        todo = todo_of([TRIAL], past(*outcomes), force=True, repeats=2)
        return [attempt.expected_s for attempt in todo.attempts]

    # Only measurements say how long one takes.
    assert expected("ok", "timeout", "ok") == [2.0, 2.0]
    assert expected("timeout") == [None, None]
    assert expected() == [None, None]


def test_unknown_trial_is_new() -> None:
    todo = todo_of([TRIAL], {}, repeats=3)
    assert [s.state for s in todo.states.values()] == ["new"]
    assert [(a.trial, a.number) for a in todo.attempts] == [(TRIAL, n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("outcomes", "asked", "state", "numbers"),
    [
        (["ok"], {}, "cached", []),
        (["ok"], {"repeats": 3}, "new", [2, 3]),
        (["ok", "ok"], {"force": True}, "new", [3]),
        (["error"], {}, "failed", []),
        (["error"], {"retry_failed": True}, "new", [2]),
        (["error", "ok"], {}, "cached", []),
        (["error", "ok"], {"repeats": 2}, "failed", []),
        (["error", "ok"], {"repeats": 2, "retry_failed": True}, "new", [3]),
        (["oom_device"], {}, "failed", []),
        (["timeout"], {}, "failed", []),
        (["crashed"], {}, "new", [2]),
        (["crashed", "crashed"], {}, "failed", []),
        (["crashed", "ok"], {}, "cached", []),
        (["lost"] * 5, {}, "new", [6]),
        (["cancelled"], {}, "new", [2]),
        ([None], {}, "new", [2]),
        (["invalid"], {}, "new", [2]),
        (["invalid", "invalid"], {}, "failed", []),
        (["invalid"], {"invalid_retries": 0}, "failed", []),
        (["invalid", "invalid", "ok"], {}, "cached", []),
        (["infeasible"], {}, "infeasible", []),
        (["infeasible"], {"retry_failed": True}, "new", [2]),
    ],
)
def test_states(
    outcomes: list[str | None], asked: dict[str, Any], state: str, numbers: list[int]
) -> None:
    found, reason, made = look(*outcomes, **asked)
    assert (found, made) == (state, numbers)
    if state == "failed":
        assert reason is not None
        assert "retry.failed=true" in reason


def test_a_retry_begun_by_an_earlier_sweep_goes_on() -> None:
    (attempt,) = todo_of([TRIAL], past("invalid"), invalid_retries=2).attempts
    assert attempt.tries == (Outcome.INVALID,)
    (attempt,) = todo_of([TRIAL], past("invalid"), retry_failed=True).attempts
    assert attempt.tries == ()


def test_infeasible_is_recorded_once() -> None:
    trial = Trial(hash="b" * 64, identity={}, infeasible="no GPU here")
    todo = todo_of([trial], {}, repeats=5)
    assert [a.number for a in todo.attempts] == [1]
    assert todo.states[trial.hash].reason == "no GPU here"
    again = todo_of([trial], {trial.hash: [_past("infeasible", 1)]}, force=True)
    assert again.attempts == ()


def test_what_was_refused_before_it_ran_runs_once_it_is_not() -> None:
    refused = _past("infeasible", 1)
    refused.host = None
    todo = todo_of([TRIAL], {TRIAL.hash: [refused]})
    assert [s.state for s in todo.states.values()] == ["new"]
    assert [(a.number, a.tries) for a in todo.attempts] == [(2, ())]
    found = todo_of([TRIAL], {TRIAL.hash: [refused, _past("infeasible", 2)]})
    assert [s.state for s in found.states.values()] == ["infeasible"]


def test_outcomes_may_be_the_enumeration() -> None:
    known = {TRIAL.hash: [_past(Outcome.OK, 7)]}
    assert todo_of([TRIAL], known).states[TRIAL.hash].state == "cached"
    assert todo_of([TRIAL], known, repeats=2).attempts[0].number == 8


@given(
    outcomes=st.lists(st.sampled_from([o.value for o in Outcome])),
    repeats=st.integers(1, 5),
    retry_failed=st.booleans(),
    force=st.booleans(),
)
def test_attempts_are_made_exactly_where_something_is_new(
    outcomes: list[str], repeats: int, retry_failed: bool, force: bool
) -> None:
    state, _, made = look(*outcomes, repeats=repeats, retry_failed=retry_failed, force=force)
    assert (state == "new") == bool(made)
    assert len(made) <= repeats
    assert made == list(range(len(outcomes) + 1, len(outcomes) + 1 + len(made)))
