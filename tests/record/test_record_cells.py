"""Pure sweeps: evaluated in one process, recorded as one run with a table, shown as a slice."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from pyarrow import csv

from orchestrator.commands.computing import Computing
from orchestrator.commands.measuring import Measuring
from orchestrator.commands.run import carry_out, executors
from orchestrator.errors import UsageError
from orchestrator.measure.registry import find_task
from orchestrator.plan.expand import build
from orchestrator.record import cells, open_store
from orchestrator.record.cells import CSV, PARQUET
from orchestrator.record.replay import replay
from orchestrator.report.show.cells_view import MOST_SHOWN, cells_view
from orchestrator.schedule import evaluate
from orchestrator.schedule.evaluate import compute

AXES = [
    "task=estimate",
    "device=cpu",
    "model=known/llama_7b,known/llama_2_70b",
    "quant=fp16",
    "task.hardware=a100,h200",
    "task.prompt_tokens=512,4096",
]


def plan_of(*words: str) -> Any:
    return build(list(words), device_kind=lambda cluster: "cpu")


def computed(plan: Any) -> Any:
    return cells.table(
        plan.trials, plan.axes, {trial.hash: compute(trial) for trial in plan.trials}
    )


def test_a_plan_is_split_by_what_its_tasks_are(tmp_path: Path) -> None:
    def kinds(*words: str) -> list[tuple[type, list[str]]]:
        plan = plan_of(*words, f"tracking.root={tmp_path}")
        store = open_store(plan.settings.tracking)
        names = {trial.hash: trial.identity["task"]["name"] for trial in plan.trials}
        return [
            (type(executor), [names[config_hash] for config_hash in executor.todo().states])
            for executor in executors(plan, store)
        ]

    assert kinds(*AXES) == [(Computing, ["estimate"] * 8)]
    assert kinds("task=noop") == [(Measuring, ["noop"])]
    both = kinds("task=noop,estimate", "model=known/llama_7b", "device=cpu")
    assert both == [(Computing, ["estimate"]), (Measuring, ["noop"])]


def test_every_cell_is_a_row_with_its_hash_and_axes() -> None:
    plan = plan_of(*AXES)
    found = computed(plan)
    assert found.num_rows == len(plan.trials) == 8
    assert found.column("hash").to_pylist() == [trial.hash for trial in plan.trials]
    rows = found.to_pylist()
    for row, trial in zip(rows, plan.trials, strict=True):
        assert {axis: row[axis] for axis in plan.axes} == trial.axes
    outcomes = [row["outcome"] for row in rows]
    # LLaMA sees 2,048 tokens; 70B in half precision needs more than an A100 has.
    assert outcomes == ["ok", "infeasible"] * 2 + ["infeasible", "infeasible", "ok", "infeasible"]
    for row in rows:
        assert (row["reason"] is None) == (row["outcome"] == "ok")
        assert (row["tpot_s"] is None) == (row["outcome"] != "ok")
    assert found.schema.field("tpot_s").metadata[b"unit"] == b"s"


def test_a_cell_that_breaks_takes_no_other_along(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("estimate")

    def broken(identity: Any) -> Any:
        if identity["task"]["hardware"] == "h200":
            raise ZeroDivisionError("division by zero")
        assert task.evaluate is not None
        return task.evaluate(identity)

    changed = dataclasses.replace(task, evaluate=broken)
    monkeypatch.setattr(evaluate, "find_task", lambda name: changed)
    found = computed(plan_of(*AXES[:-1]))
    assert found.column("outcome").to_pylist() == ["ok", "error", "infeasible", "error"]
    assert "ZeroDivisionError" in found.column("reason").to_pylist()[1]


def test_a_person_sees_a_slice_of_a_large_table() -> None:
    from rich.console import Console

    plan = plan_of(*AXES[:-1], "task.prompt_tokens=range(1,50)")
    assert len(plan.trials) > MOST_SHOWN
    out = io.StringIO()
    Console(file=out, width=120).print(cells_view(plan, computed(plan)))
    text = out.getvalue()
    assert "4 of 196 cells: task.prompt_tokens=1" in text
    assert text.count("known/llama_7b") == 2


def test_one_run_with_one_table_is_recorded_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from orchestrator.commands.plan import plan_command
    from orchestrator.commands.reproduce import reproduce_command
    from orchestrator.commands.show import show_command

    root = f"tracking.root={tmp_path}"
    plan = plan_of(*AXES, root)
    store = open_store(plan.settings.tracking)

    def run(plan: Any) -> dict[str, Any]:
        assert carry_out(plan, as_json=True) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    told = run(plan)
    assert told["outcomes"] == {"ok": 3, "infeasible": 5}
    assert told["cached"] == 0
    assert {trial["run_id"] for trial in told["trials"]} == {told["run_id"]}
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name(plan.sweep)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [told["run_id"]]
    assert runs[0].info.status == "FINISHED"
    held = client.download_artifacts(told["run_id"], PARQUET, str(tmp_path))
    table = parquet.read_table(held)
    assert table.column("hash").to_pylist() == [trial.hash for trial in plan.trials]
    text = csv.read_csv(client.download_artifacts(told["run_id"], CSV, str(tmp_path)))
    assert text.num_rows == 8
    assert "config" not in text.column_names
    assert "8 cells computed" in runs[0].data.tags["mlflow.note.content"]

    # Again: nothing is left to do, and everything is told all the same.
    again = run(plan)
    assert {**again, "wall_s": 0} == {**told, "cached": 8, "wall_s": 0}
    assert plan_command([*AXES, root, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    states = [trial["state"] for trial in planned["trials"]]
    assert states == ["cached", "infeasible"] * 2 + ["infeasible", "infeasible", "cached"] + [
        "infeasible"
    ]

    # Of a larger sweep only what is new is computed; one run holds all of it.
    larger = run(plan_of(*AXES[:-1], "task.prompt_tokens=512,1024", root))
    assert larger["cached"] == 4
    assert len({trial["run_id"] for trial in larger["trials"]}) == 2
    assert len(store.sweep_runs()) == 2

    # Each cell by its hash: shown, and computed once more.
    one = plan.trials[0]
    assert show_command(one.hash[:12], [root], True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == one.identity
    assert shown["attempts"][0]["metrics"]["tpot_s"]["value"] == told["cells"][0]["tpot_s"]
    assert shown["attempts"][0]["outcome"] == "ok"
    *_, found = cells.find(store, one.hash)[one.hash]
    assert found.report.specs["longest_context_tokens"].better == "higher"
    assert found.report.specs["tpot_s"].title == "TPOT"
    assert show_command(plan.trials[1].hash, [root], False) == 0
    assert "model's context of 2048" in " ".join(capsys.readouterr().out.split())
    assert reproduce_command(one.hash[:12], [root], False) == 0
    assert "as recorded: all 19 figures are the same" in capsys.readouterr().out
    assert len(store.sweep_runs()) == 3

    # There are no attempts to make a report of; where the table is stands in the message.
    with pytest.raises(UsageError, match=f"cells.csv of run {larger['run_id']}"):
        replay(store, plan.sweep)

    # With other formulas or figures, what is recorded does not count any more.
    other: dict[str, str | None] = {"formulas": "another"}
    changed = dataclasses.replace(find_task("estimate"), content=lambda identity: other)
    monkeypatch.setattr(cells, "find_task", lambda name: changed)
    assert run(plan)["cached"] == 0
    assert run(plan)["cached"] > 0
    other["formulas"] = None  # what is unknown equals nothing
    assert run(plan)["cached"] == 0
    assert run(plan)["cached"] == 0


def test_a_hash_that_nobody_knows(tmp_path: Path) -> None:
    from orchestrator.commands.show import show_command

    with pytest.raises(UsageError, match="no attempt of 0123456789ab is recorded"):
        show_command("0123456789ab", [f"tracking.root={tmp_path}"], False)
