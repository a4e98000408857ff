"""Drivers that die at every stage: nothing recorded is lost, nothing is recorded twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import Outcome
from orchestrator.commands.run import carry_out
from orchestrator.plan.schema import Settings, TrackingConfig
from orchestrator.record import Recording, open_store, reap, spool, sync
from orchestrator.record.build import Builder
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.liveness import STALE_AFTER_S, driver_id, is_alive
from orchestrator.record.runrecord import ATTEMPT_TAG, RunRecord
from orchestrator.record.writer import Writer
from testing.waiting import until

# A driver that begins two attempts, finishes one, and then hangs in the stage it is told to.
DRIVER = """
import sys, threading, time
sys.path[:0] = [sys.argv[2], sys.argv[3]]
import conftest as kit
from orchestrator.record import Recording, open_store
from testing.waiting import until
stage = sys.argv[4]
store = open_store({"root": sys.argv[1]})
trials = [kit.trial_of(1), kit.trial_of(2)]
if stage == "half":
    # As on a server, where it takes several calls to make a run whole.
    from orchestrator.record import database
    database.tables_are_known = lambda: False
if stage == "spooled":
    # MLflow never answers: everything stays in the spool.
    type(store).backend = lambda self: threading.Event().wait()
recording = Recording(store, kit.plan_of(trials))
specs = [kit.spec_of(trial) for trial in trials]
for spec, trial in zip(specs, trials):
    recording.submit(spec)
for spec, trial in list(zip(specs, trials))[: 0 if stage == "submitted" else 2]:
    recording.begin(spec, kit.SLOT)
if stage in ("submitted", "begun"):
    assert recording.flush(120)
else:
    if stage == "half":
        # Dies when its metrics are written and its status is not.
        def stop(*_):
            print("ready", flush=True)
            time.sleep(600)
        until(lambda: recording.run_id is not None)
        store.backend().end = stop
    spec = next(iter(recording._begun.values())).planned
    recording.finish(kit.report_of(spec), trials[0])
    if stage == "recorded":
        assert recording.flush(120)
    elif stage == "half":
        time.sleep(600)
    else:
        until(lambda: list(store.spool_root.rglob("*.finish")))
