"""Plans, attempts and reports to record; a store of the test's own."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot, Trial, Verdict
from orchestrator.measure.metric import Absent, Samples, Value
from orchestrator.plan.identity import config_hash
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.record import Recording, open_store
from orchestrator.record.database import sqlite_backend
from orchestrator.record.embedded import EmbeddedStore
from testing.servers import TrackingServer

SLOT = Slot("node-1", "host-1", (0, 1), ("GPU-aaaa", "GPU-bbbb"))


def identity_of(value: int, **task: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "task": {"name": "noop", "value": value, "sleep_s": 0.0, **task},
        "model": {"source": "packaged", "id": "smollm2_135m", "revision": None, "path": None},
        "quant": {"scheme": "nf4", "dtype": "bfloat16", "double_quant": True},
        "protocol": {"warmup": 1, "confidence": 0.95, "resamples": 200},
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }


def trial_of(value: int, **task: Any) -> Trial:
    identity = identity_of(value, **task)
    return Trial(config_hash(identity), identity, {"quant": "nf4", "task.value": value})


def plan_of(trials: list[Trial], sweep: str = "quant") -> Plan:
    axes = {"quant": ("nf4",), "task.value": tuple(str(i) for i in range(len(trials)))}
    return Plan(sweep, "Weights of four bits.", tuple(trials), Settings(), {"quant": "nf4"}, axes)


def spec_of(trial: Trial, number: int = 1, sweep: str = "quant") -> PlannedAttempt:
    return PlannedAttempt(trial, number, uuid.uuid4().hex, sweep)


def report_of(spec: PlannedAttempt, outcome: Outcome = Outcome.OK, **changes: Any) -> AttemptReport:
    now = time.time()
    report = spec.report(
        outcome,
        started_at=now - 2.0,
        ended_at=now,
        duration_s=2.0,
        metrics={
            "tpot_s": Samples("tpot_s", "s", (0.10, 0.11, 0.12, 0.13, 0.50), (0.9, 0.8), "ci"),
            "weights_bytes": Value("weights_bytes", "bytes", 123.0),
            "energy_j": Absent("energy_j", "J", "no GPU"),
        },
        telemetry={"decode.power_w": Value("power_w", "W", 250.0)},
        verdict=Verdict("valid"),
        slot=SLOT,
        provenance={"host": "host-1", "packages": {"torch": "2.13.0"}},
        artifacts={"log.txt": b"loaded\n", "plots/p.txt": b"x"},
    )
    return dataclasses.replace(report, **changes)


def record_one(
    store: EmbeddedStore,
    trial: Trial,
    outcome: Outcome = Outcome.OK,
    *,
    search_id: str | None = None,
    **changes: Any,
) -> str:
    """Record one finished attempt; returns its run id."""
    spec = spec_of(trial)
    with Recording(store, plan_of([trial]), search_id=search_id) as recording:
        recording.begin(spec, SLOT)
        recording.finish(report_of(spec, outcome, **changes), trial)
        assert recording.flush(60)
        run_id = recording._drainer.run_ids[spec.attempt_id]
    assert run_id is not None
    return run_id


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as MLflow makes it; its migrations take seconds, so tests copy it."""
    root = tmp_path_factory.mktemp("empty")
    made = sqlite_backend(root / "mlflow.db", root / "artifacts")
    made.experiment_ids()
    copy = root / "copy.db"
    with (
        closing(sqlite3.connect(root / "mlflow.db")) as source,
        closing(sqlite3.connect(copy)) as to,
    ):
        source.backup(to)
    return copy


@pytest.fixture
def fresh_store(tmp_path: Path) -> EmbeddedStore:
    """A store in which nothing was ever recorded."""
    found = open_store({"kind": "embedded", "root": str(tmp_path / "mlruns")})
    assert isinstance(found, EmbeddedStore)
    return found


@pytest.fixture
def store(fresh_store: EmbeddedStore, empty_database: Path) -> EmbeddedStore:
    """A store without runs whose database is there already."""
    fresh_store.root.mkdir(parents=True)
    shutil.copy(empty_database, fresh_store.database)
    return fresh_store


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[TrackingServer]:
    """A real tracking server on loopback."""
    directory = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, directory / "mlflow.db")
    running = TrackingServer(directory)
    yield running
    running.kill()


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The makers above, for tests (a conftest cannot be imported)."""
    return SimpleNamespace(
        SLOT=SLOT,
        identity_of=identity_of,
        trial_of=trial_of,
        plan_of=plan_of,
        spec_of=spec_of,
        report_of=report_of,
        record_one=record_one,
    )
