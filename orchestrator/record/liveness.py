"""Who drives a sweep, and whether that process still lives.

A driver id is ``host:pid:start``: a pid alone is soon another process's, its start time is not.
"""

from __future__ import annotations

import os
import socket
import time
from functools import cache

# A driver on another host that has not been heard of for this long is dead; it beats every
# HEARTBEAT_PERIOD_S, so several beats must have been lost.
HEARTBEAT_PERIOD_S = 15.0
STALE_AFTER_S = 120.0


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (immune to clock steps); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command name may hold blanks and brackets; the fields follow the last bracket.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


@cache
def _boot_id() -> str:
    # Two containers or a rebooted host may share a name; without this a dead driver could look
    # alive because an unrelated process of the next boot has its pid and start tick.
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip().split("-")[0]
    except OSError:
        return "0"


def driver_id(pid: int | None = None) -> str:
    """The id of this process (or of the living process ``pid`` of this host) as a driver."""
    pid = os.getpid() if pid is None else pid
    return f"{socket.gethostname()}:{pid}:{_start_time(pid) or 0}:{_boot_id()}"


def is_of_this_host(driver: str) -> bool:
    """Whether the driver ``driver`` runs, or ran, on this host since it was booted."""
    parts = driver.rsplit(":", 3)
    return len(parts) == 4 and (parts[0], parts[3]) == (socket.gethostname(), _boot_id())


def is_alive(driver: str, heartbeat: float | None, *, now: float | None = None) -> bool:
    """Whether the driver ``driver`` still runs.

    Parameters
    ----------
    driver : str
        A :func:`driver_id`. One that cannot be read is judged by its heartbeat.
    heartbeat : float or None
        Unix time of its last sign of life; used for other hosts, whose processes cannot be seen.
    """
    parts = driver.rsplit(":", 3)
    if len(parts) == 4 and parts[0] == socket.gethostname() and parts[1].isdigit():
        if parts[3] != _boot_id():
            return False
        started = _start_time(int(parts[1]))
        return started is not None and str(started) == parts[2]
    if heartbeat is None:
        return False
    return (time.time() if now is None else now) - heartbeat < STALE_AFTER_S
