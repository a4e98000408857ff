"""``history``: a trial through its environments, what differed at its steps, exit codes."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.history import _nightly, _report, record_nights
from orchestrator.attempt import Outcome, PlannedAttempt, Verdict
from orchestrator.conditions import Conditions
from orchestrator.measure import Value
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.record import Recording, open_store
from orchestrator.record.over_time import trials_over_time
from testing.commands import Answer, orchestrator

# The packages move every fifth night; with the second lock a trial slows by a tenth.
STEP, KNOWN, NIGHTS = 10, 11, 12


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A store of nights, and what ``history`` said when one of them was after the step."""
    place = tmp_path_factory.mktemp("nights")
    how: dict[str, Any] = {"slower_from": STEP, "trials": 2, "attempts": 2}
    record_nights(place / "mlruns", range(KNOWN), **how)
    said = orchestrator(place, "history", "nightly", "--metric", "tpot_s")
    record_nights(place / "mlruns", range(KNOWN, NIGHTS), **how)
    return place, said


@pytest.fixture(scope="module")
def nights(told: tuple[Path, Answer]) -> Path:
    return told[0]


def history(place: Path, *words: str) -> Answer:
    return orchestrator(place, "history", *words, "--metric", "tpot_s", "--json")


def test_a_trial_is_followed_through_its_environments(nights: Path) -> None:
    found = history(nights, "nightly")
    assert (found.code, found.err) == (0, "")
    same, slower = found.json["series"]
    assert (same["label"], slower["label"]) == ("0→128", "1→128")
    assert len(same["points"]) == len(slower["points"]) == NIGHTS
    assert len({point["hash"] for point in same["points"]}) == 3
    assert {point["attempts"] for point in same["points"]} == {2}
    assert same["steps"] == []
    (step,) = slower["steps"]
    assert step["run"] == slower["points"][STEP]["run"]
    assert step["ratio"] == pytest.approx(1.1, rel=0.03)
    assert (step["verdict"], step["new"]) == ("regression", False)


def test_a_step_names_what_differed_and_what_would_explain_it(nights: Path) -> None:
    _, slower = history(nights, "nightly").json["series"]
    (step,) = slower["steps"]
    first = step["differences"][0]
    assert first == {"kind": "package", "name": "torch", "before": "2.1.0", "after": "2.2.0"}
    assert len(step["differences"]) == 81  # and all that the lock holds besides
    store = open_store({"kind": "embedded", "root": str(nights / "mlruns")})
    attempts = {a.run_id: a for group in store.attempts().values() for a in group}
    good, bad = attempts[step["good"]], attempts[step["bad"]]
    at = {a.parent_run_id: number for number, a in enumerate(sorted_by_start(attempts))}
    assert list(at).index(bad.parent_run_id) == list(at).index(good.parent_run_id) + 1 == STEP
    assert step["bisect"] == (
        f"python -m orchestrator bisect {bad.config_hash[:12]} --metric tpot_s"
        f" --good {good.run_id} --bad {bad.run_id}"
    )


def test_the_command_it_names_is_one_that_there_is(nights: Path) -> None:
    from orchestrator.commands.parser import commands

    _, slower = history(nights, "nightly").json["series"]
    name, *words = shlex.split(slower["steps"][0]["bisect"])[3:]
    if name not in commands.commands:
        pytest.skip("this version has no bisect")
    commands.commands[name].make_context(name, words)


def sorted_by_start(attempts: dict[str, Any]) -> list[Any]:
    return sorted(attempts.values(), key=lambda attempt: attempt.started_at)


def test_the_run_that_makes_a_regression_known_exits_with_1(told: tuple[Path, Answer]) -> None:
    place, said = told
    assert said.code == 1
    assert "1 new regression in the last run" in said.out
    assert re.search(r"1\.1\d× .*▼ worse +new", said.out)
    later = orchestrator(place, "history", "nightly", "--metric", "tpot_s")
    assert later.code == 0
    assert "no new regression in the last run" in later.out
    assert max(map(len, later.out.splitlines())) <= 100


def test_a_hash_means_the_trial_under_any_lock(nights: Path) -> None:
    _, slower = history(nights, "nightly").json["series"]
    first = slower["points"][0]["hash"]
    assert first != slower["hash"]
    (found,) = history(nights, first[:12]).json["series"]
    assert found["points"] == slower["points"]


def test_since_leaves_out_what_is_older(nights: Path) -> None:
    _, slower = history(nights, "nightly").json["series"]
    since = slower["levels"][1]["started"][:10]
    found = history(nights, "nightly", "--since", since).json["series"]
    assert [len(series["points"]) for series in found] == [NIGHTS - STEP] * 2
    assert history(nights, "nightly", "--since", "100000d").json["series"][1] == slower


