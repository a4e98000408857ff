"""``search=capacity``: levels are trials of their own, answered by what is recorded of them."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.commands.plan import plan_command
from orchestrator.commands.searching import Searched, search, searches_of, sentence
from orchestrator.errors import ConfigError
from orchestrator.measure import Absent, Samples, Value
from orchestrator.plan.expand import build
from orchestrator.plan.plan import Plan
from orchestrator.search.capacity import Ask, Found, LevelFound, Undecided
from orchestrator.statistics.attainment import Attainment
from orchestrator.telemetry.verdict import judge
from testing.commands import orchestrator
from testing.null_server import null_server
from testing.search_levels import LIMIT, OPEN, SERVED, attempt, next_trial, planned
from testing.seeds import drawing_seed
from testing.trial import ok_report


def answered(plan: Plan, edge: float, over: str = "load.rate") -> tuple[Searched, int]:
    """The search at its end, and how many attempts it asked for."""
    draw = np.random.default_rng(drawing_seed())
    found = Searched(plan, plan.trials[0])
    made: dict[str, list[AttemptReport]] = {}
    while isinstance(found.next, Ask):
        trial = found.trial_at(found.next.level)
        reports = made.setdefault(trial.hash, [])
        while len(reports) < found.next.attempts:
            reports.append(attempt(trial, edge, draw, over))
            reports[-1].started_at = float(len(reports))
        found.answered(made)
    return found, sum(map(len, made.values()))


def test_levels_are_trials_and_the_answer_is_an_interval() -> None:
    plan = planned(*OPEN, *LIMIT)
    found, attempts = answered(plan, edge=5.0)
    answer = found.next
    assert isinstance(answer, Found)
    assert not isinstance(answer, Undecided)
    assert answer.low is not None
    assert answer.high is not None
    assert answer.low < 5.0 < answer.high
    assert sum(level.attainment.attempts for level in answer.levels) == attempts
    assert answer.binding == "ttft_s"
    # As the command line would have made them: somebody may have measured them before.
    for level, trial in found.levels.items():
        (typed,) = planned("load=open", f"load.rate={level}", "load.requests=200").trials
        assert trial.hash == typed.hash
    said = sentence(found, plan)
    assert f"between {answer.low:g} and {answer.high:g}" in said
    assert "95% of requests keep ttft_s=0.5" in said


def test_a_search_that_is_stopped_says_what_it_knows() -> None:
    plan = planned(*OPEN, *LIMIT)
    draw = np.random.default_rng(drawing_seed())
    known: list[tuple[float | None, float | None]] = []
    found = Searched(plan, plan.trials[0])
    made: dict[str, list[AttemptReport]] = {}
    while isinstance(ask := found.next, Ask):
        known.append((ask.so_far.low, ask.so_far.high))
        stopped = copy(found)
        stopped.stop()
        said = sentence(stopped, plan)
        assert "the search was stopped" in said
        assert all(f"{end:g}" in said for end in known[-1] if end)
        reports = made.setdefault(found.trial_at(ask.level).hash, [])
        while len(reports) < ask.attempts:
            reports.append(attempt(found.trial_at(ask.level), 5.0, draw))
            reports[-1].started_at = float(len(reports))
        found.answered(made)
    assert isinstance(found.next, Found)
    known.append((found.next.low, found.next.high))
    # Nothing at first; then ends that never lie further apart than before.
    lows = [low or 0.0 for low, _ in known]
    highs = [high or math.inf for _, high in known]
    assert known[0] == (None, None)
    assert lows == sorted(lows)
    assert highs == sorted(highs, reverse=True)


CLOSED = ("load=closed", "load.concurrency=4", "load.requests=200")


@pytest.mark.parametrize(
    ("words", "over", "edge"),
    [
        (CLOSED, "load.concurrency", 23.5),
        pytest.param(
            (*CLOSED, "task.new_tokens=16"), "task.new_tokens", 300.5, marks=pytest.mark.long
        ),
        pytest.param(
            (*CLOSED, "task.prompt_tokens=512"), "task.prompt_tokens", 90.5, marks=pytest.mark.long
        ),
        (OPEN, "load.turns", 7.5),
    ],
)
def test_any_whole_number_of_a_load_is_searched_over(
    words: tuple[str, ...], over: str, edge: float
) -> None:
    plan = planned(*words, "search=capacity", f"search.over={over}", "slo.ttft_s=0.5")
    found, _ = answered(plan, edge, over)
    answer = found.next
    assert isinstance(answer, Found)
    assert answer.low is not None
    assert answer.high is not None
    assert isinstance(answer.low, int)
    assert answer.low < edge < answer.high
    other = [word for word in words if not word.startswith(over)]
    for level, trial in found.levels.items():
        (typed,) = planned(*other, f"{over}={level:d}").trials
        assert trial.hash == typed.hash


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome.OOM_HOST, "above it memory runs out"),
        (Outcome.INFEASIBLE, "above it a trial cannot run"),
    ],
)
def test_a_level_that_cannot_run_has_failed(outcome: Outcome, said: str) -> None:
    over = "load.concurrency"
    plan = planned(*CLOSED, "search=capacity", f"search.over={over}", "slo.ttft_s=0.5")
    draw = np.random.default_rng(drawing_seed())
    found = Searched(plan, plan.trials[0])
    made: dict[str, list[AttemptReport]] = {}
    while isinstance(found.next, Ask):
        trial = found.trial_at(found.next.level)
        if found.next.level > 21:
            made[trial.hash] = [ok_report(outcome=outcome)]
        else:
            made[trial.hash] = [
                attempt(trial, 1000.0, draw, over) for _ in range(found.next.attempts)
            ]
        found.answered(made)
    answer = found.next
    assert isinstance(answer, Found)
    assert not isinstance(answer, Undecided)
    assert answer.low is not None
    assert answer.high is not None
    assert answer.low <= 21 < answer.high <= answer.low * 1.2 + 1
    assert said in sentence(found, plan)


@pytest.mark.parametrize(
    ("words", "edge", "low", "high"),
    [
        ((*OPEN, "search.over=load.prefix_share", "load.prefix_share=0.6"), 1e9, 0.999, None),
        ((*OPEN, "search.over=load.rate", "load.rate=0.002"), 1e-9, None, 0.001),
    ],
)
def test_a_search_ends_at_the_bounds_of_its_number(
    words: tuple[str, ...], edge: float, low: float | None, high: float | None
) -> None:
    plan = planned("search=capacity", *words, "slo.ttft_s=0.5")
    over = Searched(plan, plan.trials[0]).over
    found, _ = answered(plan, edge, over)
    assert isinstance(found.next, Found)
    assert (found.next.low, found.next.high) == (low, high)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (None, None, "whether 95% of requests keep ttft_s=0.5 is open at each load.rate"),
        (None, 1.0, "even load.rate=1 is too much"),
        (None, 2.0, ": load.rate=2 is too much"),
        (2.0, None, "at load.rate=2, no higher level has failed"),
        (4.0, None, "at load.rate=4, the highest that was looked at"),
    ],
)
def test_an_end_that_stays_open_is_said(low: float | None, high: float | None, said: str) -> None:
    plan = planned(*OPEN, *LIMIT)
    found = Searched(plan, plan.trials[0])
    share = Attainment(20, 1, 0.95, 1.0, 0.95)
    levels = tuple(LevelFound(level, "undecided", share) for level in (1.0, 2.0, 4.0))
    found.next = Undecided(low, high, None, None, levels, "more attempts")
    assert said in sentence(found, plan)
    assert "undecided: more attempts" in sentence(found, plan)


def test_of_a_task_without_requests_each_repetition_is_one() -> None:
    words = ("task=inference", "engine=llamacpp", "quant=q4_0", "task.batch_size=2", "reuse=hash")
    asked = ("search=capacity", "search.over=task.batch_size", "slo.e2e_s=0.5", "search.width=1")
    plan = build([*words, *asked, "search.most_attempts=200"], device_kind=lambda cluster: "cpu")
    found, _ = answered(plan, 12.5, "task.batch_size")
    answer = found.next
    assert isinstance(answer, Found)
    assert answer.low is not None
    assert answer.high is not None
    assert answer.low < 12.5 < answer.high
    assert "95% of repetitions keep e2e_s=0.5" in sentence(found, plan)
    one_token = build(
        [*words, *asked, "task.new_tokens=1", "slo.tpot_s=1"], device_kind=lambda cluster: "cpu"
    )
    searched = Searched(one_token, one_token.trials[0])
    trial = next_trial(searched)
    report = ok_report(Samples("e2e_s", "s", (0.1,)), Absent("tpot_s", "s", "one token has none"))
    with pytest.raises(ConfigError, match="no attainment: one token has none"):
        searched.answered({trial.hash: [report] * 3})


def test_what_is_known_already_is_not_asked_for() -> None:
    plan = planned(*OPEN, *LIMIT)
    draw = np.random.default_rng(drawing_seed())
    first = Searched(plan, plan.trials[0])
    trial = next_trial(first)
    # More attempts than the first look needs: those at hand are used as far as they are needed.
    reports = [attempt(trial, 5.0, draw) for _ in range(8)]
    first.answered({trial.hash: reports})
    assert isinstance(first.next, Ask)
    assert first.next.more > 0


def test_too_few_attempts_to_rely_on_are_said() -> None:
    plan = planned(*OPEN, *LIMIT)
    found = Searched(plan, plan.trials[0])
    trial = next_trial(found)
    found.answered({trial.hash: []})
    # Another search of the same plan may have its answer: this one ends by itself.
    assert isinstance(found.next, Undecided)
    assert found.next.reason.startswith("load.rate=2 has 0 of the attempts it needs (1)")
    assert "is open at each load.rate that was looked at" in sentence(found, plan)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*OPEN, "search=capacity"), "no limit is given"),
        ((*OPEN, *LIMIT, "reuse=exact"), "Add reuse=hash"),
        ((*OPEN, *LIMIT, "search.over=load.trace"), "is no number of this trial"),
        ((*OPEN, *LIMIT, "search.over=load.rates"), "Did you mean load.rate?"),
        ((*OPEN, *LIMIT, "search.over=seed", "seed=0"), "search.over=seed: cannot begin at 0"),
        ((*OPEN, *LIMIT, "search.over=load.prefix_share"), "cannot begin at 0"),
        ((*OPEN, *LIMIT, "load.rate=1,2", "quant=q4_0,q8_0"), "load.rate: has several values"),
        (
            (*OPEN, *LIMIT, "search.lowest=5", "search.highest=1"),
            "search=capacity: no level of load.rate lies between",
        ),
        (
            (*OPEN, *LIMIT, "search.over=task.new_tokens", "search.highest=0.5"),
            "no whole number of task.new_tokens lies between",
        ),
        (
            (*OPEN, *LIMIT, "search.over=load.turns", "search.lowest=1.2", "search.highest=1.8"),
            "no whole number of load.turns lies between",
        ),
    ],
)
def test_what_cannot_be_searched_for(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        searches_of(planned(*words))
    with pytest.raises(ConfigError, match=message):
        plan_command([*SERVED, *words])
    assert capsys.readouterr().out == ""


def test_what_has_no_latency_has_no_capacity() -> None:
    plan = build(["task=noop", "model=random_tiny", *LIMIT], device_kind=lambda cluster: "cpu")
    with pytest.raises(ConfigError, match="task=noop has no ttft_s"):
        Searched(plan, plan.trials[0])


def test_force_counts_nothing_that_was_recorded_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(drawing_seed())
    made: dict[str, list[AttemptReport]] = {}
    edge, searches = 5.0, set()
    ends: list[Plan] = []

    class Measured:
        """Makes what is missing; with force as many as are asked for."""

        interrupted = False

        def __init__(self, plan: Plan, *_: Any, search_id: str | None = None) -> None:
            self._plan = plan
            if search_id is not None:
                searches.add(search_id)

        def record_plan(self) -> None:
            ends.append(self._plan)

        def todo(self) -> Any:
            return SimpleNamespace(attempts=self._plan.trials)

        def execute(self, todo: Any) -> None:
            for trial in todo.attempts:
                reports, settings = made.setdefault(trial.hash, []), self._plan.settings
                more = settings.repeats - (0 if settings.force else len(reports))
                for _ in range(more):
                    named = {"attempt_id": f"{trial.hash} {len(reports)}"}
                    report = attempt(trial, edge, draw)
                    reports.append(replace(report, started_at=float(len(reports)), **named))

        def found(self) -> dict[str, list[AttemptReport]]:
            return {trial.hash: list(made.get(trial.hash, ())) for trial in self._plan.trials}

    cluster = "orchestrator.schedule.cluster.ray.cluster.joined"
    monkeypatch.setattr("orchestrator.commands.measuring.Measuring", Measured)
    monkeypatch.setattr(
        "orchestrator.record.open_store", lambda _: SimpleNamespace(attempts=made.copy)
    )
    monkeypatch.setattr(cluster, lambda _: SimpleNamespace(close=lambda: None))

    def answer(*more: str) -> tuple[float, float]:
        # Undecided has an interval as well.
        assert search(planned(*OPEN, *LIMIT, *more), [], as_json=True) in (0, 1)
        (found,) = json.loads(capsys.readouterr().out)["searches"]
        return found["low"], found["high"]

    first = answer()
    assert first[0] < edge < first[1]
    edge = 2.0
    before = {config_hash: len(reports) for config_hash, reports in made.items()}
    assert answer() == first
    assert {config_hash: len(reports) for config_hash, reports in made.items()} == before
    low, high = answer("force=true")
    assert low < edge < high < first[0]
    assert len(searches) == 3
    # At the end of each all levels are one plan, which a report is made of.
    assert [trial.hash for trial in ends[0].trials] == [trial.hash for trial in ends[1].trials]
    assert {trial.hash for trial in ends[0].trials} == set(before)
    assert f"up to load.rate between {first[0]:g} and {first[1]:g}" in ends[0].description


def test_requests_that_a_server_turns_away_are_missed_and_no_reason_to_doubt_a_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[Plan] = []

    class Interrupted:
        interrupted = True

        def __init__(self, plan: Plan, *_: Any, search_id: str | None = None) -> None:
            steps.append(plan)

        def todo(self) -> Any:
            return SimpleNamespace(attempts=())

        def record_plan(self) -> None:
            assert "the search was stopped" in steps[-1].description

    monkeypatch.setattr("orchestrator.commands.measuring.Measuring", Interrupted)
    asked = planned(*OPEN, *LIMIT)
    assert search(asked, [], as_json=True) == 130
    turned_away = ok_report(Value("error_ratio", "1", 0.3))

    def state(plan: Plan) -> str | None:
        rules = judge(turned_away, plan.settings.verdict.rules).rules
        return next((rule.state for rule in rules if rule.rule == "errors"), None)

    assert (state(asked), state(steps[0])) == ("invalid", "flagged")


@pytest.mark.long
def test_a_server_of_known_capacity(tmp_path: Path) -> None:
    """One request at a time, 20 ms each: the wait for the first token is 60 ms at most."""
    words: list[Any] = [
        *("task=serving", "engine=endpoint", "quant=source", "load=open", "load.arrivals=poisson"),
        *("load.rate=20", "load.requests=100", "load.warmup_s=0.5", "task.new_tokens=1"),
        *("task.prompt_tokens=4", "search=capacity", "search.over=load.rate", "slo.ttft_s=0.1"),
        *("search.width=0.5", "verdict=off", "reuse=hash"),
        *("model=path", f"model.path={tmp_path}"),
    ]
    # The server has no tokenizer: ids are those of a vocabulary.
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    with null_server(0.02, slots=1) as server:
        done = orchestrator(tmp_path, *words, f"engine.url={server.url}", "--json")
        again = orchestrator(tmp_path, *words, f"engine.url={server.url}", "--json")
    assert done.code == again.code == 0, done.err
    table = orchestrator(tmp_path, "report", "adhoc", "--json").json
    levels = done.json["searches"][0]["levels"]
    assert [trial["hash"] for trial in table["trials"]] == [level["hash"] for level in levels]
    assert "95% of requests keep ttft_s=0.1 up to load.rate between" in table["description"]
    answer = done.json["searches"][0]
    assert answer["state"] == "found"
    assert answer["binding"] in ("ttft_s", "saturated")
    # Of an M/D/1 queue: 95 % begin within five services up to a load of about 0.8.
    assert 0.5 * 50 < answer["low"] < answer["high"] < 1.2 * 50
    assert again.json["searches"][0] == answer
    assert "attempts to run" not in again.err
    assert math.isfinite(answer["high"])


def test_a_plan_says_that_its_trials_begin_a_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan_command([*SERVED, *OPEN, *LIMIT, f"tracking.root={tmp_path}"]) == 0
    assert "each begins a search over load.rate" in capsys.readouterr().out
