"""The embedded store's SQLite database: made whole or not at all, and opened for writing."""

from __future__ import annotations

import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.record.backend import Backend
from orchestrator.record.boundary import mlflow_quiet, translated
from orchestrator.record.transaction import SqliteBackend, tables_are_known

BUSY_TIMEOUT_MS = 20_000


def sqlite_backend(database: Path, artifact_root: Path) -> Backend:
    """The embedded store, made if there is none.

    MLflow 3.17 creates its tables without looking whether another process is doing the same, and
    writes the default experiment's artifact path relative to the current directory: both are done
    here, under a lock and with absolute paths.
    """
    mlflow_quiet()
    where = f"sqlite:///{database}"
    # A lock file beside the database, not in /tmp: another user's file there would lock us out.
    with translated(where), FileLock(database.with_suffix(".lock"), mode=0o644):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        if not database.exists():
            _make_database(database, artifact_root)
            _write_ahead_log(database)
        _name_files_here(database, artifact_root)
        store = SqlAlchemyStore(where, artifact_root.as_uri())
        _commit_without_waiting(store.engine)
        if tables_are_known():
            return SqliteBackend(store, where, artifact_root)
    return Backend(store, where, where, artifact_root)


def _make_database(database: Path, artifact_root: Path) -> None:
    """All tables, beside and then renamed: cut short (a full disk, a kill) nothing is half made.

    MLflow refuses tables that it did not finish.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # Of a name of its own each time: MLflow keeps an engine for each, and the one of an earlier try
    # in this process would still hold the file that it left half made.
    making = database.with_name(f"{database.name}.making-{uuid.uuid4().hex[:8]}")
    for left in database.parent.glob(f"{database.name}.making*"):
        left.unlink()
    SqlAlchemyStore(f"sqlite:///{making}", artifact_root.as_uri()).engine.dispose()
    with making.open("rb") as file:
        os.fsync(file.fileno())
    making.rename(database)


def _name_files_here(database: Path, artifact_root: Path) -> None:
    """Let the database name its files where it lies itself: it may have been moved or copied.

    MLflow writes absolute paths. As they were, a copy would put the files of new runs among those
    of the original, and MLflow's pages would look for all files there. A run whose files are not
    here keeps its path.
    """
    now = artifact_root.as_uri()
    with (
        closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_MS / 1000)) as connection,
        connection,
    ):
        default = connection.execute(
            "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        ).fetchone()
        before = str(default[0]).removesuffix("/0") if default else now
        if before == now:
            return
        connection.execute(
            "UPDATE experiments SET artifact_location = ? || substr(artifact_location, ?)"
            " WHERE artifact_location = ? OR substr(artifact_location, 1, ?) = ?",
            (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
        )
        runs = connection.execute(
            "SELECT run_uuid FROM runs WHERE artifact_uri = ? || '/' || run_uuid || '/artifacts'",
            (before,),
        ).fetchall()
        connection.executemany(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
            [
                (f"{now}/{run_id}/artifacts", run_id)
                for (run_id,) in runs
                if (artifact_root / run_id).is_dir()
            ],
        )


def _write_ahead_log(database: Path) -> None:
    # Readers (the UI, `show`, resume) then never block the recording thread, nor it them. The mode
    # is a property of the file. Where the file system cannot (some network ones) SQLite stays with
    # its default: slower, not wrong.
    connection = sqlite3.connect(database, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


def _commit_without_waiting(engine: Any) -> None:
    # MLflow commits often, and SQLite by default waits for the disk each time. The spool
    # keeps every record until `settle` has waited once for many; a power cut before that loses
    # commits at the log's end, never the database, and they are then made again.
    from sqlalchemy import event

    # MLflow keeps one engine for each database and process: another thread may be connecting with
    # it just now, and SQLAlchemy's listeners must not change under it.
    if event.contains(engine, "connect", _relax):
        return
    event.listen(engine, "connect", _relax)
    engine.dispose()


def _relax(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL")
    # As MLflow sets them for its own sessions.
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
