"""``bisect``: ends from names and from what is recorded, rounds as ordinary trials, its answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import Outcome, PlannedAttempt
from orchestrator.commands.mixtures import between_ends, between_versions
from orchestrator.measure.metric import MetricSpec
from orchestrator.plan.expand import build
from orchestrator.plan.schema import TrackingConfig
from orchestrator.record import Recording, open_store
from orchestrator.report.show.bisect_view import BisectView, Change, bisect_json
from orchestrator.search.culprit import Answer, Ask, Culprit, bisect
from orchestrator.search.rounds import Round, Step, Terms
from orchestrator.statistics.judge import Judged
from testing.commands import orchestrator
from testing.planted import CULPRIT, INNOCENT, PYTHON, TIED, plant, wheel

pytestmark = pytest.mark.xdist_group("recorded")

ROOT = Path(__file__).resolve().parents[1]
TRIAL = ("task=winding", "model=random_tiny", "quant=fp32", "device=cpu", "protocol=quick")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two environments, and nothing else that uv could find."""
    for name in list(os.environ):
        if name.startswith("UV_"):
            monkeypatch.delenv(name)
    for name, value in plant(tmp_path, slower=1.3).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def packages(version: str, **others: str) -> dict[str, Any]:
    named = {name: version for name in (*INNOCENT, CULPRIT, TIED)}
    return {"python": PYTHON, "packages": {**named, **others}}


def test_what_differs_is_read_from_both_ends_and_so_is_what_needs_what(planted: Path) -> None:
    found = between_ends(packages("1.0"), packages("2.0"))
    assert set(found.changes) == {*INNOCENT, CULPRIT, TIED}
    assert str(found.changes["dials"]) == "dials 1.0 → 2.0"
    assert found.coupling.needs["hands"] == {"dials"}
    assert found.coupling.closed(["hands"]) == {"dials", "hands"}
    mixed = found.environment(frozenset(["amber"]))
    assert mixed == packages("1.0", amber="2.0")
    assert found.environment(frozenset(found.changes)) == packages("2.0")


def test_versions_of_the_culprit_are_searched_in_their_order(planted: Path) -> None:
    within = between_ends(packages("1.0", dials="1.0"), packages("2.0"))
    judged = Judged("regression", 0.03, 1.1, 1.05, 1.15)
    step = Step(frozenset(["dials"]), "changed", judged)
    answer = Answer("found", judged, (Culprit((frozenset(["dials"]),), frozenset(), step),))
    assert between_versions(within, answer) is None  # there is none between
    for version in ("1.1", "1.4", "1.10"):
        wheel(planted / "wheels", "dials", version, {"dials.py": ""})
    found = between_versions(within, answer)
    assert found is not None
    assert list(found.changes) == ["1.1", "1.4", "1.10", "2.0"]
    assert str(found.changes["1.10"]) == "dials 1.4 → 1.10"
    chosen = found.coupling.closed(["1.4"])
    assert found.called(chosen) == "dials 1.4"
    assert found.environment(chosen) == packages("1.0", dials="1.4")
    known: dict[frozenset[str], list[Round]] = {}
    terms = Terms()
    while isinstance(ask := bisect(known, found.coupling, terms), Ask):
        slow = (0.11,) if {"1.10"} & ask.changes else (0.1,)
        known[ask.changes] = [
            Round((0.1 + 1e-5 * n,), (0.11 + 1e-5 * n,), (slow[0] + 2e-5 * n,))
            for n in range(ask.rounds)
        ]
    assert [culprit.changes for culprit in ask.culprits] == [(frozenset(["1.10"]),)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--good", "before", "--bad", "before"), "both ends have the same packages"),
        (("--good", "before", "--bad", "nosuch"), "'nosuch' is no sweep, run or config hash"),
        (("--good", "none", "--bad", "after"), "none is no environment of its own"),
        (("--good", "before", "--bad", "c:012345678901"), "means no recorded attempt"),
        (("--good", "before"), "--bad"),
        (("--good", "before", "--bad", "after", "--metric", "valeu"), "has no valeu"),
        (("--good", "before", "--bad", "after", "cluster=ray"), "measured on one machine"),
        (("--good", "before", "--bad", "after", "quant=nf4"), "is part of the trial"),
    ],
)
def test_what_means_nothing_exits_4(
    planted: Path, recorded: Path, words: tuple[str, ...], message: str
) -> None:
    config_hash = next(iter(open_store(TrackingConfig(root=str(recorded / "mlruns"))).attempts()))
    conf = ("--config-dir", str(planted / "conf"))
    done = orchestrator(recorded, "bisect", config_hash[:12], *words, *conf)
    assert done.code == 4
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_server_elsewhere_is_not_bisected(tmp_path: Path) -> None:
    words = ("engine=endpoint", "engine.url=http://127.0.0.1:9/v1", "quant=source")
    plan = build(words, device_kind=lambda cluster: "cpu")
    (trial,) = plan.trials
    with Recording(open_store(TrackingConfig(root=str(tmp_path / "mlruns"))), plan) as recording:
        attempt = PlannedAttempt(trial, 1, "a" * 32, plan.sweep)
        recording.finish(attempt.report(Outcome.ERROR, reason="refused"), trial)
        recording.close()
    ends = ("--good", "transformers_5_0", "--bad", "transformers_5_23")
    done = orchestrator(tmp_path, "bisect", trial.hash[:12], *ends)
    assert done.code == 4
    assert done.err.startswith("error: bisect: the packages of an endpoint's server are not known")
    assert done.err.count("\n") == 1


