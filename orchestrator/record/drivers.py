"""What a running sweep tells other terminals: one small file per driver, beside the store.

A driver rewrites ``<directory>/<driver id>.json`` at most once a second (write, rename) and removes
it at its end; ``status`` reads the files, ``cancel`` leaves a request beside one, which the driver
looks for at the same pace. A file whose process is gone is stale and is said to be so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.record.liveness import is_alive
from orchestrator.record.spool import write_whole

MIN_INTERVAL_S = 1.0


@dataclass(frozen=True)
class DriverState:
    """One driver as other terminals see it; times are Unix seconds."""

    driver_id: str
    sweep: str
    host: str
    pid: int
    started_at: float
    updated_at: float
    total: int
    cached: int
    outcomes: dict[str, int] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool | None:
        """Whether the process still runs; None when it is on another host."""
        return is_alive(self.driver_id, None) if self.host == socket.gethostname() else None


class DriverFile:
    """The driver's own side: publish state, notice a request to stop, clean up."""

    def __init__(self, directory: Path, driver_id: str, sweep: str, total: int, cached: int):
        self._path = directory / f"{driver_id}.json"
        self._request = directory / f"{driver_id}.cancel"
        self._last_s = float("-inf")
        now = time.time()
        self._base = DriverState(
            driver_id, sweep, socket.gethostname(), os.getpid(), now, now, total, cached
        )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def publish(self, outcomes: Mapping[str, int], running: list[str]) -> None:
        """Write the state, unless it was written less than a second ago or cannot be."""
        if time.monotonic() - self._last_s < MIN_INTERVAL_S:
            return
        self._last_s = time.monotonic()
        state = {
            **asdict(self._base),
            "outcomes": dict(outcomes),
            "running": running,
            "updated_at": time.time(),
        }
        # A full disk, say: what other terminals see of a sweep must not end it.
        with contextlib.suppress(StoreError):
            write_whole(self._path, json.dumps(state).encode(), durable=False)

    def cancel_requested(self) -> bool:
        """Whether ``cancel`` asked this driver to stop."""
        return self._request.exists()

    def remove(self) -> None:
        """Forget this driver; called once, at its end."""
        self._path.unlink(missing_ok=True)
        self._request.unlink(missing_ok=True)


def read_drivers(directory: Path) -> list[DriverState]:
    """Every driver that left a file, newest first; unreadable files are skipped."""
    states = []
    for path in sorted(directory.glob("*.json")):
        try:
            states.append(DriverState(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue  # being rewritten, or of another version: status must not fail over it
    return sorted(states, key=lambda state: -state.started_at)


def request_cancel(directory: Path, sweep: str) -> list[DriverState]:
    """Ask every living driver of ``sweep`` to stop; returns those asked."""
    asked = []
    for state in read_drivers(directory):
        if state.sweep == sweep and state.alive is not False:
            (directory / f"{state.driver_id}.cancel").touch()
            asked.append(state)
    return asked


def drivers_directory(spool_root: Path) -> Path:
    """Where the drivers of the store whose spool lies at ``spool_root`` leave their files."""
    return spool_root.with_name(f"{spool_root.name}.drivers")
