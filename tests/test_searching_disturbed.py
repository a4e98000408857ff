"""``search=capacity`` on a machine that is not quiet: what is invalid is asked for again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.commands.searching import Searched, next_step, sentence
from orchestrator.measure import Samples
from orchestrator.plan.expand import number_at
from orchestrator.report.analyse.labels import labels_of
from orchestrator.search.capacity import Ask, Found, Undecided
from testing.search_levels import LIMIT, OPEN, attempt, next_trial, planned
from testing.seeds import drawing_seed
from testing.trial import ok_report


def test_what_is_invalid_is_asked_for_again_and_too_much_of_it_ends_the_search() -> None:
    plan = planned(*OPEN, *LIMIT)
    draw = np.random.default_rng(drawing_seed())
    found = Searched(plan, plan.trials[0])
    made: dict[str, list[AttemptReport]] = {}

    def step(count: int, **changed: Any) -> Ask | Found:
        trial = next_trial(found)
        reports = made.setdefault(trial.hash, [])
        for _ in range(count):
            report = attempt(trial, 5.0, draw)
            reports.append(replace(report, started_at=float(len(reports)), **changed))
        found.answered(made)
        return found.next

    step(1)
    asked = next_trial(found)
    disturbed = {"outcome": Outcome.INVALID, "reason": "the machine was busy"}
    for again in range(4):
        step(1, **disturbed)
        assert found.asks_again, again
        assert next_trial(found) == asked
    # Those of the first level are known; of the next one more are invalid than may be.
    ended = step(1, **disturbed)
    assert isinstance(ended, Undecided)
    assert ended.reason.startswith(
        f"load.rate={number_at(asked, 'load.rate'):g} has 0 of the attempts it needs (1): "
        "5 attempts invalid, the machine was busy. Look at it: python -m orchestrator show "
    )
    assert [level.level for level in ended.levels] == [2.0]


def test_a_valid_attempt_in_place_of_an_invalid_one_lets_the_search_go_on() -> None:
    plan = planned(*OPEN, *LIMIT)
    draw = np.random.default_rng(drawing_seed())
    found = Searched(plan, plan.trials[0])
    trial = next_trial(found)
    first = next_step([found], plan)
    assert first is not None
    # Nobody waits for a machine to get quiet that may be so already.
    assert (first.settings.verdict.retries, first.settings.retry.failed) == (0, False)
    reports = [replace(attempt(trial, 5.0, draw), outcome=Outcome.INVALID, reason="busy")]
    found.answered({trial.hash: reports})
    again = next_step([found], plan)
    assert again is not None
    assert again.trials == (trial,)
    assert again.settings.verdict.retries == plan.settings.verdict.retries > 0
    assert again.settings.retry.failed
    reports.append(attempt(trial, 5.0, draw))
    found.answered({trial.hash: reports})
    assert not found.asks_again
    further = next_step([found], plan)
    assert further is not None
    assert further.trials == (next_trial(found),) != (trial,)
    assert list(labels_of(further).values()) == [f"rate {further.trials[0].axes['load.rate']:g}"]


def test_at_a_later_look_invalid_attempts_of_an_earlier_one_are_made_up_for() -> None:
    plan = planned(*OPEN, *LIMIT)
    found = Searched(plan, plan.trials[0])
    trial = next_trial(found)
    at_the_edge = ok_report(
        Samples("ttft_s", "s", (0.8,) * 10 + (0.4,) * 190),
        Samples("answered", "1", (1.0,) * 200),
        Samples("request_new_tokens", "1", (8.0,) * 200),
    )
    disturbed = replace(at_the_edge, outcome=Outcome.INVALID, reason="busy")

    def answered_by(valid: int) -> bool:
        found.answered({trial.hash: [disturbed, *[at_the_edge] * valid]})
        return found.asks_again

    assert answered_by(0)
    assert not answered_by(1)
    assert isinstance(found.next, Ask)
    assert (next_trial(found), found.next.attempts) == (trial, 3)
    # The invalid one counts as made at first; and if nothing more is made, that is the end.
    assert answered_by(2)
    assert not answered_by(2)
    assert isinstance(found.next, Undecided)


def test_attempts_that_were_invalid_before_this_search_do_not_end_it() -> None:
    plan = planned(*OPEN, *LIMIT)
    found = Searched(plan, plan.trials[0])
    trial = next_trial(found)
    draw = np.random.default_rng(drawing_seed())
    old = [replace(attempt(trial, 5.0, draw), outcome=Outcome.INVALID)] * 9
    found.answered({trial.hash: old})
    assert found.asks_again
    found.answered({trial.hash: [*old, attempt(trial, 5.0, draw)]})
    assert next_trial(found) != trial


def test_what_can_run_at_no_level_is_no_matter_of_the_level() -> None:
    plan = planned(*OPEN, *LIMIT)
    found = Searched(plan, plan.trials[0])
    while isinstance(found.next, Ask):
        trial = next_trial(found)
        reason = "endpoint has no bf16; it has source"
        cannot = replace(ok_report(), outcome=Outcome.INFEASIBLE, reason=reason)
        found.answered({trial.hash: [cannot]})
    assert isinstance(found.next, Undecided)
    assert (found.next.low, found.next.high) == (None, None)
    assert found.next.reason == (
        "a trial can run at none of them: endpoint has no bf16; it has source"
    )


def test_several_searches_are_told_apart_by_their_axes() -> None:
    plan = planned(*OPEN, *LIMIT, "task.prompt_tokens=8,16")
    searches = [Searched(plan, trial) for trial in plan.trials]
    for each in searches:
        each.answered({next_trial(each).hash: []})
    assert [sentence(each, plan).split(":")[0] for each in searches] == ["8→32", "16→32"]
    step = next_step([Searched(plan, trial) for trial in plan.trials], plan)
    assert step is not None
    assert len(step.trials) == 2
