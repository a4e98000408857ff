"""What commands read of recorded attempts: once, as their tags judge them, and what is left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.commands.run import carry_out
from orchestrator.conditions import Conditions
from orchestrator.errors import StoreError
from orchestrator.plan.schema import Settings, TrackingConfig, VerdictConfig
from orchestrator.record import Recording
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.over_time import trials_over_time
from orchestrator.record.replay import replay
from orchestrator.record.selection import select
from orchestrator.record.store import Store
from orchestrator.record.summaries import MARKED
from orchestrator.record.tidy import results
from orchestrator.report import build_table
from orchestrator.schedule.todo import compute_todo
from testing.commands import orchestrator
from testing.near import near


def recorded(store: EmbeddedStore, kit: SimpleNamespace, values: list[int]) -> list[str]:
    """The runs of one attempt of each of these trials, made in one sweep."""
    trials = [kit.trial_of(value) for value in values]
    specs = [kit.spec_of(trial) for trial in trials]
    with Recording(store, kit.plan_of(trials)) as recording:
        for spec in specs:
            recording.begin(spec, kit.SLOT)
            report = kit.report_of(spec, conditions=Conditions({"cpu": "a"}, {"torch": "1"}, {}))
            recording.finish(report, spec.trial)
        assert recording.flush(60)
        run_ids = recording._drainer.run_ids
    return [run_ids[spec.attempt_id] for spec in specs]


def test_a_report_is_read_from_the_store_once() -> None:
    asked: list[str] = []

    def load_all(attempts: Any) -> dict[str, str]:
        ids = [attempt.run_id for attempt in attempts]
        asked.extend(ids)
        return {run_id: f"report of {run_id}" for run_id in ids}

    store: Any = SimpleNamespace(load_all=load_all)
    ended, running = (
        SimpleNamespace(run_id=run_id, outcome=outcome)
        for run_id, outcome in (("1", "ok"), ("2", None))
    )
    loaded: dict[str, Any] = {}
    attempts: Any = {"a": [ended, running]}
    assert Store.reports(store, attempts, loaded) == {"a": ["report of 1"]}
    later: Any = {"a": [ended], "b": [SimpleNamespace(run_id="3", outcome="crashed")]}
    assert Store.reports(store, later, loaded) == {"a": ["report of 1"], "b": ["report of 3"]}
    assert asked == ["1", "3"]


@pytest.mark.parametrize("gone", ["report.json", "."])
def test_an_attempt_whose_files_are_gone_is_one_line_and_the_rest_is_shown(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path, gone: str
) -> None:
    lost, _ = recorded(store, kit, [0, 1])
    path = store.artifact_root / lost / "artifacts" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    answer = orchestrator(tmp_path, "report", "quant", "--json", f"tracking.root={store.root}")
    assert answer.code == 0
    (line,) = [line for line in answer.err.splitlines() if "report.json" in line]
    assert line.startswith("left out: ")
    assert lost in line
    assert [row["outcome"] for row in answer.json["trials"]].count("ok") == 1
    # The other readers of whole reports, too.
    assert list(select(store, "quant").attempts) == [kit.trial_of(1).hash]
    told = results("quant", tracking=store.root, samples=True).table.to_pylist()
    assert {row["metric"] for row in told if row["run_id"] == lost} == {None}
    hidden = orchestrator(tmp_path, "show", kit.trial_of(0).hash, f"tracking.root={store.root}")
    assert hidden.code == 2
    assert "can be read any more" in hidden.err


def test_a_report_is_of_the_plan_that_was_typed_last(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(store, kit, [0, 1])
    recorded(store, kit, [2])
    tracking = TrackingConfig(kind="embedded", root=str(store.root))

    def type_again(values: list[int]) -> int:
        """How many runs there are once a sweep was run whose trials are all recorded."""
        plan = kit.plan_of([kit.trial_of(value) for value in values])
        # What is recorded here knows nothing of this machine.
        assert carry_out(replace(plan, settings=Settings(tracking=tracking, reuse="hash"))) == 0
        assert "nothing left to do" in capsys.readouterr().err
        assert {t.hash for t in replay(store, "quant").plan.trials} == {t.hash for t in plan.trials}
        return len(store.sweep_runs("quant"))

    assert type_again([2]) == 2
    assert type_again([0, 1]) == 3
    assert type_again([0, 1]) == 3
    assert type_again([1, 0]) == 4
    (newest, *_) = store.sweep_runs("quant")
    assert newest.status == "FINISHED"
    assert "report.html" in store.files(newest.run_id)
    # Positions are of runs that measured something.
    assert list(select(store, "quant@-1").attempts) == [kit.trial_of(2).hash]


def test_a_persons_verdict_counts_everywhere(store: EmbeddedStore, kit: SimpleNamespace) -> None:
    refused, kept = recorded(store, kit, [0, 1])
    store.backend().tag(refused, {"verdict": "invalid"})
    found = replay(store, "quant")
    rows = build_table(found.plan, found.attempts).rows
    assert [row.outcome for row in rows] == ["invalid", "ok"]
    assert rows[0].reason == MARKED
    # It is missing, and is measured again.
    settings = Settings(verdict=VerdictConfig(retries=1))
    todo = compute_todo(found.plan.trials, store.attempts(), settings)
    assert [attempt.trial.hash for attempt in todo.attempts] == [kit.trial_of(0).hash]
    valid, left_out = trials_over_time(store, "quant")
    assert [trial.newest.run_id for trial in valid] == [kept]
    assert left_out == {"invalid": 1}
    told = results("quant", tracking=store.root).table.to_pylist()
    assert {row["run_id"]: row["verdict"] for row in told} == {refused: "invalid", kept: "valid"}
    store.backend().tag(refused, {"verdict": "fine"})
    with pytest.raises(StoreError, match=r"tag verdict is 'fine'\. Set it in MLflow to one of"):
        store.attempts()


def test_a_sweep_whose_report_cannot_be_made_has_not_failed(
    store: EmbeddedStore, kit: SimpleNamespace, tmp_path: Path
) -> None:
    (other,) = recorded(store, kit, [0])
    # Read for the noise of this hardware, once all is measured.
    store.backend().tag(other, {"outcome": "fine"})
    root = f"tracking.root={store.root}"
    with near():
        answer = orchestrator(
            tmp_path, "task=noop", "device=cpu", "verdict=off", "sweep.name=mine", root
        )
    assert "its tag outcome is 'fine'" in answer.err
    assert "its run has no report: see `report mine`" in answer.err
    (run,) = store.sweep_runs("mine")
    assert run.status == "FINISHED"
    store.backend().tag(other, {"outcome": "ok"})
    assert orchestrator(tmp_path, "report", "mine", "--json", root).code == 0
