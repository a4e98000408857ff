"""Recording into real SQLite through real MLflow, and reading it back without MLflow."""

from __future__ import annotations

import getpass
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.attempt import Outcome, RuleResult, Verdict
from orchestrator.conditions import Conditions
from orchestrator.errors import StoreError, UsageError
from orchestrator.measure.metric import MetricSpec
from orchestrator.record import Recording, open_store, reap, sync
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.params import flatten
from orchestrator.record.replay import replay
from orchestrator.record.selection import select


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
        store, kit.plan_of([trial]), todo=1, command=["python", "-m", "orchestrator"]
    )
    recording.begin(spec, kit.SLOT)
    assert recording.flush(60)
    run_id = recording._drainer.run_ids[spec.attempt_id]
    # Visible RUNNING while it runs, under its name, with its configuration.
    running = client(store).get_run(run_id)
    assert running.info.status == "RUNNING"
    assert running.info.run_name == "nf4 · value=7 · a1"
    assert yaml.safe_load(store.artifact(run_id, "config.yaml")) == trial.identity
    assert store.attempts([trial.hash])[trial.hash][0].outcome is None

    report = kit.report_of(
        spec,
        verdict=Verdict("flagged", (RuleResult("power_cap", "flagged", 1.0, 0.0, "capped"),)),
        facts={"hardware": {"gpus": [{"name": "NVIDIA H100"}, {"name": "NVIDIA H100"}]}},
        specs={"loudness": MetricSpec("loudness", "dB", "higher", True, "how loud", "at 1 m")},
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
    assert metrics["system/phases/decode.power_w"] == 250
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
        "gpu": "NVIDIA H100",
        "gpu_uuids": "GPU-aaaa,GPU-bbbb",
        "task": "noop",
        "model": "smollm2_135m",
        "quant": "nf4",
        "simulated": "false",
        "mlflow.parentRunId": summary.run_id,
        "driver_id": recording.driver_id,
    }.items() <= tags.items()
    assert len(tags["git_commit"]) == 40
    assert tags["mlflow.user"] == getpass.getuser()
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
    assert loaded.specs == report.specs
    assert loaded.verdict == report.verdict
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
        recording.begin(spec, kit.SLOT)
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


def test_a_tag_that_somebody_made_no_outcome_is_named(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    run_id = kit.record_one(store, kit.trial_of(1))
    store.backend().tag(run_id, {"outcome": "good"})
    with pytest.raises(StoreError, match=f"run {run_id}: its tag outcome is 'good'. Set it in"):
        store.attempts()


def test_an_attempt_without_report_says_so(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trial = kit.trial_of(1)
    run_id = kit.record_one(store, trial)
    path = next(store.artifact_root.rglob("report.json"))
    path.write_text(path.read_text()[:50])
    with pytest.raises(StoreError, match="cannot be read"):
        store.load(run_id)
    path.unlink()
    with pytest.raises(StoreError, match=r"has no report\.json. Unless it still runs"):
        store.load(run_id)
    with pytest.raises(StoreError, match="no run"):
        store.load("0" * 32)
    with pytest.raises(StoreError, match="leaves its directory"):
        store.artifact(run_id, "../../../mlflow.db")


def test_a_deleted_experiment_is_not_revived(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    first = kit.record_one(store, kit.trial_of(1))
    mlflow = client(store)
    mlflow.delete_experiment(mlflow.get_run(first).info.experiment_id)
    assert store.attempts() == {}
    second = kit.record_one(open_store({"root": store.root}), kit.trial_of(1))
    assert mlflow.get_experiment(mlflow.get_run(second).info.experiment_id).name == "quant (2)"


def test_a_sweep_by_name_is_the_newest_software_of_each_trial(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    def record(value: int, torch: str, machine: str = "a") -> None:
        conditions = Conditions({"cpu": machine}, {"torch": torch}, {})
        kit.record_one(store, kit.trial_of(value), conditions=conditions)

    for value, torch in ((1, "1"), (2, "1"), (1, "2"), (1, "2")):
        record(value, torch)
    record(1, "1", "b")

    def found(word: str) -> list[tuple[int, str, str]]:
        return sorted(
            (
                selected.configs[config]["task"]["value"],
                report.conditions.software["torch"],
                report.conditions.machine["cpu"],
            )
            for selected in [select(store, word)]
            for config, reports in selected.attempts.items()
            for report in reports
        )

    assert found("quant") == [(1, "1", "b"), (1, "2", "a"), (1, "2", "a"), (2, "1", "a")]
    assert len(found(kit.trial_of(1).hash)) == 4


def test_newest_is_what_was_made_last_whatever_a_clock_says(
    store: EmbeddedStore, kit: SimpleNamespace
) -> None:
    trial = kit.trial_of(1)
    tomorrow = time.time() + 86_400
    with Recording(store, kit.plan_of([trial])) as recording:
        # The first on a node whose clock is a day ahead.
        for number, (torch, at) in enumerate((("1", tomorrow), ("2", time.time())), start=1):
            spec = kit.spec_of(trial, number)
            conditions = Conditions({"cpu": "a"}, {"torch": torch}, {})
            report = kit.report_of(spec, conditions=conditions, started_at=at, ended_at=at + 1)
            recording.finish(report, trial)
        assert recording.flush(60)
    assert [summary.number for summary in store.attempts()[trial.hash]] == [1, 2]
    with closing(sqlite3.connect(store.database)) as connection, connection:
        dated = "UPDATE runs SET start_time = ? WHERE run_uuid = ?"
        connection.execute(dated, (round(tomorrow * 1000), recording.run_id))
    with Recording(store, kit.plan_of([kit.trial_of(2)])):
        pass
    # The first run, too: its plan is not the one that was typed last.
    assert [run.number for run in store.sweep_runs("quant")] == [2, 1]
    assert [trial.hash for trial in replay(store, "quant").plan.trials] == [kit.trial_of(2).hash]
    ((newest,),) = select(store, "quant").attempts.values()
    assert newest.conditions is not None
    assert newest.conditions.software == {"torch": "2"}


def test_a_sweep_whose_name_has_an_at_is_found(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    trial = kit.trial_of(1)
    spec = kit.spec_of(trial, sweep="night@2")
    with Recording(store, kit.plan_of([trial], "night@2")) as recording:
        recording.begin(spec, kit.SLOT)
        recording.finish(kit.report_of(spec), trial)
        assert recording.flush(60)
    for word in ("night@2", "night@2@-1"):
        assert list(select(store, word).attempts) == [trial.hash]


def test_the_steps_of_a_search_are_one_run(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    for value, search_id in ((1, None), (2, "a"), (3, "a"), (4, "b"), (5, None)):
        kit.record_one(store, kit.trial_of(value), search_id=search_id)

    def values(word: str) -> list[int]:
        return sorted(each["task"]["value"] for each in select(store, word).configs.values())

    assert [values(f"quant@-{n}") for n in (1, 2, 3, 4)] == [[5], [4], [2, 3], [1]]
    assert values("quant@2") == [2, 3]
    with pytest.raises(UsageError, match="has 4 runs, not 5"):
        select(store, "quant@-5")