def view(**changes: Any) -> BisectView:
    judged = Judged("regression", 0.03, 1.1, 1.08, 1.12)
    every, chosen = frozenset("tkn"), frozenset("tk")
    steps = (Step(every, "changed", judged, 5), Step(chosen, "changed", judged, 8, 1))
    culprit = Culprit((frozenset("t"),), frozenset("k"), steps[1])
    answer = Answer("found", judged, (culprit,), steps=steps)
    given: dict[str, Any] = {
        "answer": answer,
        "spec": MetricSpec("tpot_s", "s", "lower", title="TPOT"),
        "changes": {name: Change(name, "1", "2") for name in "tk"} | {"n": Change("n", None, "2")},
        "called": {every: "all 3 changes: the bad end", chosen: "k, t"},
        "hashes": {every: "b" * 64, chosen: "c" * 64},
        "ends": ("a" * 64, "b" * 64),
        "sweep": "bisect-a-b",
        **changes,
    }
    return BisectView(**given)


def test_the_answer_names_the_culprit_its_effect_and_the_commands() -> None:
    found = view()
    assert found.sentence() == (
        "t 1 → 2: TPOT 1.10× [1.080 – 1.120] (installed with k 1 → 2) "
        "(the ends: TPOT 1.10× [1.080 – 1.120])"
    )
    data = bisect_json(found)
    assert data["state"] == "found"
    assert data["culprits"][0]["packages"] == [{"package": "t", "good": "1", "bad": "2"}]
    assert data["culprits"][0]["needs"] == [{"package": "k", "good": "1", "bad": "2"}]
    assert [step["rounds"] for step in data["steps"]] == [5, 8]
    assert data["commands"]["culprit"] == "python -m orchestrator reproduce cccccccccccc"
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer("same", Judged("equivalent", 0.03, 1.0, 0.99, 1.01)), "TPOT does not differ"),
        (
            Answer("undecided", None, suspects=frozenset("tn"), reason="too noisy"),
            "undecided: too noisy; it is among n 2 added, t 1 → 2",
        ),
    ],
)
def test_what_was_not_found_is_said(answer: Answer, said: str) -> None:
    assert view(answer=answer).sentence().startswith(said)


