"""A tracking server over HTTP: searched page by page, written through the same spool."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from orchestrator.attempt import AttemptReport
from orchestrator.errors import ConfigError, home_directory
from orchestrator.record.backend import Backend, RunRow, server_backend
from orchestrator.record.runrecord import ATTEMPT_TAG, SWEEP_TAG
from orchestrator.record.spool import storage_error
from orchestrator.record.store import Store
from orchestrator.record.summaries import AttemptSummary, summary_of

# Up to this many trials are asked for one by one: dearer than a page, cheaper than a whole store.
FEW_HASHES = 20
# Reports asked for at a time.
READERS = 8


class ServerStore(Store):
    """An MLflow tracking server.

    Parameters
    ----------
    uri : str
        ``http://`` or ``https://``, perhaps with credentials.
    state : Path, optional
        Where the spool is kept; default the user's state directory.
    """

    is_shared = True

    def __init__(self, uri: str, *, state: Path | None = None) -> None:
        super().__init__()
        parts = urlsplit(uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            shown = f"{uri!r} is no address of a server" if uri else "a server needs an address"
            raise ConfigError(
                shown, where="tracking.uri", fix="For example: tracking.uri=http://127.0.0.1:5000"
            )
        self.uri = uri.rstrip("/")
        port = f":{parts.port}" if parts.port else ""
        bare = (parts.scheme, f"{parts.hostname}{port}", parts.path.rstrip("/"), "", "")
        self.where = urlunsplit(bare)
        # Without the credentials: they may change while results wait.
        name = re.sub(r"[^A-Za-z0-9.\-]", "_", f"{parts.hostname}{port}")
        key = f"{name}-{hashlib.sha256(self.where.encode()).hexdigest()[:8]}"
        self.spool_root = (state or state_directory()) / "spool" / key

    def _open_backend(self) -> Backend:
        return server_backend(self.uri, self.where)

    def check_writable(self) -> None:
        """See :class:`Store`."""
        try:
            self.spool_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.spool_root) from error

    def recorded(self, hashes: frozenset[str] | None) -> list[AttemptSummary]:
        """See :class:`Store`; some 5 ms a run."""
        return [
            summary_of(row)
            for row in self._rows(hashes)
            if ATTEMPT_TAG in row.tags and (hashes is None or row.tags["config_hash"] in hashes)
        ]

    def _rows(self, hashes: frozenset[str] | None) -> Iterator[RunRow]:
        if hashes is None or len(hashes) > FEW_HASHES:
            yield from self.backend().search("tags.config_hash LIKE '%'")
            return
        experiments = self.backend().experiment_ids()
        for config_hash in sorted(hashes):
            yield from self.backend().search(f"tags.config_hash = '{config_hash}'", experiments)

    def _hashes_like(self, prefix: str) -> set[str]:
        rows = self.backend().search(f"tags.config_hash LIKE '{prefix}%'")
        return {row.tags["config_hash"] for row in rows}

    def _sweep_rows(self) -> Iterator[RunRow]:
        return self.backend().search(f"tags.{SWEEP_TAG} LIKE '%'")

    def running(self) -> list[RunRow]:
        """See :class:`Store`."""
        rows = self.backend().search("attributes.status = 'RUNNING'")
        return [row for row in rows if "driver_id" in row.tags]

    def _numbers(self, run_ids: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        return self.backend().latest_metrics(run_ids)

    def _reports_of(
        self, attempts: Sequence[AttemptSummary]
    ) -> list[tuple[AttemptSummary, AttemptReport | None]]:
        """See :class:`Store`; several at a time, for each is two answers of the server's."""
        with ThreadPoolExecutor(READERS) as readers:
            return list(zip(attempts, readers.map(self._report_of, attempts), strict=True))

    def file(self, run_id: str, name: str) -> bytes:
        """See :class:`Store`."""
        return self.backend().read_file(self.backend().get_run(run_id), name)

    def files(self, run_id: str) -> list[str]:
        """See :class:`Store`."""
        return self.backend().list_files(self.backend().get_run(run_id))


def state_directory() -> Path:
    """The user's own directory for what must survive: XDG's state home."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base else home_directory("XDG_STATE_HOME") / ".local" / "state"
    return state / "orchestrator"
