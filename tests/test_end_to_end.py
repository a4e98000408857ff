"""The main job as a person types it, on the packaged model, through Ray, read back from MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

# Two formats and short texts: what is proven here is the way of the data, not a figure.
SWEEP = (
    "+sweep=quant",
    "quant=fp32,nf4",
    "task.prompt_tokens=48",
    "task.new_tokens=6",
    "task.quality_tokens=64",
    "protocol.max_time_s=3",
    # What other programs do to the cores meanwhile is marked, and refuses nothing: rules that
    # refuse have tests of their own.
    "verdict=off",
)


@dataclass(frozen=True)
class Answer:
    """What one command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        return json.loads(self.out)


def orchestrator(directory: Path, *words: str) -> Answer:
    """``python -m orchestrator`` in ``directory``, as a person would."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HF_TOKEN": "hf_" + "planted" * 5, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("person")


@pytest.fixture(scope="module")
def first(place: Path) -> Answer:
    return orchestrator(place, *SWEEP, "--json")


def client(place: Path):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")


def runs_of(place: Path, sweep: str) -> Sequence:
    store = client(place)
    experiment = store.get_experiment_by_name(sweep)
    assert experiment is not None
    return store.search_runs([experiment.experiment_id])


def test_every_trial_is_measured(first: Answer) -> None:
    assert first.code == 0, first.err
    assert first.json["outcomes"] == {"ok": 2}
    assert first.json["cached"] == 0
    assert all(len(trial["hash"]) == 64 for trial in first.json["trials"])


def test_nothing_of_a_library_reaches_the_terminal(first: Answer) -> None:
    lines = [line for line in first.err.splitlines() if line.strip()]
    # The third is said on a CPU without instructions for bfloat16.
    ours = ("quant:", "[", "1 trial in half precision", "…", "waiting for cores")
    assert all(line.startswith(ours) for line in lines), first.err


def test_mlflow_holds_it_all(place: Path, first: Answer) -> None:
    runs = runs_of(place, "quant")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    attempts = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len(parents) == 1
    assert "quant" in parents[0].data.tags["mlflow.note.content"]
    assert {run.info.run_id for run in attempts} == {t["run_id"] for t in first.json["trials"]}
    for run in attempts:
        tags, metrics = run.data.tags, run.data.metrics
        assert tags["outcome"] == "ok"
        assert tags["verdict"] in ("valid", "flagged")
        assert tags["config_hash"] in {trial["hash"] for trial in first.json["trials"]}
        assert metrics["tpot_s.ci_low"] <= metrics["tpot_s"] <= metrics["tpot_s.ci_high"]
        assert metrics["ttft_s"] > 0
        assert metrics["perplexity"] > 1
        assert run.data.params["task.prompt_tokens"] == "48"
        names = {file.path for file in client(place).list_artifacts(run.info.run_id)}
        assert {"config.yaml", "samples.parquet", "report.json", "log.txt"} <= names
    by_quant = {run.data.params["quant.scheme"]: run.data.metrics for run in attempts}
    assert by_quant["nf4"]["weights_bytes"] < by_quant["none"]["weights_bytes"]
    assert by_quant["none"]["kl_to_reference"] == pytest.approx(0.0, abs=1e-9)
    assert by_quant["nf4"]["kl_to_reference"] > 0


def test_samples_give_the_median(place: Path, first: Answer) -> None:
    import statistics

    import pyarrow.parquet as parquet

    run_id = first.json["trials"][0]["run_id"]
    path = client(place).download_artifacts(run_id, "samples.parquet", str(place))
    rows = parquet.read_table(path).to_pylist()
    values = [r["value"] for r in rows if r["metric"] == "tpot_s" and r["role"] == "measured"]
    recorded = client(place).get_run(run_id).data.metrics
    assert len(values) == recorded["tpot_s.n"] >= 5
    assert statistics.median(values) == pytest.approx(recorded["tpot_s"])


def test_the_same_again_runs_nothing(place: Path, first: Answer) -> None:
    again = orchestrator(place, *SWEEP, "--json")
    assert again.code == 0, again.err
    assert again.json["cached"] == 2
    assert again.json["trials"] == []
    assert "nothing left to do" in again.err
    planned = orchestrator(place, "plan", *SWEEP, "--json").json
    assert [trial["state"] for trial in planned["trials"]] == ["cached", "cached"]


def test_show_says_what_was_measured(place: Path, first: Answer) -> None:
    config_hash = first.json["trials"][0]["hash"]
    shown = orchestrator(place, "show", config_hash[:12], "--json").json
    assert shown["hash"] == config_hash
    (attempt,) = shown["attempts"]
    assert attempt["outcome"] == "ok"
    assert attempt["metrics"]["tpot_s"]["unit"] == "s"
    assert attempt["metrics"]["tpot_s"]["n"] >= 5


def test_reproduce_adds_an_attempt_and_compares(place: Path, first: Answer) -> None:
    config_hash = first.json["trials"][0]["hash"]
    done = orchestrator(place, "reproduce", config_hash[:12])
    assert done.code == 0, done.err
    assert "TPOT" in done.out
    shown = orchestrator(place, "show", config_hash, "--json").json
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["ok", "ok"]


def test_no_secret_is_kept(place: Path, first: Answer) -> None:
    planted = b"hf_" + b"planted" * 5
    kept = [path for path in (place / "mlruns").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if planted in path.read_bytes()]


def test_nothing_is_left_running(place: Path, first: Answer) -> None:
    mine = str(place)
    left = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        if process.info["pid"] != os.getpid() and process.info["cwd"] == mine:
            left.append(process.info["cmdline"])
    assert left == []