def test_two_that_act_together_and_two_that_need_each_other_are_said_so() -> None:
    step = Step(frozenset("tk"), "changed", Judged("regression", 0.03, 1.1, 1.08, 1.12), 5)
    both = Culprit((frozenset("t"), frozenset("k")), frozenset(), step)
    said = view(answer=Answer("found", step.judged, (both,), steps=(step,))).sentence()
    assert "t 1 → 2 together with k 1 → 2" in said
    assert "neither alone changes it" in said
    one = Culprit((frozenset("tk"),), frozenset(), step)
    said = view(answer=Answer("found", step.judged, (one,), steps=(step,))).sentence()
    assert "cannot be told apart because each needs the other" in said


class Typed:
    """Command lines in a directory of their own, each in a process of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._env = {**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{ROOT}"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        conf = () if words[0] == "show" else ("--config-dir", str(self.place / "conf"))
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *words, *conf],
            cwd=self.place,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = process.communicate()
        return process.returncode, out, err

    def attempts(self) -> list[Any]:
        """Those of rounds that are recorded."""
        store = open_store(TrackingConfig(root=str(self.place / "mlruns")))
        every = [summary for found in store.attempts().values() for summary in found]
        return [s for s in every if s.sweep.startswith("bisect-") and s.outcome == "ok"]


@pytest.mark.long
def test_a_planted_package_is_found_also_after_a_kill_and_a_repeat_measures_nothing(
    planted: Path,
) -> None:
    typed = Typed(planted)
    ends = {}
    for end in ("before", "after"):
        code, out, err = typed(*TRIAL, f"environment={end}", "ceilings=off", "--json")
        assert code == 0, err
        ends[end] = json.loads(out)["trials"][0]
    words = ("bisect", ends["after"]["hash"][:12], "--good", "before", "--bad", "after", "--json")
    killed = typed.start(*words)
    assert killed.stderr is not None
    rounds = 0
    while rounds < 7:
        rounds += " 2 ok in " in (line := killed.stderr.readline()) or " 3 ok in " in line
        assert line, "it ended early"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    code, out, err = typed(*words)
    assert code == 0, err
    answer = json.loads(out)
    assert answer["state"] == "found"
    (culprit,) = answer["culprits"]
    assert culprit["packages"] == [{"package": "dials", "good": "1.0", "bad": "2.0"}]
    assert culprit["needs"] == []
    assert culprit["effect"]["ci_low"] > 1.2
    assert [answer["good"], answer["bad"]] == [ends["before"]["hash"], ends["after"]["hash"]]
    # Rounds from before the kill counted: nothing was made twice but what it interrupted.
    whole = [step for step in answer["steps"] if step["hash"] == answer["bad"]]
    needed = 3 * sum(step["rounds"] for step in answer["steps"])
    needed -= sum(step["rounds"] for step in whole)
    made = typed.attempts()
    assert needed <= len(made) <= needed + 2

    # The same ends by their hash, by a run, and by conditions: nothing is left to measure.
    shown = json.loads(typed("show", ends["after"]["hash"], "--json")[1])
    conditions = shown["attempts"][-1]["conditions"]["id"]
    for bad in ("after", ends["after"]["run_id"], conditions):
        code, out, err = typed(
            *("bisect", ends["before"]["hash"][:12], "--json"),
            *("--good", ends["before"]["hash"][:12], "--bad", bad),
        )
        assert code == 0, err
        assert json.loads(out) == answer
        assert "to run" not in err
    assert len(typed.attempts()) == len(made)

    # The version of it that did it; the package itself is known.
    for version, step_s in (("1.2", 0.02), ("1.5", 0.026)):
        wheel(planted / "wheels", "dials", version, {"dials.py": f"STEP_S = {step_s}\n"})
    code, out, err = typed(*words, "--versions")
    assert code == 0, err
    found = json.loads(out)
    assert found.pop("versions")["culprits"][0]["packages"] == [
        {"package": "dials", "good": "1.2", "bad": "1.5"}
    ]
    assert found == answer
