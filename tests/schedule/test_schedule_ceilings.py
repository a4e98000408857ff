"""Ceilings after a sweep: what is measured, when, and that no result depends on it."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.errors import ClusterError
from orchestrator.model import Measured
from orchestrator.model.known_ceilings import RETRY_AFTER_S, ceilings_directory, load_this
from orchestrator.plan.expand import build
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings, TrackingConfig
from orchestrator.record import open_store
from orchestrator.schedule import ceilings
from orchestrator.schedule.ceilings import WORTH_S, measure_missing, missing_ceilings
from testing.commands import orchestrator
from testing.near import near
from testing.trial import TINY

Attempts = list[tuple[dict[str, Any], AttemptReport]]
FLAT = Measured(
    "this",
    {"product.far.float32": ((5e5, 1.0, 1e-5),)},
    ((1e6, 1e10),),
    ((1e6, 1e10),),
    1e-5,
    1 << 33,
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))


def planned(*words: str) -> Plan:
    return build([*words, "device=cpu"], device_kind=lambda _: "cpu")


def attempts(*words: str, cpus: tuple[int, ...] = (0, 1), took_s: float = WORTH_S) -> Attempts:
    """One ``ok`` attempt of each trial that the overrides mean."""
    plan = planned("task=inference", "model=random_tiny", *words)
    return [
        (trial.identity, made(trial.hash, cpus, took_s, model_config=TINY)) for trial in plan.trials
    ]


def made(config_hash: str, cpus: tuple[int, ...], took_s: float, **facts: Any) -> AttemptReport:
    return AttemptReport(
        "a",
        config_hash,
        Outcome.OK,
        duration_s=took_s,
        facts={"hardware_fingerprint": "fp", **facts},
        slot=Slot("n", socket.gethostname(), cpus),
        provenance={"packages": {"torch": "2"}},
    )


class Machine:
    """Where a plan of ceilings is run; its attempt ends as it is told."""

    def __init__(self, ended: Outcome = Outcome.OK, spread: float = 1.0) -> None:
        self.ended = ended
        self.spread = spread
        self.plans: list[Plan] = []
        self.said: list[str] = []

    def run(self, plan: Plan) -> AttemptReport:
        self.plans.append(plan)
        trial = plan.trials[0]
        report = made(trial.hash, tuple(range(trial.resources.cpus or 0)), 10.0)
        operations = frozenset(trial.identity["task"]["operations"].split("+"))
        found = dataclasses.replace(FLAT, spread=self.spread, operations=operations)
        report.facts["ceilings"] = found.to_json()
        return dataclasses.replace(report, outcome=self.ended, reason="no time")

    def after(self, *made: Attempts, settings: Settings = Settings()) -> list[set[str]]:  # noqa: B008
        """The operations that were measured after such a sweep, an entry a kind of hardware."""
        del self.plans[:]
        every = [attempt for some in made for attempt in some]
        measure_missing(every, settings, run=self.run, say=self.said.append)
        return [set(p.trials[0].identity["task"]["operations"].split("+")) for p in self.plans]


def test_only_what_the_trials_need_is_measured_and_only_once() -> None:
    machine = Machine()
    both = attempts("quant=fp32,bf16")
    assert machine.after(both) == [{"inference.float32", "inference.bfloat16"}]
    (said,) = machine.said
    assert "Ctrl-C" in said
    assert machine.after(both) == []
    # Another dtype later: that alone, kept beside the others.
    assert machine.after(both, attempts("quant=fp16")) == [{"inference.float16"}]
    assert load_this().operations == {f"inference.{d}" for d in ("float32", "bfloat16", "float16")}


def test_threads_have_ceilings_of_their_own_on_as_many_cores() -> None:
    machine = Machine()
    assert len(machine.after(attempts("quant=fp32"), attempts("quant=fp32", cpus=(0,)))) == 2
    assert [plan.trials[0].resources.cpus for plan in machine.plans] == [2, 1]
    machine.after(attempts("quant=fp32", "device.threads=1"))
    assert not machine.plans


@pytest.mark.parametrize("words", [["ceilings=off"], []])
def test_it_is_left_out_when_told_so_and_after_a_sweep_of_seconds(words: list[str]) -> None:
    machine = Machine()
    settings = planned("task=noop", *words).settings
    took_s = WORTH_S if words else WORTH_S / 2
    assert machine.after(attempts("quant=fp32", took_s=took_s), settings=settings) == []
    assert not machine.said


def test_a_task_without_arithmetic_needs_none() -> None:
    plan = planned("task=noop")
    trial = plan.trials[0]
    assert missing_ceilings([(trial.identity, made(trial.hash, (0, 1), 1.0))]) == []


def test_what_could_not_be_measured_is_tried_again_an_hour_later() -> None:
    trials = attempts("quant=fp32")
    for machine in (Machine(Outcome.TIMEOUT), Machine(spread=3.0)):
        assert len(machine.after(trials)) == 1
        assert machine.after(trials) == []
        for mark in ceilings_directory().glob("*.tried"):
            os.utime(mark, (0, time.time() - RETRY_AFTER_S - 1))
    assert len(Machine().after(trials)) == 1


def test_a_failure_costs_only_the_predictions() -> None:
    machine = Machine(Outcome.TIMEOUT)
    machine.after(attempts("quant=fp32"))
    assert "no time" in machine.said[-1]

    def refused(plan: Plan) -> AttemptReport:
        raise ClusterError("the node is gone")

    said: list[str] = []
    measure_missing(attempts("quant=bf16"), Settings(), run=refused, say=said.append)
    assert "the node is gone" in said[-1]


def test_a_stop_ends_it_for_all_kinds_of_hardware() -> None:
    machine = Machine(Outcome.CANCELLED)
    machine.after(attempts("quant=fp32"), attempts("quant=fp32", cpus=(0,)))
    assert len(machine.plans) == 1
    assert not any("no predictions" in said for said in machine.said)


def test_what_task_ceilings_measured_is_kept() -> None:
    plan = planned("task=ceilings")
    trial = plan.trials[0]
    report = made(trial.hash, (0, 1), 1.0, ceilings=FLAT.to_json())
    machine = Machine()
    assert machine.after([(trial.identity, report)]) == []
    assert load_this() == FLAT
    elsewhere = dataclasses.replace(FLAT, name="far")
    report.facts = {"hardware_fingerprint": "far", "ceilings": elsewhere.to_json()}
    report.slot = Slot("m", "another", (0, 1))
    machine.after([(trial.identity, report)])
    assert load_this() == FLAT


@pytest.mark.long
def test_a_sweep_is_followed_by_an_attempt_in_an_experiment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "WORTH_S", 0.0)
    # However busy the machine is.
    monkeypatch.setattr(ceilings, "TIMEOUT_S", 280.0)
    words = ("model=random_tiny", "quant=fp32", "device=cpu", "verdict=off", "telemetry=off")
    quick = ("task.prompt_tokens=8", "task.new_tokens=2", "protocol.max_time_s=0.1")
    with near():
        done = orchestrator(tmp_path, *words, *quick, "--json")
    assert done.code == 0, done.err
    assert "Ctrl-C skips it" in done.err
    assert done.json["outcomes"] == {"ok": 1}
    (trial,) = done.json["trials"]
    store = open_store(TrackingConfig(root=str(tmp_path / "mlruns")))
    (own,) = store.sweep_attempts("adhoc")
    assert own.config_hash == trial["hash"]
    (beside,) = store.sweep_attempts("ceilings")
    assert beside.outcome == "ok"
    assert store.identity(beside.run_id)["task"]["operations"] == "inference.float32"
    assert not [name for name in store.load(own.run_id).metrics if name.startswith("predicted")]
    shown = orchestrator(tmp_path, "show", trial["hash"], "--json").json
    predicted = shown["attempts"][0]["metrics"]["predicted_ttft_s"]
    # A machine too busy for ceilings says so.
    assert predicted.get("value") or "too busy" in predicted["reason"]