def test_the_page_is_one_file_with_everything(nights: Path) -> None:
    done = orchestrator(nights, "history", "nightly", "--metric", "tpot_s", "--site", "site")
    page = (nights / "site" / "index.html").read_text(encoding="utf-8")
    assert done.out.splitlines()[-1] == "site/index.html"
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(?:src|href)=", body)
    figures = [
        json.loads(text)
        for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', body)
    ]
    assert len(figures) == 2
    assert len(figures[0]["data"][0]["x"]) == NIGHTS
    assert "torch 2.1.0 → 2.2.0" in figures[0]["layout"]["annotations"][0]["text"]
    assert "python -m orchestrator bisect" in body
    assert body.count("▼ worse") == 1


def test_the_metric_that_decides_is_the_default(nights: Path) -> None:
    assert (
        orchestrator(nights, "history", "nightly", "--json").json == history(nights, "nightly").json
    )
    phase = orchestrator(nights, "history", "nightly", "--metric", "decode.cpu_s", "--json").json
    assert {series["unit"] for series in phase["series"]} == {"1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nightly", "--metric", "tpot"), "--metric: no metric 'tpot'. Did you mean tpot_s?"),
        (("nightly", "--since", "yesterday"), "--since: 'yesterday' is no date and no age. Write"),
        (("nightly", "--since", "9" * 400 + "w"), "is no date and no age. Write"),
        (("nightly", "--since", "9" * 5000 + "d"), "is no date and no age. Write"),
        (("nightly", "--since", "2999-01-01"), "--since: no valid attempt of 'nightly'"),
        (("nihgtly",), "'nihgtly' is no sweep, run or config hash. Known sweeps: nightly"),
        ((), "missing argument 'SWEEP|HASH'"),
    ],
)
def test_a_mistake_is_one_line_and_4(nights: Path, words: tuple[str, ...], said: str) -> None:
    found = orchestrator(nights, "history", *words)
    assert (found.code, found.out) == (4, "")
    assert len(found.err.splitlines()) == 1
    assert said in found.err.replace(f"sqlite:///{nights}/mlruns/mlflow.db: ", "")


def test_a_metric_without_ratios_is_shown_and_no_pass(tmp_path: Path) -> None:
    trial = _nightly(0, "1")
    store = open_store({"kind": "embedded", "root": str(tmp_path / "mlruns")})
    recording = Recording(store, Plan("nightly", "", (trial,), Settings()))
    planned = PlannedAttempt(trial, attempt_id="1", sweep="nightly")
    made = _report(planned, random.Random(0), 0, "1", 1.0)
    metrics = {**made.metrics, "error_ratio": Value("error_ratio", "1", 0.0)}
    recording.finish(replace(made, metrics=metrics), trial)
    recording.close()
    found = orchestrator(tmp_path, "history", "nightly", "--metric", "error_ratio")
    assert (found.code, found.out.count("not judged")) == (4, 2)
    assert found.err == (
        "error: --metric error_ratio: no trial could be judged: a median is not positive, so there"
        " are no ratios. Hold it to a limit with gate\n"
    )


def test_what_does_not_count_is_counted_and_environments_of_one_run_are_two_trials(
    tmp_path: Path,
) -> None:
    store = open_store({"kind": "embedded", "root": str(tmp_path / "mlruns")})
    trials = [
        replace(_nightly(0, version), axes={"environment": name})
        for name, version in (("old", "1"), ("new", "2"))
    ]
    plan = Plan("nightly", "", tuple(trials), Settings())
    recording = Recording(store, plan)

    def report(number: int, trial: Any, **changes: Any) -> None:
        planned = PlannedAttempt(trial, attempt_id=str(number), sweep="nightly")
        made = _report(planned, random.Random(number), 0, "1", 1.0)
        recording.finish(replace(made, **changes), trial)

    report(1, trials[0])
    report(2, trials[1])
    report(3, trials[0], verdict=Verdict("invalid"))
    report(4, trials[0], outcome=Outcome.ERROR, reason="broke")
    report(5, trials[1], conditions=Conditions({"machine": None}, {}, {}))
    report(6, trials[1], conditions=Conditions({"CPU": "another"}, {}, {"weights": "y"}))
    recording.close()
    found, left_out = trials_over_time(store, "nightly")
    assert left_out == {"invalid": 1, "error": 1, "on an unknown machine or content": 1}
    counted = [(each.axes["environment"], len(each.attempts)) for each in found]
    assert sorted(counted) == [("new", 1), ("new", 1), ("old", 1)]


def test_a_trial_that_was_run_alone_later_keeps_its_name(tmp_path: Path) -> None:
    store = open_store({"kind": "embedded", "root": str(tmp_path / "mlruns")})
    trials = tuple(replace(_nightly(n, "1"), axes={"task.prompt_tokens": n}) for n in (1, 2))
    alone = replace(trials[0], axes={})
    for number, planned in enumerate((trials, (alone,))):
        recording = Recording(store, Plan("nightly", "", planned, Settings()))
        for trial in planned:
            attempt = PlannedAttempt(trial, attempt_id=f"{number} {trial.hash}", sweep="nightly")
            recording.finish(_report(attempt, random.Random(0), number, "1", 1.0), trial)
        recording.close()
    told = history(tmp_path, "nightly").json["series"]
    assert [(each["label"], len(each["points"])) for each in told] == [("1→128", 2), ("2→128", 1)]