print("ready", flush=True)
time.sleep(600)
"""


def killed_driver(store: EmbeddedStore, stage: str) -> str:
    """Run the driver above until it is in ``stage``, then SIGKILL it; returns its driver id."""
    here = Path(__file__).resolve().parent
    arguments = [str(store.root), str(here), str(here.parent.parent), stage]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        driver = driver_id(process.pid)
        assert is_alive(driver, None)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return driver


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("submitted", marks=pytest.mark.long),
        pytest.param("begun", marks=pytest.mark.long),
        "spooled",
        pytest.param("recorded", marks=pytest.mark.long),
        "half",
    ],
)
def test_a_killed_driver_is_put_in_order(
    store: EmbeddedStore, kit: SimpleNamespace, stage: str
) -> None:
    driver = killed_driver(store, stage)
    assert not is_alive(driver, time.time())
    trials = [kit.trial_of(1), kit.trial_of(2)]
    if stage == "spooled":
        # Known before it is recorded, so that the same command does not measure it again.
        assert store.attempts()[trials[0].hash][0].outcome == "ok"
    before = reap(store)
    summary = sync(store)
    assert summary.messages == []
    first = None if stage in ("submitted", "begun") else "ok"
    expected = {trials[0].hash: first or "lost", trials[1].hash: "lost"}
    found = {key: [s.outcome for s in group] for key, group in store.attempts().items()}
    assert found == {key: [outcome] for key, outcome in expected.items()}
    statuses = {key: group[0].status for key, group in store.attempts().items()}
    assert statuses[trials[1].hash] == "KILLED"
    assert statuses[trials[0].hash] == ("FINISHED" if first else "KILLED")
    if stage == "spooled":
        assert before.attempts == 0
    assert store.running() == []
    assert [run.status for run in store.sweep_runs()] == ["KILLED"]
    # The whole report is there, also of the lost one; metrics are there once.
    for group in store.attempts().values():
        loaded = store.load(group[0].run_id)
        assert loaded.outcome.value == group[0].outcome
        assert store.identity(group[0].run_id)["task"]["name"] == "noop"
    if first:
        run_id = store.attempts()[trials[0].hash][0].run_id
        assert len(_client(store).get_metric_history(run_id, "tpot_s")) == 1
    # Everything again changes nothing.
    again = sync(store)
    assert (again.written, again.lost) == (0, 0)
    assert reap(store) == type(before)()
    assert found == {key: [s.outcome for s in group] for key, group in store.attempts().items()}
    assert not any(store.spool_root.iterdir())


def _client(store: EmbeddedStore) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store.uri)


def test_a_living_driver_is_neither_reaped_nor_drained(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    with Recording(store, kit.plan_of([trial])) as recording:
        recording.begin(kit.spec_of(trial), kit.SLOT)
        assert recording.flush(60)
        assert reap(store).attempts == 0
        assert sync(store).in_use == 1
        assert len(store.running()) == 2


def test_another_hosts_driver_is_judged_by_its_heartbeat(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.record.recording.driver_id", lambda: "elsewhere:17:123:deadbeef"
    )
    trial = kit.trial_of(1)
    recording = Recording(store, kit.plan_of([trial]), heartbeat_period_s=0.05)
    recording.begin(kit.spec_of(trial), kit.SLOT)
    assert recording.flush(60)
    now = time.time()
    assert reap(store, now=now + STALE_AFTER_S / 2).attempts == 0
    began = {run.run_id: run.tags["heartbeat"] for run in store.running() if "sweep_id" in run.tags}
    until(
        lambda: any(
            run.tags["heartbeat"] > began[run.run_id]
            for run in store.running()
            if run.run_id in began
        )
    )
    assert reap(store, now=time.time() + STALE_AFTER_S + 5).attempts == 1
    assert store.attempts()[trial.hash][0].outcome == "lost"
    # It lived after all: its claims, which are its sweep's run's, count again with its next beat.
    until(lambda: [run.tags.get("reason") for run in store.running()] == [""])
    # What it reports replaces what was written about it.
    spec = next(iter(recording._begun.values())).planned
    recording.finish(kit.report_of(spec), trial)
    recording.close()
    (attempt,) = store.attempts()[trial.hash]
    assert (attempt.outcome, attempt.status, attempt.reason) == ("ok", "FINISHED", None)


def test_a_beat_after_its_end_does_not_open_a_run_again(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    recording = Recording(store, kit.plan_of([kit.trial_of(1)]))
    recording._hand_over_the_end("FINISHED", None)
    assert recording.flush(60)
    # The time for one may come before the thread is told to stop.
    recording._drainer._beat()
    assert [run.status for run in store.sweep_runs()] == ["FINISHED"]
    recording.close()


def test_a_run_that_lacks_only_its_status_is_not_lost(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    """Its driver, on a host that is gone, died between the last two things it told the server."""
    from orchestrator.record.build import Builder

    trial = kit.trial_of(1)
    builder = Builder("s" * 32, "quant", "elsewhere:17:123:deadbeef")
    record = builder.attempt_finish(kit.report_of(kit.spec_of(trial)), trial)
    backend = store.backend()
    run_id = Writer(backend).apply(record, "d")
    backend.reopen(run_id)
    assert reap(store, now=time.time() + STALE_AFTER_S + 5).attempts == 1
    (attempt,) = store.attempts()[trial.hash]
    assert (attempt.outcome, attempt.status, attempt.reason) == ("ok", "FINISHED", None)
    assert store.load(run_id).metrics


def test_replaying_a_record_writes_nothing_twice(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    from orchestrator.record.build import Builder

    trial = kit.trial_of(1)
    spec = kit.spec_of(trial)
    builder = Builder("s" * 32, "quant", driver_id())
    record = builder.attempt_finish(kit.report_of(spec), trial)
    backend = store.backend()
    first = Writer(backend, replay=True).apply(record, "d1")
    path = next(store.artifact_root.rglob("report.json"))
    path.unlink()
    # The whole run is left alone, but for files that a power cut may have taken.
    assert Writer(backend, replay=True).apply(record, "d1") == first
    assert path.exists()
    # Half written (no status yet): written again, into the same run.
    backend._store.update_run_info(first, 1, None, None)
    backend.tag(first, {"record_digest": "other"})
    assert Writer(backend, replay=True).apply(record, "d1") == first
    client = _client(store)
    assert client.get_run(first).info.status == "FINISHED"
    for key in ("tpot_s", "tpot_s.mean", "weights_bytes"):
        assert len(client.get_metric_history(first, key)) == 1
    assert len(store.attempts()[trial.hash]) == 1


def test_a_create_whose_answer_was_lost_leaves_one_run(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    from orchestrator.errors import StoreUnavailable
    from orchestrator.record.build import Builder

    trial = kit.trial_of(1)
    spec = kit.spec_of(trial)
    record = Builder("s" * 32, "quant", driver_id()).attempt_finish(kit.report_of(spec), trial)
    backend = store.backend()
    writer = Writer(backend)
    original = backend.create_run

    def lost_answer(*arguments: Any) -> Any:
        original(*arguments)
        backend.create_run = original  # type: ignore[method-assign]
        raise StoreUnavailable("the answer was lost")

    backend.create_run = lost_answer  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        writer.apply(record, "d")
    run_id = writer.apply(record, "d")
    (row,) = backend.search(f"tags.{ATTEMPT_TAG} = '{spec.attempt_id}'")
    assert (row.run_id, row.status) == (run_id, "FINISHED")
    # And where two were made in spite of all, the whole one counts, and the other goes.
    twin = original("0", "twin", 1, {**record.tags, "outcome": "lost"})
    assert [s.run_id for s in store.attempts()[trial.hash]] == [run_id]
    backend._store.update_run_info(twin.run_id, 4, 2**42, None)
    assert [s.run_id for s in store.attempts()[trial.hash]] == [run_id]
    assert Writer(backend, replay=True).apply(record, "d") == run_id
    assert len(list(backend.search(f"tags.{ATTEMPT_TAG} = '{spec.attempt_id}'"))) == 1


def finished(kit: SimpleNamespace, count: int) -> list[RunRecord]:
    """Records of so many attempts that ended."""
    builder = Builder("s" * 32, "quant", "nobody:1:1:1")
    trials = [kit.trial_of(value) for value in range(count)]
    return [builder.attempt_finish(kit.report_of(kit.spec_of(trial)), trial) for trial in trials]


def left_behind(store: EmbeddedStore, records: list[RunRecord]) -> list[Path]:
    """Where a driver that is dead has spooled them."""
    left = spool.Spool.create(store.spool_root, "s" * 32)
    paths = [left.write(record).path for record in records]
    left.close()
    return paths


def test_a_corrupt_record_does_not_block_the_others(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    damaged = left_behind(store, finished(kit, 3))[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert len(store.attempts()) == 2
    summary = sync(store)
    assert summary.written == 2
    (line,) = summary.messages
    assert "checksum" in line
    assert len(list((store.spool_root / "corrupt").iterdir())) == 2
    assert len(store.attempts()) == 2
    assert sync(store).messages == []


def test_a_spool_that_cannot_be_written_belongs_to_no_running_sweep(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is only to be read, or another user's spool."""
    (left,) = left_behind(store, finished(kit, 1))
    # Who is root may write whatever a mode says.
    monkeypatch.setattr("os.access", lambda path, mode: path != left.parent)
    summary = sync(store)
    assert (summary.written, summary.in_use) == (0, 0)
    (line,) = summary.messages
    assert line.startswith(f"{left.parent}: cannot be written")
    assert left.exists()


