"""A real tracking server on loopback, which goes away and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.errors import StoreUnavailable
from orchestrator.record import Recording, reap, sync
from orchestrator.record.tracking_server import ServerStore
from testing.servers import TrackingServer
from testing.waiting import until


@pytest.fixture
def server_store(server: TrackingServer, tmp_path: Path) -> ServerStore:
    return ServerStore(server.uri, state=tmp_path / "state")


def test_the_whole_way(
    server_store: ServerStore, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.record.tracking_server.FEW_HASHES", 3)
    store = server_store
    trials = [kit.trial_of(value) for value in range(100, 105)]
    with Recording(store, kit.plan_of(trials, "whole")) as recording:
        for trial in trials:
            spec = kit.spec_of(trial, sweep="whole")
            recording.begin(spec, kit.SLOT)
            recording.finish(kit.report_of(spec), trial)
        assert recording.flush(120)
        assert reap(store).attempts == 0
    every = store.attempts()
    assert {t.hash for t in trials} <= set(every)
    # Few hashes are asked for one by one, many at once: the same answer.
    few = store.attempts([t.hash for t in trials[:3]])
    many = store.attempts([t.hash for t in trials])
    assert len(many) == 5
    assert few == {t.hash: many[t.hash] for t in trials[:3]}
    assert store.resolve(trials[0].hash[:12]) == trials[0].hash
    assert store.find("0" * 12) == []
    (attempt,) = few[trials[0].hash]
    assert (attempt.outcome, attempt.status, attempt.sweep) == ("ok", "FINISHED", "whole")
    assert store.load(attempt.run_id).metrics["tpot_s"].values[0] == 0.10
    assert store.identity(attempt.run_id) == trials[0].identity
    assert "plots/p.txt" in store.artifact_names(attempt.run_id)
    with pytest.raises(FileNotFoundError):
        store.artifact(attempt.run_id, "nothing.txt")
    (run,) = store.sweep_runs("whole")
    assert run.status == "FINISHED"
    assert len(store.plan(run.run_id)["trials"]) == 5
    assert store.running() == []


def test_the_server_goes_away(
    server: TrackingServer, server_store: ServerStore, kit: SimpleNamespace
) -> None:
    store = server_store
    trials = [kit.trial_of(value) for value in range(200, 204)]
    messages: list[str] = []
    recording = Recording(store, kit.plan_of(trials, "middle"), message=messages.append)
    recording.finish(kit.report_of(kit.spec_of(trials[0], sweep="middle")), trials[0])
    assert recording.flush(60)

    server.kill()
    for trial in trials[1:]:
        spec = kit.spec_of(trial, sweep="middle")
        recording.begin(spec, kit.SLOT)
        recording.finish(kit.report_of(spec), trial)
    until(lambda: messages)
    assert server.uri in messages[0]
    assert "does not answer" in messages[0]
    assert not recording.flush(0.5)
    with pytest.raises(StoreUnavailable) as caught:
        store.attempts()
    assert "\n" not in str(caught.value)

    # Another sweep begins and ends while it is away.
    others = [kit.trial_of(value) for value in range(300, 302)]
    away = Recording(store, kit.plan_of(others, "away"), patience_s=0.5)
    for trial in others:
        spec = kit.spec_of(trial, sweep="away")
        away.begin(spec, kit.SLOT)
        away.finish(kit.report_of(spec), trial)
    summary = away.close()
    assert (summary.run_id, summary.recorded, summary.waiting) == (None, 0, 2)
    assert any("orchestrator sync" in line for line in summary.problems)
    with pytest.raises(StoreUnavailable):
        sync(store)
    assert len(list((store.spool_root / away.sweep_id).glob("*.finish"))) == 2

    server.start()
    assert recording.flush(120)
    summary = recording.close()
    assert (summary.recorded, summary.waiting) == (4, 0)
    assert sync(store).written == 2
    assert sync(store).written == 0
    found = store.attempts([t.hash for t in (*trials, *others)])
    assert {key: [s.outcome for s in group] for key, group in found.items()} == {
        t.hash: ["ok"] for t in (*trials, *others)
    }
    for group in found.values():
        history = store.backend()._store.get_metric_history(group[0].run_id, "tpot_s")
        assert len(list(history)) == 1
    (run,) = store.sweep_runs("away")
    assert run.status == "FINISHED"
    assert store.plan(run.run_id)["sweep"] == "away"
    rows = list(store.backend().search("tags.sweep = 'away'"))
    assert {r.tags.get("mlflow.parentRunId") for r in rows} == {None, run.run_id}


def test_credentials_in_the_address_are_never_shown(tmp_path: Path) -> None:
    store = ServerStore("http://me:planted-pw@127.0.0.1:9", state=tmp_path)
    assert "planted-pw" not in store.where
    assert "planted-pw" not in str(store.spool_root)
    with pytest.raises(StoreUnavailable) as caught:
        store.attempts()
    assert "planted-pw" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_plan_json_is_readable(server_store: ServerStore, kit: SimpleNamespace) -> None:
    with Recording(server_store, kit.plan_of([kit.trial_of(400)], "plan")):
        pass
    (run,) = server_store.sweep_runs("plan")
    assert json.loads(server_store.artifact(run.run_id, "plan.json"))["baseline"] == {
        "quant": "nf4"
    }
