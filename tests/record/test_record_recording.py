"""A sweep's recording: never in the way, whole whatever fails, and hanging nobody."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import Outcome
from orchestrator.errors import StoreError
from orchestrator.record import Recording, sync
from orchestrator.record.embedded import EmbeddedStore
from testing.waiting import until


@pytest.mark.parametrize(
    "broken", [{"facts": None}, {"ended_at": math.inf}, {"duration_s": math.nan}]
)
def test_a_report_that_cannot_be_stored_does_not_stop_the_others(
    store: EmbeddedStore, kit: SimpleNamespace, broken: dict[str, Any]
) -> None:
    trials = [kit.trial_of(value) for value in range(2)]
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        bad = kit.report_of(kit.spec_of(trials[0]), **broken)
        recording.finish(bad, trials[0])
        recording.finish(kit.report_of(kit.spec_of(trials[1])), trials[1])
        assert recording.flush(60)
    assert set(store.attempts()) == {trials[1].hash}
    assert any("could not be recorded" in text for text in messages)


@pytest.mark.parametrize("name", ["../../escape", "a/../b", "/tmp/c", "d\ne", "f\udcff", "g" * 201])
def test_an_artifact_whose_name_cannot_be_used_costs_no_result(
    store: EmbeddedStore, kit: SimpleNamespace, name: str
) -> None:
    trial = kit.trial_of(0)
    files = {name: b"x", "good.txt": b"y"}
    run_id = kit.record_one(store, trial, artifacts=files)
    assert "good.txt" in store.files(run_id)
    report = store.load(run_id)
    assert report.metrics
    (why,) = report.facts["artifacts_left_out"].values()
    assert "leaves its directory, or is none" in why
    assert not list(store.root.parent.rglob("escape"))


def test_a_record_that_the_store_does_not_take_waits_and_the_others_do_not(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trials = [kit.trial_of(value) for value in range(3)]
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append, patience_s=0) as recording:
        for trial in trials:
            spec = kit.spec_of(trial)
            recording.begin(spec, kit.SLOT)
            # Of the first, one file is where another has its folder.
            files = {"a": b"x", "a/b": b"y"} if trial is trials[0] else {}
            recording.finish(kit.report_of(spec, artifacts=files), trial)
        until(lambda: recording._drainer.recorded == 2)
        assert not recording.flush(0)
        summary = recording.close()
    assert (summary.recorded, summary.waiting) == (2, 1)
    said = [line for line in messages if "a/b" in line]
    assert len(said) == 1, "said once, however often it is tried"
    # Who comes next is not stopped by it either, and sees the result all the same.
    (line,) = sync(store).messages
    assert "a/b" in line
    assert "1 record of" in line
    found = store.attempts()
    assert {h: found[h][0].outcome for h in found} == {trial.hash: "ok" for trial in trials}
    assert store.load(found[trials[0].hash][0].run_id).artifacts == {}
    assert store.artifact(found[trials[0].hash][0].run_id, "a/b") == b"y"


def test_an_error_about_a_file_whose_name_is_no_text_is_recorded(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(0)
    said = "[Errno 2] No such file: " + os.fsdecode(b"/models/\xff")
    kit.record_one(store, trial, Outcome.ERROR, reason=said, traceback=said)
    (attempt,) = store.attempts()[trial.hash]
    assert (attempt.outcome, attempt.reason) == ("error", "[Errno 2] No such file: /models/?")
    assert store.artifact(attempt.run_id, "traceback.txt").endswith(b"/models/?")


def test_begin_and_finish_return_at_once(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trials = [kit.trial_of(value) for value in range(40)]
    held = threading.Event()
    with Recording(store, kit.plan_of(trials)) as recording:
        assert recording.flush(60)
        backend = store.backend()
        original = backend.finish

        def slow(*arguments: Any) -> None:
            held.wait(60)
            original(*arguments)

        backend.finish = slow  # type: ignore[method-assign]
        for trial in trials:
            spec = kit.spec_of(trial)
            recording.begin(spec, kit.SLOT)
            recording.finish(kit.report_of(spec), trial)
        # Every result is on disk although the store has taken none.
        until(lambda: len(list(store.spool_root.rglob("*.finish"))) == 40)
        assert len(store.attempts()) == 40
        held.set()
    assert len(store.attempts()) == 40
    assert not list(store.spool_root.rglob("*.finish"))


def test_what_was_begun_and_never_finished_ends_with_the_sweep(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    recording = Recording(store, kit.plan_of([trial]))
    recording.begin(kit.spec_of(trial), kit.SLOT)
    summary = recording.close("KILLED", "stopped by a person")
    (attempt,) = store.attempts()[trial.hash]
    assert (attempt.outcome, attempt.status) == ("cancelled", "KILLED")
    assert summary.outcomes == {"cancelled": 1}
    assert store.sweep_runs("quant")[0].status == "KILLED"
    assert recording.close() is summary


def test_a_full_disk_stops_new_attempts_and_loses_nothing(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [kit.trial_of(value) for value in range(3)]
    messages: list[str] = []
    full = threading.Event()
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        assert recording.flush(60)
        full.set()
        recording.finish(kit.report_of(kit.spec_of(trials[0])), trials[0])
        until(lambda: messages)
        with pytest.raises(StoreError, match="no space left on the disk"):
            recording.begin(kit.spec_of(trials[1]), kit.SLOT)
        # What ran meanwhile can still be handed over.
        recording.finish(kit.report_of(kit.spec_of(trials[2])), trials[2])
        assert not list(store.spool_root.rglob("*.tmp"))
        full.clear()
        assert recording.flush(60)
    assert len(messages) == 1
    assert set(store.attempts()) == {trials[0].hash, trials[2].hash}


def test_a_disk_that_stays_full_is_said_and_hangs_nobody(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = kit.trial_of(1)
    recording = Recording(store, kit.plan_of([trial]), patience_s=0.1)
    assert recording.flush(60)

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    recording.finish(kit.report_of(kit.spec_of(trial)), trial)
    summary = recording.close()
    assert summary.recorded == 0
    assert any("are lost" in line for line in summary.problems)
    monkeypatch.undo()
    # The sweep itself is put in order by the next driver.
    sync(store)
    assert [run.status for run in store.sweep_runs()] == ["KILLED"]


def test_an_error_nobody_foresaw_is_met_by_another_try(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store.backend()
    finish, raised = backend.finish, []

    def once(*given: Any) -> None:
        if not raised:
            raised.append(RuntimeError("deque mutated during iteration"))
            raise raised[0]
        finish(*given)

    monkeypatch.setattr(backend, "finish", once)
    trial = kit.trial_of(1)
    kit.record_one(store, trial)
    assert raised
    assert not (store.spool_root / "corrupt").exists()
    assert [s.outcome for s in store.attempts()[trial.hash]] == ["ok"]


def test_a_bug_in_recording_hangs_nobody(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise AttributeError("a bug")

    monkeypatch.setattr(store, "backend", broken)
    trial = kit.trial_of(1)
    recording = Recording(store, kit.plan_of([trial]))
    recording.finish(kit.report_of(kit.spec_of(trial)), trial)
    assert not recording.flush(60)
    summary = recording.close()
    assert summary.waiting == 1
    assert any("a bug" in line for line in summary.problems)
    monkeypatch.undo()
    assert sync(store).written == 1
    assert store.attempts()[trial.hash][0].outcome == "ok"


def test_attempts_go_on_in_another_experiment_once_theirs_is_deleted(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trials = [kit.trial_of(value) for value in range(2)]
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        assert recording.flush(60)
        backend = store.backend()
        backend._store.delete_experiment(backend.experiment(recording.sweep))
        for trial in trials:
            recording.finish(kit.report_of(kit.spec_of(trial)), trial)
        assert recording.flush(60)
        assert messages == []
    assert {h: [s.outcome for s in group] for h, group in store.attempts().items()} == {
        trial.hash: ["ok"] for trial in trials
    }


def test_what_a_backup_has_forgotten_is_written_again(
    store: EmbeddedStore, kit: SimpleNamespace, empty_database: Path
) -> None:
    trials = [kit.trial_of(value) for value in range(2)]
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        specs = [kit.spec_of(trial) for trial in trials]
        recording.begin(specs[0], kit.SLOT)
        assert recording.flush(60)
        with (
            closing(sqlite3.connect(empty_database)) as backup,
            closing(sqlite3.connect(store.database)) as present,
        ):
            backup.backup(present)
        for spec in specs:
            recording.finish(kit.report_of(spec), spec.trial)
        assert recording.flush(60)
    assert messages == []
    assert {h: [s.outcome for s in group] for h, group in store.attempts().items()} == {
        trial.hash: ["ok"] for trial in trials
    }
    (run,) = store.sweep_runs()
    assert run.status == "FINISHED"
    assert len(store.plan(run.run_id)["trials"]) == 2
