"""Writes a whole run into MLflow's own SQLite tables in one transaction.

MLflow's store makes five transactions and some forty statements of a run, through its object
mapper: 20 to 30 ms of a core that may be measuring something. The same rows in one transaction take
a tenth, and a run then appears in its terminal state with all it has, or not at all. Tables and
columns are MLflow's own definitions; where they are not as known here, MLflow's store does it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.record.backend import Backend, RunRow
from orchestrator.record.boundary import Gone, Rejected, translated
from orchestrator.record.params import legal_key
from orchestrator.record.runrecord import RUNNING, MetricPoint, RunRecord

_NAME_TAG = "mlflow.runName"

# What every run of ours has when it begins.
_NEW_RUN = {
    "source_type": "UNKNOWN",
    "source_name": "",
    "entry_point_name": "",
    "user_id": "orchestrator",
    "status": RUNNING,
    "end_time": None,
    "source_version": "",
    "lifecycle_stage": "active",
}

# What is written, by table; every other column must be able to stay empty.
_WRITTEN = {
    "SqlRun": {*_NEW_RUN, "run_uuid", "name", "start_time", "artifact_uri", "experiment_id"},
    "SqlTag": {"key", "value", "run_uuid"},
    "SqlParam": {"key", "value", "run_uuid"},
    "SqlMetric": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "SqlLatestMetric": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
}


def tables_are_known() -> bool:
    """Whether this version of MLflow has the tables this module writes, and no more to fill."""
    from mlflow.store.tracking.dbmodels import models

    for name, written in _WRITTEN.items():
        model = getattr(models, name, None)
        if model is None:
            return False
        columns = {column.name: column for column in model.__table__.columns}
        demanded = {
            column.name
            for column in columns.values()
            if not column.nullable and column.default is None and column.server_default is None
        }
        if not written <= set(columns) or not demanded <= written:
            return False
    return True


class SqliteBackend(Backend):
    """A :class:`Backend` on SQLite whose runs begin and end in one transaction each.

    Parameters
    ----------
    store : mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore
        For everything else, and its engine.
    where : str
        The database's address.
    artifact_root : Path
        Where runs keep their files.
    """

    def __init__(self, store: Any, where: str, artifact_root: Path) -> None:
        super().__init__(store, where, where, artifact_root)
        from mlflow.store.tracking.dbmodels import models

        self._engine = store.engine
        self._artifact_uri = artifact_root.as_uri()
        self._tables: dict[str, Any] = {name: getattr(models, name).__table__ for name in _WRITTEN}
        self._experiments: Any = models.SqlExperiment.__table__

    def create_run(
        self, experiment_id: str, name: str, start_ms: int, tags: Mapping[str, str]
    ) -> RunRow:
        """See :class:`Backend`."""
        from sqlalchemy import insert, select

        table = self._experiments
        look = select(table.c.lifecycle_stage).where(table.c.experiment_id == int(experiment_id))
        run_id = uuid.uuid4().hex
        with translated(self._where), self._engine.begin() as connection:
            found = connection.execute(look).one_or_none()
            if found is not None and found.lifecycle_stage == "active":
                # Not where the experiment says: another process may see this directory elsewhere.
                artifact_uri = f"{self._artifact_uri}/{run_id}/artifacts"
                row = {
                    **_NEW_RUN,
                    "run_uuid": run_id,
                    "name": name,
                    "start_time": start_ms,
                    "artifact_uri": artifact_uri,
                    "experiment_id": int(experiment_id),
                }
                whole = {**tags, _NAME_TAG: name}
                connection.execute(insert(self._tables["SqlRun"]), row)
                connection.execute(insert(self._tables["SqlTag"]), _pairs(run_id, whole))
                return RunRow(run_id, RUNNING, start_ms, None, artifact_uri, experiment_id, whole)
        # It is gone: MLflow says so in its own words.
        return super().create_run(experiment_id, name, start_ms, tags)

    def finish(self, run_id: str, record: RunRecord, tags: Mapping[str, str]) -> None:
        """See :class:`Backend`."""
        from sqlalchemy import select, tuple_, update
        from sqlalchemy.dialects.sqlite import insert

        run, tag, param, metric, latest = (self._tables[name] for name in _WRITTEN)
        points = [_point(run_id, point) for point in record.metrics]
        self._check(run_id, [*record.params, *tags, *(point["key"] for point in points)])
        newest: dict[str, dict[str, Any]] = {}
        for point in points:
            best = newest.get(point["key"])
            if best is None or _order(point) > _order(best):
                newest[point["key"]] = point
        put_tag = insert(tag)
        put_tag = put_tag.on_conflict_do_update(
            index_elements=["key", "run_uuid"], set_={"value": put_tag.excluded.value}
        )
        put_latest = insert(latest)
        new = put_latest.excluded
        order = ("step", "timestamp", "value")
        put_latest = put_latest.on_conflict_do_update(
            index_elements=["key", "run_uuid"],
            set_={name: new[name] for name in ("value", "timestamp", "step", "is_nan")},
            where=tuple_(*(new[name] for name in order))
            > tuple_(*(latest.c[name] for name in order)),
        )
        # What is there already stays: the record may be written a second time after a crash.
        writes = (
            (insert(param).on_conflict_do_nothing(), _pairs(run_id, record.params)),
            (insert(metric).on_conflict_do_nothing(), points),
            (put_latest, list(newest.values())),
            (put_tag, _pairs(run_id, tags)),
        )
        close = (
            update(run)
            .where(run.c.run_uuid == run_id, run.c.lifecycle_stage == "active")
            .values(status=record.status, end_time=record.end_ms or record.start_ms)
        )
        with translated(self._where), self._engine.begin() as connection:
            # First of all: it takes the write lock, and a run that was deleted gets nothing.
            if connection.execute(close).rowcount != 1:
                there = connection.execute(select(run.c.run_uuid).where(run.c.run_uuid == run_id))
                what, kind = ("was deleted", Rejected) if there.first() else ("is gone", Gone)
                raise kind(f"run {run_id} {what}", where=self._where)
            for statement, rows in writes:
                if rows:
                    connection.execute(statement, rows)

    def _check(self, run_id: str, keys: Iterable[str]) -> None:
        """Refuse what MLflow's own interface would: nobody could read it afterwards."""
        for key in keys:
            if legal_key(key) != key:
                raise Rejected(f"run {run_id}: {key!r} is no name for MLflow", where=self._where)


def _pairs(run_id: str, values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]


def _point(run_id: str, point: MetricPoint) -> dict[str, Any]:
    return {
        "run_uuid": run_id,
        "key": point.key,
        "value": point.value,
        "timestamp": point.timestamp_ms,
        "step": point.step,
        "is_nan": False,  # a point is a finite number
    }


def _order(point: Mapping[str, Any]) -> tuple[int, int, float]:
    return (point["step"], point["timestamp"], point["value"])
