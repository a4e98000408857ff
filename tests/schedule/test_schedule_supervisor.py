"""The supervisor without Ray: real isolation, real locks; and the verdict it applies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import (
    AttemptReport,
    Outcome,
    PlannedAttempt,
    Resources,
    RuleResult,
    Verdict,
)
from orchestrator.engines.content import text_content
from orchestrator.measure.registry import find_task
from orchestrator.schedule import surroundings
from orchestrator.schedule.events import Ended, PhaseBegan, Started, Vanished, Waiting
from orchestrator.schedule.supervise import supervisor
from orchestrator.schedule.supervise.cores import CoreSplit, pin_process
from orchestrator.schedule.supervise.locks import DIRECTORY_VARIABLE, Request
from orchestrator.schedule.supervise.supervisor import Cancellation, Grant, attempt_events, judged

CPUS = len(os.sched_getaffinity(0))  # before a supervisor moves this process


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "local"))
    yield
    supervisor._warm_isolation().close()
    supervisor._warm_isolation.cache_clear()
    pin_process(before)


def spec_of(kit: Any, **changes: Any) -> PlannedAttempt:
    task = changes.pop("task", {})
    asked = {
        "timeout_s": changes.pop("timeout_s", 30.0),
        "resources": Resources(cpus=changes.pop("cpus", 1)),
    }
    trial = replace(kit.trial(1, **task), **asked)
    return PlannedAttempt(trial, attempt_id="attempt-1", telemetry={"enabled": False}, **changes)


def grant() -> Grant:
    return Grant("node", node_cpus=CPUS)


def test_started_phase_report(kit: Any) -> None:
    events = list(attempt_events(spec_of(kit), grant(), Cancellation()))
    assert [type(event) for event in events] == [Started, PhaseBegan, Ended]
    started, _, ended = events
    assert len(started.slot.cpus) == 1
    assert started.slot.cuda_visible_devices == ""
    assert ended.report.outcome is Outcome.OK, ended.report.reason
    assert ended.report.metrics["value"].value == 1
    assert ended.report.slot == started.slot
    assert ended.report.verdict.state == "unverified"
    assert ended.report.provenance["packages"]
    # Telemetry is off here: what it ran on is known all the same.
    assert ended.report.facts["hardware"]["cores"] == 1
    assert ended.report.facts["hardware_fingerprint"]
    assert ended.report.facts["simulated"] is False
    assert "command" not in ended.report.provenance, "the driver's, not the node's"


def test_provenance_is_what_the_measured_process_was_given(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray gives a worker of its own; and the supervisor is moved off the cores that are measured.
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RAY_JOB_ID", "1")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    *_, ended = attempt_events(spec_of(kit, cpus=CPUS), grant(), Cancellation())
    provenance = ended.report.provenance
    assert provenance["cpu"]["cores_usable"] == CPUS
    given = provenance["environment"]
    assert given["OMP_NUM_THREADS"] == str(CPUS)
    assert given["MKL_CBWR"] == "AVX2"
    assert "RAY_JOB_ID" not in given


def test_files_that_change_while_they_are_measured_are_no_result(
    kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "text.txt"
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    reads = replace(find_task("noop"), content=lambda identity: text_content(str(file)))
    monkeypatch.setattr(surroundings, "find_task", lambda name: reads)

    def report(*, rewritten: bool) -> AttemptReport:
        file.write_text("one")
        for event in attempt_events(spec_of(kit), grant(), Cancellation()):
            if rewritten and isinstance(event, Started):
                file.write_text("two")
        assert isinstance(event, Ended)
        return event.report

    assert report(rewritten=False).outcome is Outcome.OK
    changed = report(rewritten=True)
    assert changed.outcome is Outcome.ERROR
    assert str(changed.reason).startswith("files changed while they were measured (text: changed)")


def test_cores_are_free_again_when_the_report_is_out(kit: Any) -> None:
    for event in attempt_events(spec_of(kit), grant(), Cancellation()):
        cores = Request(Path(os.environ[DIRECTORY_VARIABLE]) / "locks", _names(), len(_names()))
        assert cores.granted() == isinstance(event, Ended)
        cores.release()


def test_a_generator_left_early_frees_its_cores(kit: Any) -> None:
    events = attempt_events(spec_of(kit, task={"sleep_s": 30}), grant(), Cancellation())
    next(events)
    events.close()
    assert Request(
        Path(os.environ[DIRECTORY_VARIABLE]) / "locks", _names(), len(_names())
    ).granted()


def in_other_hands() -> Request:
    """Every core of this host, held by another driver."""
    directory = Path(os.environ[DIRECTORY_VARIABLE])
    directory.mkdir(mode=0o700)
    other = Request(directory / "locks", _names(), len(_names()))
    assert other.granted()
    return other


def test_cores_in_other_hands_are_waited_for(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SILENCE_S", 0.1)
    other = in_other_hands()
    events = attempt_events(spec_of(kit), grant(), Cancellation())
    assert isinstance(next(events), Waiting)
    other.release()
    assert [type(event) for event in events] == [Started, PhaseBegan, Ended]


def test_waiting_is_bounded(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "PATIENCE_EXTRA_S", 0.3)
    other = in_other_hands()
    spec = spec_of(kit, timeout_s=0.0, start_timeout_s=0.0)
    (event,) = attempt_events(spec, grant(), Cancellation())
    assert isinstance(event, Vanished)
    assert event.outcome is Outcome.LOST
    assert "another sweep" in event.reason
    other.release()


def test_a_cancel_keeps_what_was_measured(kit: Any) -> None:
    cancellation = Cancellation()
    reports = []
    for event in attempt_events(spec_of(kit, task={"sleep_s": 60}), grant(), cancellation):
        if isinstance(event, PhaseBegan):
            cancellation._interrupted()
        if isinstance(event, Ended):
            reports.append(event.report)
    (report,) = reports
    assert report.outcome is Outcome.CANCELLED
    assert [phase.name for phase in report.phases] == ["body"]


def test_a_cancel_while_waiting_ends_without_a_word(kit: Any) -> None:
    directory = Path(os.environ[DIRECTORY_VARIABLE])
    directory.mkdir(mode=0o700)
    other = Request(directory / "locks", _names(), len(_names()))
    assert other.granted()
    cancellation = Cancellation()
    cancellation._interrupted()
    assert list(attempt_events(spec_of(kit), grant(), cancellation)) == []


def test_a_quota_below_what_ray_was_told(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = CoreSplit((min(os.sched_getaffinity(0)),))
    monkeypatch.setattr(supervisor, "core_split", lambda node_cpus: one)
    started = next(iter(attempt_events(spec_of(kit, cpus=64), grant(), Cancellation())))
    assert started.slot.cpus == one.measured


def test_refused_measurements_become_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = RuleResult("steal", "invalid", 0.2, 0.05, "20 % of CPU time stolen")
    monkeypatch.setattr(
        "orchestrator.telemetry.verdict.judge", lambda report, rules: Verdict("invalid", (broken,))
    )
    report = judged(AttemptReport("a", "h", Outcome.OK), {})
    assert (report.outcome, report.reason) == (Outcome.INVALID, "20 % of CPU time stolen")
    failed = judged(AttemptReport("a", "h", Outcome.ERROR, reason="boom"), {})
    assert (failed.outcome, failed.reason) == (Outcome.ERROR, "boom")


def test_a_broken_rule_costs_no_measurement() -> None:
    report = judged(AttemptReport("a", "h", Outcome.OK), {"rules": {"no such rule": {}}})
    assert report.outcome is Outcome.OK
    assert report.verdict.state == "unverified"
    assert "no such rule" in (report.verdict.rules[0].reason or "")


def _names() -> list[str]:
    return [f"core-{core}" for core in supervisor.core_split(CPUS).measured]
