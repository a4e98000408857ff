"""The main job as a person types it, on the packaged model, through Ray, read back from MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.commands import orchestrator
from testing.near import near
from testing.person import SWEEP, Swept

pytestmark = pytest.mark.xdist_group("swept")


def client(place: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")


def runs_of(place: Path, sweep: str) -> Sequence:
    store = client(place)
    experiment = store.get_experiment_by_name(sweep)
    assert experiment is not None
    return store.search_runs([experiment.experiment_id])


def test_every_trial_is_measured(swept: Swept) -> None:
    assert swept.json["outcomes"] == {"ok": 2}
    assert swept.json["cached"] == 0
    assert all(len(trial["hash"]) == 64 for trial in swept.json["trials"])


def test_nothing_of_a_library_reaches_the_terminal(swept: Swept) -> None:
    lines = [line for line in swept.err.splitlines() if line.strip()]
    ours = ("quant:", "[", "…", "waiting for cores")
    assert all(line.startswith(ours) for line in lines), swept.err


def test_mlflow_holds_it_all(swept: Swept) -> None:
    runs = runs_of(swept.place, "quant")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    attempts = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len(parents) == 1
    assert "quant" in parents[0].data.tags["mlflow.note.content"]
    assert {run.info.run_id for run in attempts} == {t["run_id"] for t in swept.json["trials"]}
    for run in attempts:
        tags, metrics = run.data.tags, run.data.metrics
        assert tags["outcome"] == "ok"
        assert tags["verdict"] in ("valid", "flagged")
        assert tags["config_hash"] in {trial["hash"] for trial in swept.json["trials"]}
        assert metrics["tpot_s.ci_low"] <= metrics["tpot_s"] <= metrics["tpot_s.ci_high"]
        assert metrics["ttft_s"] > 0
        assert metrics["perplexity"] > 1
        assert run.data.params["task.prompt_tokens"] == "48"
        names = {file.path for file in client(swept.place).list_artifacts(run.info.run_id)}
        assert {"config.yaml", "samples.parquet", "report.json", "log.txt"} <= names
    by_quant = {run.data.params["quant.scheme"]: run.data.metrics for run in attempts}
    assert by_quant["nf4"]["weights_bytes"] < by_quant["none"]["weights_bytes"]
    assert by_quant["none"]["kl_to_reference"] == pytest.approx(0.0, abs=1e-9)
    # What the model was trained to do: far better than chance (49,152), far from certain.
    assert 2 < by_quant["none"]["perplexity"] < 200
    # Embeddings stay in float32.
    assert 9 < by_quant["nf4"]["weights_bits_per_parameter"] < 11
    assert 0.01 < by_quant["nf4"]["kl_to_reference"] < 1
    assert 0.5 < by_quant["nf4"]["top1_agreement"] < 1


def test_samples_give_the_median(swept: Swept) -> None:
    import statistics

    import pyarrow.parquet as parquet

    run_id = swept.json["trials"][0]["run_id"]
    path = client(swept.place).download_artifacts(run_id, "samples.parquet", str(swept.place))
    rows = parquet.read_table(path).to_pylist()
    values = [r["value"] for r in rows if r["metric"] == "tpot_s" and r["role"] == "measured"]
    recorded = client(swept.place).get_run(run_id).data.metrics
    assert len(values) == recorded["tpot_s.n"] >= 5
    assert statistics.median(values) == pytest.approx(recorded["tpot_s"])


def test_the_same_again_runs_nothing(swept: Swept) -> None:
    again = orchestrator(swept.place, *SWEEP, "--json")
    assert again.code == 0, again.err
    assert again.json["cached"] == 2
    assert again.json["trials"] == []
    assert "nothing left to do" in again.err
    table = orchestrator(swept.place, *SWEEP).out
    assert "×" in table
    assert "no ratios" not in table
    planned = orchestrator(swept.place, "plan", *SWEEP, "--json").json
    assert [trial["state"] for trial in planned["trials"]] == ["cached", "cached"]


def test_show_says_what_was_measured(swept: Swept) -> None:
    config_hash = swept.json["trials"][0]["hash"]
    shown = orchestrator(swept.place, "show", config_hash[:12], "--json").json
    assert shown["hash"] == config_hash
    (attempt,) = shown["attempts"]
    assert attempt["outcome"] == "ok"
    assert attempt["metrics"]["tpot_s"]["unit"] == "s"
    assert attempt["metrics"]["tpot_s"]["n"] >= 5


def test_reproduce_adds_an_attempt_and_compares(swept: Swept, tmp_path: Path) -> None:
    place = swept.copied(tmp_path)
    config_hash = swept.json["trials"][0]["hash"]
    with near():
        done = orchestrator(place, "reproduce", config_hash[:12], "verdict=off")
    assert done.code == 0, done.err
    assert "TPOT" in done.out
    shown = orchestrator(place, "show", config_hash, "--json").json
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["ok", "ok"]


def test_nothing_is_left_running(swept: Swept) -> None:
    mine = str(swept.place)
    left = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        if process.info["pid"] != os.getpid() and process.info["cwd"] == mine:
            left.append(process.info["cmdline"])
    assert left == []
