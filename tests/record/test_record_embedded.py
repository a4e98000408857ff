"""Recording into real SQLite through real MLflow, and reading it back without MLflow."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.attempt import Outcome, RuleResult, Verdict
from orchestrator.errors import ConfigError, StoreError, UsageError
from orchestrator.record import Recording, open_store, reap, sync, ui_arguments
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.params import flatten


def client(store: EmbeddedStore) -> Any:
    """MLflow's own client: what a person's notebook would see."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store.uri)


def test_an_attempt_is_a_whole_run(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    trial = kit.trial_of(7)
    spec = kit.spec_of(trial)
    recording = Recording(
        store, kit.plan_of([trial]), todo=1, command=["python", "-m", "orchestrator"], seed=3
    )
    recording.begin(spec, trial, kit.SLOT)
    assert recording.flush(60)
    run_id = recording.run_id_of(spec.attempt_id)
    # Visible RUNNING while it runs, under its name, with its configuration.
    running = client(store).get_run(run_id)
    assert running.info.status == "RUNNING"
    assert running.info.run_name == "nf4 · value=7 · a1"
    assert yaml.safe_load(store.artifact(run_id, "config.yaml")) == trial.identity
    assert store.attempts([trial.hash])[trial.hash][0].outcome is None

    report = kit.report_of(
        spec,
        verdict=Verdict("flagged", (RuleResult("power_cap", "flagged", 1.0, 0.0, "capped"),)),
    )
    recording.finish(report, trial)
    summary = recording.close()
    assert (summary.recorded, summary.waiting, summary.problems) == (1, 0, ())
    assert summary.run_ids == {spec.attempt_id: run_id}

    run = client(store).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == round(report.ended_at * 1000)
    metrics = run.data.metrics
    assert metrics["tpot_s"] == 0.12
    assert metrics["tpot_s.n"] == 5
    assert metrics["tpot_s.min"] == 0.10
    assert metrics["tpot_s.mean"] == pytest.approx(0.192)
    assert metrics["tpot_s.ci_low"] <= 0.12 <= metrics["tpot_s.ci_high"]
    assert "tpot_s.p95" not in metrics  # five samples have none
    assert metrics["weights_bytes"] == 123
    assert metrics["decode.power_w"] == 250
    assert not any("energy" in key for key in metrics)  # absent is not 0
    assert run.data.params["task.value"] == "7"
    assert run.data.params["quant.double_quant"] == "true"
    assert run.data.params == flatten(trial.identity)
    tags = run.data.tags
    assert {
        "config_hash": trial.hash,
        "sweep": "quant",
        "attempt": "1",
        "attempt_id": spec.attempt_id,
        "outcome": "ok",
        "verdict": "flagged",
        "verdict_rules": "power_cap",
        "host": "host-1",
        "gpu_uuids": "GPU-aaaa,GPU-bbbb",
        "task": "noop",
        "model": "smollm2_135m",
        "quant": "nf4",
        "simulated": "false",
        "mlflow.parentRunId": summary.run_id,
        "driver_id": recording.driver_id,
    }.items() <= tags.items()
    assert len(tags["git_commit"]) == 40
    assert tags["git_dirty"] in ("true", "false")

    assert store.artifact_names(run_id) == [
        "config.yaml", "environment.json", "log.txt", "plots/p.txt", "provenance.json",
        "report.json", "samples.parquet",
    ]  # fmt: skip
    samples = pq.read_table(io.BytesIO(store.artifact(run_id, "samples.parquet"))).to_pylist()
    assert [row["value"] for row in samples if row["role"] == "warmup"] == [0.9, 0.8]
    assert samples[2] == {
        "metric": "tpot_s", "unit": "s", "role": "measured", "index": 0, "value": 0.10,
    }  # fmt: skip
    assert json.loads(store.artifact(run_id, "environment.json"))["packages"]["torch"] == "2.13.0"
    loaded = store.load(run_id)
    assert loaded.metrics == report.metrics
    assert loaded.verdict == report.verdict
    assert loaded.provenance["seed"] == 3
    # MLflow's UI finds the files where it looks for them, from any directory.
    assert os.path.isabs(run.info.artifact_uri.removeprefix("file://"))
    found = client(store).download_artifacts(run_id, "log.txt", str(tmp_path))
    assert Path(found).read_text() == "loaded\n"

    parent = client(store).get_run(summary.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "quant"
    note = parent.data.tags["mlflow.note.content"]
    assert "Weights of four bits." in note
    assert "| `quant` | `nf4` |" in note
    assert "1 trial, 1 attempt to run" in note
    assert parent.data.metrics == {"attempts.ok": 1}
    assert store.plan(summary.run_id)["trials"][0]["hash"] == trial.hash
    experiment = client(store).get_experiment(run.info.experiment_id)
    assert experiment.name == "quant"
    assert not any(store.spool_root.iterdir())


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.OK, "FINISHED"),
        (Outcome.INVALID, "FINISHED"),
        (Outcome.OOM_DEVICE, "FAILED"),
        (Outcome.OOM_HOST, "FAILED"),
        (Outcome.TIMEOUT, "FAILED"),
        (Outcome.CRASHED, "FAILED"),
        (Outcome.ERROR, "FAILED"),
        (Outcome.INFEASIBLE, "FAILED"),
        (Outcome.LOST, "KILLED"),
        (Outcome.CANCELLED, "KILLED"),
    ],
)
def test_every_outcome_has_a_status(outcome: Outcome, status: str) -> None:
    from orchestrator.record.build import status_of

    assert status_of(outcome) == status


