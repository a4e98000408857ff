"""One transaction writes what MLflow's own store would have written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import StoreError
from orchestrator.record.backend import Backend
from orchestrator.record.boundary import Rejected
from orchestrator.record.build import Builder
from orchestrator.record.embedded import EmbeddedStore
from orchestrator.record.runrecord import MetricPoint, RunRecord
from orchestrator.record.transaction import SqliteBackend, tables_are_known
from orchestrator.record.writer import Writer


@pytest.fixture
def record(kit: SimpleNamespace) -> RunRecord:
    """An attempt's record, with a history whose newest point is not its last."""
    trial = kit.trial_of(1)
    made = Builder("s" * 32, "quant", "driver").attempt_finish(
        kit.report_of(kit.spec_of(trial)), trial
    )
    history = [
        MetricPoint("history", float(v), 1_000 + v, step) for v, step in enumerate((0, 9, 3))
    ]
    return dataclasses.replace(made, metrics=(*made.metrics, *history))


@pytest.fixture
def backend(store: EmbeddedStore) -> SqliteBackend:
    made = store.backend()
    assert isinstance(made, SqliteBackend), "this MLflow's tables are known"
    return made


def seen(uri: str, run_id: str) -> dict[str, Any]:
    """A run as a person's own client reads it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    info = dict(run.info)
    artifact_uri = info.pop("artifact_uri")
    assert artifact_uri.endswith(f"/{run_id}/artifacts")
    assert info.pop("run_id") == info.pop("run_uuid", run_id) == run_id
    return {
        "info": info,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": run.data.tags,
        "history": {
            key: sorted(
                (m.value, m.timestamp, m.step) for m in client.get_metric_history(run_id, key)
            )
            for key in run.data.metrics
        },
        "files": sorted(file.path for file in client.list_artifacts(run_id)),
    }


def test_it_is_what_mlflow_would_have_written(
    store: EmbeddedStore, backend: SqliteBackend, record: RunRecord, empty_database: Path
) -> None:
    ours = seen(store.uri, Writer(backend).apply(record, "digest"))
    shutil.copy(empty_database, other := store.root / "other.db")
    plain = Backend(_mlflow_store(other, store), "other", "other", store.artifact_root)
    theirs = seen(f"sqlite:///{other}", Writer(plain).apply(record, "digest"))
    assert ours == theirs
    assert ours["info"]["status"] == "FINISHED"
    assert ours["metrics"]["history"] == 1.0, "the point of the highest step"
    assert len(ours["history"]["history"]) == 3


def _mlflow_store(database: Path, store: EmbeddedStore) -> Any:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(f"sqlite:///{database}", store.artifact_root.as_uri())


def test_written_again_nothing_changes(
    store: EmbeddedStore, backend: SqliteBackend, record: RunRecord
) -> None:
    run_id = Writer(backend).apply(record, "first")
    before = seen(store.uri, run_id)
    backend.finish(run_id, record, record.tags)
    assert seen(store.uri, run_id) == before


def test_a_run_is_whole_or_not_there(backend: SqliteBackend, record: RunRecord) -> None:
    writer = Writer(backend)
    bad = dataclasses.replace(record, params={**record.params, "not\nlegal": "x"})
    with pytest.raises(Rejected, match="is no name for MLflow"):
        writer.apply(bad, "digest")
    # Fails in the middle: what came before it in the transaction is gone too.
    torn = dataclasses.replace(record, tags={**record.tags, "torn": object()})  # type: ignore[dict-item]
    (run,) = backend.search("attributes.status = 'RUNNING'")
    with pytest.raises(StoreError, match="tracking store failed"):
        backend.finish(run.run_id, torn, torn.tags)
    assert backend.get_run(run.run_id).status == "RUNNING"


def test_a_deleted_run_stays_deleted(backend: SqliteBackend, record: RunRecord) -> None:
    running = dataclasses.replace(record, status="RUNNING")
    writer = Writer(backend)
    run_id = writer.apply(running, "begin")
    backend.delete_run(run_id)
    with pytest.raises(Rejected, match="was deleted"):
        writer.apply(record, "end")


def test_a_deleted_experiment_is_mlflows_to_refuse(
    backend: SqliteBackend, record: RunRecord
) -> None:
    experiment = backend.experiment("gone")
    backend._store.delete_experiment(experiment)
    with pytest.raises(Rejected, match="active"):
        backend.create_run(experiment, "name", 1, {})


def test_unknown_tables_are_left_to_mlflow(
    monkeypatch: pytest.MonkeyPatch, fresh_store: EmbeddedStore
) -> None:
    from mlflow.store.tracking.dbmodels import models
    from sqlalchemy import Column, Integer, MetaData, String, Table

    table = Table(
        "tags", MetaData(), Column("key", String), Column("value", String),
        Column("run_uuid", String), Column("demanded", Integer, nullable=False),
    )  # fmt: skip
    assert tables_are_known()
    monkeypatch.setattr(models, "SqlTag", SimpleNamespace(__table__=table))
    assert not tables_are_known()
