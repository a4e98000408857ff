"""What a number is true of: which attempts count as done, and that no two classes are pooled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestrator.attempt import Outcome
from orchestrator.commands.measuring import shown_last
from orchestrator.conditions import UNKNOWN, Conditions, difference, same, software_difference
from orchestrator.host.software import software
from orchestrator.measure.plain_json import from_json, to_json
from testing.commands import orchestrator
from testing.near import near
from testing.trial import ok_report

HERE = Conditions({"CPU": "x", "cores": 1}, {"torch": "2.13.0"}, {"weights": "ab"})


def test_an_identifier_depends_on_the_facts_and_not_on_their_order() -> None:
    again = Conditions({"cores": 1, "CPU": "x"}, {"torch": "2.13.0"}, {"weights": "ab"})
    assert again.id == HERE.id
    assert HERE.id.startswith("c:")
    other = Conditions(HERE.machine, {"torch": "2.14.0"}, HERE.content)
    assert other.ids["machine"] == HERE.ids["machine"]
    assert other.ids["software"] != HERE.ids["software"]
    assert other.id != HERE.id
    assert from_json(Conditions, json.loads(json.dumps(to_json(HERE)))) == HERE


def test_what_is_unknown_equals_nothing() -> None:
    blind = Conditions(HERE.machine, HERE.software, {"commit": None})
    assert blind.ids["content"] == UNKNOWN
    assert same(HERE.ids, HERE.ids)
    assert not same(blind.ids, blind.ids)
    assert not same({}, HERE.ids)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (HERE, Conditions({"CPU": "x", "cores": 2}, HERE.software, HERE.content), "cores 1 → 2"),
        (
            HERE,
            Conditions(HERE.machine, {"torch": "2.14.0", "X": "1"}, {"weights": "cd"}),
            "torch 2.13.0 → 2.14.0, X none → 1, weights: changed",
        ),
        (HERE, Conditions(HERE.machine, HERE.software, {"commit": None}), "weights"),
        (None, HERE, "recorded before conditions were"),
    ],
)
def test_a_difference_is_told_in_a_line(
    before: Conditions | None, now: Conditions, said: str
) -> None:
    assert difference(before, now).startswith(said)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"torch": "2.13.0", "bitsandbytes": "0.50.2"}, ()),
        ({"torch": "2.14.0", "bitsandbytes": "0.50.2"}, ("torch 2.13.0 → 2.14.0",)),
        ({"torch": "2.13.0", "LD_PRELOAD": "x"}, ("LD_PRELOAD none → x",)),
    ],
)
def test_a_package_that_one_trial_needs_stands_between_no_two(
    now: dict[str, str], said: tuple[str, ...]
) -> None:
    assert software_difference(HERE, Conditions(software=now)) == said


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        # Earlier conditions are never those that are shown, nor is another kind of node.
        ((("wanted", "ok"), ("earlier", "ok"), ("other", "ok")), "wanted"),
        ((("other", "ok"), ("wanted", "oom_device")), "other"),
        ((("other", "error"), ("wanted", "error"), ("earlier", "ok")), "wanted"),
        ((("earlier", "ok"), ("other", "error")), "other"),
    ],
)
def test_the_class_that_is_shown_is_that_of_this_run(
    made: tuple[tuple[str, str], ...], shown: str
) -> None:
    classes = {name: Conditions({"CPU": name}) for name in ("earlier", "other", "wanted")}
    reports = [ok_report(outcome=Outcome(how), conditions=classes[name]) for name, how in made]
    last = shown_last(reports, [[classes["wanted"]], [classes["other"]]])[-1]
    assert last.conditions == classes[shown]


def test_variables_count_where_they_change_kernels() -> None:
    told = software(
        ["numpy", "no-such-package"],
        {
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "CUDA_VISIBLE_DEVICES": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "TORCHDYNAMO_DISABLE": "1",
            "TORCH_HOME": "/root",
            "NO_SUCH_PACKAGE_FAST": "1",
            "NO_SUCH_PACKAGE_CACHE": "/root",
            "HOME": "/root",
        },
    )
    assert told["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    variables = {
        *("ONEDNN_MAX_CPU_ISA", "OMP_WAIT_POLICY", "TORCHDYNAMO_DISABLE", "NO_SUCH_PACKAGE_FAST"),
    }
    assert set(told) == {"python", "measuring", "numpy"} | variables


WORDS = ("task=noop", "task.value=1,2", "device=cpu", "verdict=off", "ceilings=off")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two trials measured on one core."""
    place = tmp_path_factory.mktemp("conditions")
    with near():
        done = orchestrator(place, *WORDS, "resources.cpus=1", "--json")
    assert done.code == 0, done.err
    return place


def states(place: Path, *words: str, **variables: str) -> set[tuple[str, str | None]]:
    planned = orchestrator(place, "plan", *WORDS, *words, "--json", **variables)
    return {(trial["state"], trial["reason"]) for trial in planned.json["trials"]}


def test_what_was_measured_counts_where_it_could_be_measured_again(measured: Path) -> None:
    assert states(measured, "resources.cpus=1") == {("cached", None)}
    isa = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    told = {("stale", "ONEDNN_MAX_CPU_ISA none → AVX2")}
    assert states(measured, "resources.cpus=1", **isa) == told
    # What a measured process is not given changes nothing.
    assert states(measured, "resources.cpus=1", OMP_THREAD_LIMIT="1") == {("cached", None)}
    assert states(measured, "resources.cpus=1", "reuse=hash", **isa) == {("cached", None)}
    memory = {("stale", "memory_limit_bytes none → 1000000000")}
    assert states(measured, "resources.cpus=1", "resources.memory_bytes=1000000000") == memory


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_other_conditions_are_measured_and_never_pooled(measured: Path) -> None:
    assert states(measured, "resources.cpus=2") == {("stale", "cores 1 → 2")}
    with near():
        done = orchestrator(measured, *WORDS, "resources.cpus=2", "--json")
    assert done.json["outcomes"] == {"ok": 2}
    assert done.json["stale"] == 2
    for cores in (1, 2):
        again = orchestrator(measured, *WORDS, f"resources.cpus={cores}")
        assert "nothing left to do (2 cached)" in again.err
        assert "2 attempts under other conditions, or unknown ones, left out" in again.out
        assert "(2)" not in again.out, "two attempts of a trial in one cell"
    config = done.json["trials"][0]["hash"]
    shown = orchestrator(measured, "show", config).out
    assert "attempt 1: cores 1 → 2 (not pooled)" in shown
    attempts = orchestrator(measured, "show", config, "--json").json["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["ok", "ok"]
    one, other = (attempt["conditions"] for attempt in attempts)
    assert one["machine"] != other["machine"]
    assert (one["software"], one["content"]) == (other["software"], other["content"])


def test_a_failure_counts_only_where_it_happened(tmp_path: Path) -> None:
    words = ("task=noop", "task.fault=error", "device=cpu", "verdict=off", "ceilings=off")
    with near():
        assert orchestrator(tmp_path, *words).code == 1

    def state(**variables: str) -> str:
        planned = orchestrator(tmp_path, "plan", *words, "--json", **variables)
        return str(planned.json["trials"][0]["state"])

    assert state() == "failed"
    assert state(MKL_CBWR="AVX2") == "stale"