def test_failures_keep_their_reason_and_traceback(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    run_id = kit.record_one(
        store, trial, Outcome.ERROR, reason="no such file", traceback="Traceback ...", metrics={}
    )
    (summary,) = store.attempts()[trial.hash]
    assert (summary.outcome, summary.reason, summary.status) == ("error", "no such file", "FAILED")
    assert store.artifact(run_id, "traceback.txt") == b"Traceback ..."
    assert "samples.parquet" not in store.artifact_names(run_id)


def test_a_long_parameter_is_not_cut_silently(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    long = "p" * 7_000
    trial = kit.trial_of(1, note=long, exact="e" * 5_500)
    run_id = kit.record_one(store, trial)
    params = client(store).get_run(run_id).data.params
    assert params["task.exact"] == "e" * 5_500
    assert params["task.note"].startswith("sha256:")
    assert "7000 characters" in params["task.note"]
    assert store.identity(run_id)["task"]["note"] == long


def test_more_parameters_than_one_call_takes(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trial = kit.trial_of(1, **{f"option_{i}": i for i in range(250)})
    run_id = kit.record_one(store, trial)
    params = client(store).get_run(run_id).data.params
    assert {f"task.option_{i}": str(i) for i in range(250)}.items() <= params.items()


def test_telemetry_series_are_thinned_and_keep_their_peaks(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    count = 5_000
    watts = [100.0 + i % 7 for i in range(count)]
    watts[1234] = 900.0
    table = pa.table(
        {
            "t_s": [i * 0.05 for i in range(count)] * 2,
            "source": ["gpu0"] * count + ["host"] * count,
            "metric": ["power_w"] * count + ["load"] * count,
            "value": watts + [None if i % 2 else 1.0 for i in range(count)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run_id = kit.record_one(
        store, kit.trial_of(1), artifacts={"telemetry.parquet": sink.getvalue()}
    )
    history = client(store).get_metric_history(run_id, "system/gpu0/power_w")
    assert 100 <= len(history) <= 1_000
    assert max(point.value for point in history) == 900.0
    assert [p.step for p in history] == sorted(p.step for p in history)
    assert history[-1].step <= count * 50
    assert [p.value for p in client(store).get_metric_history(run_id, "system/host/load")] == [
        1.0,
        1.0,
    ], "a flat line needs its ends only"


def test_planted_secrets_are_nowhere(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, shape = "planted-secret-value-1", "hf_PlantedPlantedPlanted42"
    monkeypatch.setenv("HF_TOKEN", secret)
    trial = kit.trial_of(1, url=f"https://user:{secret}@host/x", note=shape)
    spec = kit.spec_of(trial)
    plan = kit.plan_of([trial])
    with Recording(store, plan, command=["x", "--token", "onlyhere99", secret]) as recording:
        recording.begin(spec, trial, kit.SLOT)
        report = kit.report_of(
            spec,
            Outcome.ERROR,
            reason=f"cannot log in with {secret}",
            traceback=f"raise Error('{shape}')",
            facts={"token": "short", "said": secret},
            provenance={"command": [secret], "environment": {"HF_TOKEN": secret}},
            artifacts={"log.txt": f"HF_TOKEN={secret}\n{shape}".encode()},
        )
        recording.finish(report, trial)
    planted = [secret.encode(), shape.encode(), b"onlyhere99"]
    for path in store.root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in planted), path
    assert (store.root / "mlflow.db").exists()


def test_reading_imports_no_mlflow(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trial = kit.trial_of(1)
    run_id = kit.record_one(store, trial)
    code = (
        "import sys\n"
        "from orchestrator.record import open_store\n"
        "s = open_store({'kind': 'embedded', 'root': sys.argv[1]})\n"
        "assert s.attempts() and s.find(sys.argv[2][:12]) and s.load(sys.argv[3])\n"
        "assert s.identity(sys.argv[3]) and s.sweep_runs('quant')\n"
        "heavy = ('mlflow', 'sqlalchemy', 'ray', 'torch', 'pandas')\n"
        "bad = [m for m in heavy if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    arguments = [str(store.root), trial.hash, run_id]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)


def test_nothing_recorded_yet_is_no_error_and_leaves_no_trace(fresh_store: EmbeddedStore) -> None:
    store = fresh_store
    assert store.attempts() == {}
    assert store.find("0" * 12) == []
    assert store.sweep_runs("quant") == []
    assert reap(store).attempts == 0
    assert sync(store).written == 0
    assert not store.root.exists()


def test_resume_finds_attempts_by_hash(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trials = [kit.trial_of(value) for value in range(6)]
    with Recording(store, kit.plan_of(trials)) as recording:
        for trial in trials:
            for number in (2, 1):
                spec = kit.spec_of(trial, number)
                recording.finish(kit.report_of(spec, started_at=1000.0 + number), trial)
    every = store.attempts()
    assert set(every) == {trial.hash for trial in trials}
    assert [s.number for s in every[trials[0].hash]] == [1, 2]
    some = store.attempts([trials[1].hash, "f" * 64])
    assert set(some) == {trials[1].hash}
    assert store.attempts([]) == {}
    many = store.attempts([*(t.hash for t in trials), *(f"{i:064x}" for i in range(600))])
    assert many == every
    assert len(store.sweep_attempts("quant")) == 12
    assert store.sweep_attempts("other") == []
    # A run that a person deleted in MLflow is not there any more.
    client(store).delete_run(every[trials[2].hash][0].run_id)
    assert len(store.attempts()[trials[2].hash]) == 1


def test_hash_prefixes(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trials = [kit.trial_of(value) for value in range(2)]
    # Two hashes with a common beginning, as no real pair will ever have.
    import dataclasses

    twins = [dataclasses.replace(t, hash="ab" * 10 + t.hash[20:]) for t in trials]
    with Recording(store, kit.plan_of(twins)) as recording:
        for trial in twins:
            recording.finish(kit.report_of(kit.spec_of(trial)), trial)
    assert store.find("ab" * 6) == sorted(t.hash for t in twins)
    assert store.resolve(twins[0].hash[:30].upper()) == twins[0].hash
    with pytest.raises(UsageError, match="begins 2 hashes"):
        store.resolve("ab" * 6)
    with pytest.raises(UsageError, match="no attempt of") as caught:
        store.resolve("0" * 12)
    assert "\n" not in str(caught.value)
    for wrong in ("ab", "xyz" * 5, "a" * 65, "' OR 1=1 --", "%" * 12):
        with pytest.raises(UsageError, match="is no config hash"):
            store.find(wrong)


def test_an_attempt_without_report_says_so(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trial = kit.trial_of(1)
    run_id = kit.record_one(store, trial)
    path = next(store.artifact_root.rglob("report.json"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(run_id)
    path.unlink()
    with pytest.raises(StoreError, match="has no report"):
        store.load(run_id)
    with pytest.raises(StoreError, match="no run"):
        store.load("0" * 32)
    with pytest.raises(StoreError, match="leaves its directory"):
        store.artifact(run_id, "../../../mlflow.db")


def test_a_first_sweep_makes_its_database(fresh_store: EmbeddedStore, kit: SimpleNamespace) -> None:
    kit.record_one(fresh_store, kit.trial_of(1))
    assert len(fresh_store.attempts()) == 1
    experiments = client(fresh_store).search_experiments()
    # The default experiment too: else MLflow writes to whatever directory it was started in.
    assert all(str(fresh_store.artifact_root) in e.artifact_location for e in experiments)


def test_a_moved_root_still_reads(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    run_id = kit.record_one(store, kit.trial_of(1))
    store.root.rename(tmp_path / "elsewhere")
    moved = open_store({"root": tmp_path / "elsewhere"})
    assert moved.load(run_id).outcome is Outcome.OK


def test_an_unexpected_schema_falls_back_to_mlflow(
    store: EmbeddedStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = kit.trial_of(1)
    run_id = kit.record_one(store, trial)
    before = store.attempts()

    def unknown(*_: object) -> object:
        from orchestrator.record.embedded import _UnknownSchema

        raise _UnknownSchema("no such column")

    monkeypatch.setattr(store, "_query", unknown)
    assert store.attempts() == before
    assert store.find(trial.hash[:12]) == [trial.hash]
    assert store.load(run_id).config_hash == trial.hash
    assert [run.sweep for run in store.sweep_runs("quant")] == ["quant"]
    assert store.running() == []


def test_two_drivers_create_the_database_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from orchestrator.record import open_store\n"
        "s = open_store({'root': sys.argv[1]})\n"
        "while time.time() < float(sys.argv[2]): pass\n"
        "b = s.backend()\n"
        "e = b.experiment('same')\n"
        "b.create_run(e, 'n', 1, {})\n"
        "print(e)\n"
    )
    begin = str(time.time() + 3)
    arguments = [sys.executable, "-c", code, str(tmp_path / "mlruns"), begin]
    processes = [
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({output[0] for output in outputs}) == 1
    # MLflow's migrations are not for the terminal.
    assert [output[1] for output in outputs] == ["", ""]
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        locations = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    assert all(str(tmp_path) in location for (location,) in locations)


def test_a_locked_database_is_waited_for(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trials = [kit.trial_of(value) for value in range(3)]
    kit.record_one(store, trials[0])
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        assert recording.flush(60)
        locker = sqlite3.connect(store.database, isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for trial in trials[1:]:
            recording.finish(kit.report_of(kit.spec_of(trial)), trial)
        assert not recording.flush(2.0)
        # What is finished is known at once, from the spool.
        assert len(store.attempts()) == 3
        waiting = store.attempts()[trials[1].hash][0]
        assert waiting.run_id.startswith("spool:")
        assert store.load(waiting.run_id).config_hash == trials[1].hash
        assert store.identity(waiting.run_id) == trials[1].identity
        assert "report.json" in store.artifact_names(waiting.run_id)
        locker.execute("ROLLBACK")
        locker.close()
        assert recording.flush(90)
    assert all(len(group) == 1 for group in store.attempts().values())
    assert all(
        s.run_id and not s.run_id.startswith("spool:")
        for group in store.attempts().values()
        for s in group
    )


def test_an_error_while_locked_is_one_line(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    from orchestrator.errors import StoreUnavailable
    from orchestrator.record.boundary import translated

    with (
        pytest.raises(StoreUnavailable, match="locked by another process") as caught,
        translated(store.where),
    ):
        raise sqlite3.OperationalError("database is locked")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["newer", "older", "garbage"])
def test_databases_of_another_kind(store: EmbeddedStore, kit: SimpleNamespace, how: str) -> None:
    if how == "garbage":
        store.database.write_bytes(b"this is not a database, it is a text file" * 100)
    else:
        kit.record_one(store, kit.trial_of(1))
        version = "ffffffffffff" if how == "newer" else "451aebb31d03"
        with sqlite3.connect(store.database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    fresh = open_store({"root": store.root})
    with pytest.raises(StoreError) as caught:
        fresh.backend()
    assert "\n" not in str(caught.value)
    assert str(store.root) in str(caught.value)
    assert caught.value.fix
    if how == "garbage":
        with pytest.raises(StoreError, match="is not a SQLite database"):
            fresh.attempts()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_root_is_refused_before_anything_runs(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    store.root.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        Recording(store, kit.plan_of([kit.trial_of(1)]))


def test_a_root_that_is_a_file_is_refused_before_anything_runs(
    tmp_path: Path, kit: SimpleNamespace
) -> None:
    (tmp_path / "mlruns").write_text("")
    with pytest.raises(StoreError) as caught:
        Recording(open_store({"root": tmp_path / "mlruns"}), kit.plan_of([kit.trial_of(1)]))
    assert "\n" not in str(caught.value)


def test_settings_that_name_no_store() -> None:
    with pytest.raises(ConfigError, match="unknown tracking"):
        open_store({"kind": "cloud"})
    for uri in ("", "file:///x", "localhost:5000", "http://"):
        with pytest.raises(ConfigError):
            open_store({"kind": "server", "uri": uri})


def test_a_report_that_cannot_be_stored_does_not_stop_the_others(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trials = [kit.trial_of(value) for value in range(2)]
    messages: list[str] = []
    with Recording(store, kit.plan_of(trials), message=messages.append) as recording:
        bad = kit.report_of(kit.spec_of(trials[0]), artifacts={"../../escape": b"x"})
        recording.finish(bad, trials[0])
        recording.finish(kit.report_of(kit.spec_of(trials[1])), trials[1])
        assert recording.flush(60)
    assert set(store.attempts()) == {trials[1].hash}
    assert any("leaves its directory" in text for text in messages)
    assert not list(store.root.parent.rglob("escape"))


def test_a_deleted_experiment_is_not_revived(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    first = kit.record_one(store, kit.trial_of(1))
    mlflow = client(store)
    mlflow.delete_experiment(mlflow.get_run(first).info.experiment_id)
    assert store.attempts() == {}
    second = kit.record_one(open_store({"root": store.root}), kit.trial_of(1))
    assert mlflow.get_experiment(mlflow.get_run(second).info.experiment_id).name == "quant (2)"


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
            recording.begin(spec, trial, kit.SLOT)
            recording.finish(kit.report_of(spec), trial)
        # Every result is on disk although the store has taken none.
        kit.wait_until(lambda: len(list(store.spool_root.rglob("*.finish"))) == 40)
        assert len(store.attempts()) == 40
        held.set()
    assert len(store.attempts()) == 40
    assert not list(store.spool_root.rglob("*.finish"))


def test_what_was_begun_and_never_finished_ends_with_the_sweep(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    recording = Recording(store, kit.plan_of([trial]))
    recording.begin(kit.spec_of(trial), trial, kit.SLOT)
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
        kit.wait_until(lambda: messages)
        with pytest.raises(StoreError, match="no space left on the disk"):
            recording.begin(kit.spec_of(trials[1]), trials[1], kit.SLOT)
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


def test_the_ui_is_pointed_at_the_store(store: EmbeddedStore, tmp_path: Path) -> None:
    arguments, environment = ui_arguments({"root": store.root}, "127.0.0.1", 5001)
    assert arguments[0] == "server"
    assert arguments[arguments.index("--backend-store-uri") + 1] == store.uri
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    with pytest.raises(StoreError, match="nothing is recorded here yet"):
        ui_arguments({"root": tmp_path / "empty"}, "127.0.0.1", 5001)