def test_a_record_the_store_refuses_is_set_aside(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    bad, good = finished(kit, 2)
    left_behind(store, [replace(bad, params={"not\nlegal": "x"}), good])
    summary = sync(store)
    assert summary.written == 1
    assert len(summary.messages) == 1
    assert store.attempts()[good.tags["config_hash"]][0].outcome == "ok"


def test_driver_ids_tell_processes_apart() -> None:
    mine = driver_id()
    host, pid, start, boot = mine.rsplit(":", 3)
    assert int(pid) == os.getpid()
    assert is_alive(mine, None)
    # The same pid at another time, after another boot, or of a child that is dead.
    assert not is_alive(f"{host}:{pid}:{int(start) + 1}:{boot}", time.time())
    assert not is_alive(f"{host}:{pid}:{start}:00000000", time.time())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    theirs = driver_id(child.pid)
    assert is_alive(theirs, None)
    child.send_signal(signal.SIGKILL)
    # A zombie does not run either.
    while is_alive(theirs, None):
        time.sleep(0.01)
    child.wait()
    assert not is_alive(theirs, None)
    assert is_alive("elsewhere:1:1:ff", 1000.0, now=1000.0 + STALE_AFTER_S - 1)
    assert not is_alive("elsewhere:1:1:ff", 1000.0, now=1000.0 + STALE_AFTER_S + 1)
    assert not is_alive("nonsense", None)


def test_reap_ends_a_run_that_never_beat(store: EmbeddedStore) -> None:
    backend = store.backend()
    experiment = backend.experiment("quant")
    tags = {ATTEMPT_TAG: "a", "config_hash": "c" * 64, "driver_id": "elsewhere:1:1:ff"}
    backend.create_run(experiment, "old", 1_000, tags)
    foreign = backend.create_run(experiment, "a person's own run", 1_000, {})
    assert reap(store).attempts == 1
    (attempt,) = store.attempts()["c" * 64]
    assert (attempt.outcome, attempt.status) == ("lost", "KILLED")
    assert store.load(attempt.run_id).outcome is Outcome.LOST
    # What is not ours is not touched.
    assert backend.get_run(foreign.run_id).status == "RUNNING"


def test_a_second_store_object_sees_the_same(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    kit.record_one(store, kit.trial_of(1))
    assert open_store({"root": store.root}).attempts() == store.attempts()


def test_a_sweep_with_nothing_left_records_what_is_only_in_a_spool(
    store: EmbeddedStore,
    kit: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed_driver(store, "spooled")
    trial = kit.trial_of(1)
    tracking = TrackingConfig(kind="embedded", root=str(store.root))
    # What was recorded there knows nothing of this machine.
    settings = Settings(tracking=tracking, reuse="hash")
    plan = replace(kit.plan_of([trial]), settings=settings)
    assert carry_out(plan) == 0
    said = capsys.readouterr().err
    assert "attempts of an earlier run were in the spool: recorded now" in said
    assert "nothing left to do (1 cached)" in said
    assert [s.outcome for s in store.recorded({trial.hash})] == ["ok"]
    assert not list(store.spool_root.rglob("*.finish"))
    assert carry_out(plan) == 0
    again = capsys.readouterr()
    assert "spool" not in again.err
    assert "noop" in again.out
    # A table of thousands is nothing to print.
    monkeypatch.setattr("orchestrator.commands.measuring.MOST_REPORTED", 0)
    assert carry_out(plan) == 0
    short = capsys.readouterr()
    assert short.out == ""
    assert f"too many for a table: python -m orchestrator report {plan.sweep}" in short.err
