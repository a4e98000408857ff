"""The embedded store: SQLite at ``<root>/mlflow.db``, artifacts beside it.

Read straight from SQLite: MLflow takes two seconds to import and some 4 ms for each run it
returns, which for ten thousand finished trials is most of a minute. The few columns and two
tables used are MLflow's oldest.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from orchestrator.errors import StoreError
from orchestrator.record.artifacts import safe_name
from orchestrator.record.backend import Backend, RunRow, local_directory
from orchestrator.record.boundary import translated
from orchestrator.record.database import sqlite_backend
from orchestrator.record.points import PHASES_PREFIX, SYSTEM_PREFIX
from orchestrator.record.runrecord import ATTEMPT_TAG, CELLS_TAG, NUMBER_TAG, SEARCH_TAG, SWEEP_TAG
from orchestrator.record.spool import storage_error
from orchestrator.record.store import Store
from orchestrator.record.summaries import SUMMARY_TAGS, AttemptSummary, summary_of

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
SPOOL = "spool"

# Longer than any lock that is not a mistake; with a write-ahead log readers hardly ever wait.
BUSY_TIMEOUT_S = 90.0
# So many hashes are looked for in SQL; for more, all are read and sorted out afterwards.
FEW = 500
_SWEEP_TAGS = (SWEEP_TAG, "sweep", "driver_id", CELLS_TAG, SEARCH_TAG, NUMBER_TAG)

T = TypeVar("T")


class EmbeddedStore(Store):
    """SQLite and files under one directory.

    Parameters
    ----------
    root : Path
        Made when something is first recorded.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = Path(os.path.abspath(root.expanduser()))
        self.database = self.root / DATABASE
        self.artifact_root = self.root / ARTIFACTS
        self.spool_root = self.root / SPOOL
        self.uri = self.where = f"sqlite:///{self.database}"

    def _open_backend(self) -> Backend:
        self.check_writable()
        return sqlite_backend(self.database, self.artifact_root)

    def check_writable(self) -> None:
        """See :class:`Store`."""
        try:
            self.artifact_root.mkdir(parents=True, exist_ok=True)
            self.spool_root.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.root) from error
        for path in (self.root, self.artifact_root, self.spool_root, self.database):
            # SQLite needs the directory too: it makes its journal beside the database.
            if path.exists() and not os.access(path, os.W_OK):
                raise StoreError(
                    "cannot be written: permission denied",
                    where=str(path),
                    fix="Check its permissions, or choose another tracking.root=DIRECTORY",
                )

    def recorded(self, hashes: frozenset[str] | None) -> list[AttemptSummary]:
        """See :class:`Store`; 10,000 attempts take some 0.2 s."""
        rows = self._runs("config_hash", SUMMARY_TAGS, hashes)
        return [summary_of(row) for row in rows if ATTEMPT_TAG in row.tags]

    def _sweep_rows(self) -> list[RunRow]:
        return self._runs(SWEEP_TAG, _SWEEP_TAGS)

    def _hashes_like(self, prefix: str) -> set[str]:
        def query(connection: sqlite3.Connection) -> set[str]:
            rows = connection.execute(
                "SELECT DISTINCT h.value FROM tags h JOIN runs r ON r.run_uuid = h.run_uuid"
                " WHERE h.key = 'config_hash' AND substr(h.value, 1, ?) = ?"
                " AND r.lifecycle_stage = 'active'",
                (len(prefix), prefix),
            )
            return {row[0] for row in rows}

        return self._query(query, set())

    def file(self, run_id: str, name: str) -> bytes:
        """See :class:`Store`."""
        return (self._directory(run_id) / safe_name(name)).read_bytes()

    def files(self, run_id: str) -> list[str]:
        """See :class:`Store`."""
        directory = self._directory(run_id)
        return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())

    def _numbers(self, run_ids: Sequence[str]) -> list[tuple[str, str, float]]:
        # In the order in which they were written: by their key, each would be a seek of its own.
        few = f" AND run_uuid IN ({','.join('?' * len(run_ids))})" if len(run_ids) <= FEW else ""
        return self._query(
            lambda connection: connection.execute(
                "SELECT key, run_uuid, value FROM latest_metrics WHERE is_nan = 0 AND"
                f" (key NOT LIKE '{SYSTEM_PREFIX}%' OR key LIKE '{PHASES_PREFIX}%'){few}",
                run_ids if few else (),
            ).fetchall(),
            [],
        )

    def _directory(self, run_id: str) -> Path:
        def query(connection: sqlite3.Connection) -> str | None:
            row = connection.execute(
                "SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)
            ).fetchone()
            return None if row is None else str(row[0])

        uri = self._query(query, None)
        if uri is None:
            raise StoreError(f"no run {run_id}", where=self.where)
        # MLflow stores absolute paths; the whole directory may have been moved or copied since.
        own = self.artifact_root / safe_name(run_id) / "artifacts"
        directory = local_directory(uri)
        return own if own.is_dir() or directory is None or not directory.is_dir() else directory

    def _runs(
        self, having: str, keys: tuple[str, ...], values: frozenset[str] | None = None
    ) -> list[RunRow]:
        """Active runs that have the tag ``having``, with the tags ``keys``; without their files."""

        wanted = [key for key in keys if key != having]
        # The primary key of `tags` is (key, run): each of these is one seek, done in C.
        columns = ", ".join(
            "(SELECT value FROM tags WHERE key = ? AND run_uuid = h.run_uuid)" for _ in wanted
        )
        few = sorted(values) if values is not None and len(values) <= FEW else None
        condition = f" AND h.value IN ({','.join('?' * len(few))})" if few is not None else ""

        def query(connection: sqlite3.Connection) -> list[RunRow]:
            rows = connection.execute(
                f"SELECT r.run_uuid, r.status, r.start_time, r.end_time, h.value, {columns}"
                " FROM tags h JOIN runs r ON r.run_uuid = h.run_uuid"
                f" WHERE h.key = ? AND r.lifecycle_stage = 'active'{condition}",
                (*wanted, having, *(few or ())),
            )
            return [
                RunRow(
                    run_id,
                    status,
                    start or 0,
                    end,
                    "",
                    "",
                    {k: v for k, v in zip((having, *wanted), tags, strict=True) if v is not None},
                )
                for run_id, status, start, end, *tags in rows
                if values is None or tags[0] in values
            ]

        return self._query(query, [])

    def running(self) -> list[RunRow]:
        """See :class:`Store`."""

        def query(connection: sqlite3.Connection) -> list[RunRow]:
            rows = connection.execute(
                "SELECT run_uuid, status, start_time, end_time, artifact_uri, experiment_id"
                " FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'"
            ).fetchall()
            found = []
            for run_id, status, start, end, uri, experiment in rows:
                tags = dict(
                    connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,))
                )
                if "driver_id" in tags:
                    found.append(
                        RunRow(run_id, status, start or 0, end, uri or "", str(experiment), tags)
                    )
            return found

        return self._query(query, [])

    def _query(self, query: Callable[[sqlite3.Connection], T], nothing: T) -> T:
        """Run ``query`` read-only; ``nothing`` where nothing was ever recorded."""
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            if not self.database.exists():
                return nothing
            try:
                with self._connection() as connection:
                    if not connection.execute(
                        "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"
                    ).fetchone():
                        return nothing  # being created by another process
                    return query(connection)
            except sqlite3.DatabaseError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    with translated(self.where):
                        raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        address = f"file:{quote(str(self.database))}?mode=ro"
        try:
            connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S)
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if "unable to open" not in str(error) and "readonly" not in str(error):
                raise
            # A write-ahead log needs a file beside the database even to read it. In a directory
            # that we cannot write nobody else of our kind is writing either.
            connection = sqlite3.connect(f"{address}&immutable=1", uri=True)
        with closing(connection):
            yield connection
