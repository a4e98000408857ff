"""Outlives a driver to end what it leaves behind. Run as a script; imports nothing of ours.

Ray's agents notice at once that their raylet is gone, but then spend a minute telling a dead head
about it. This process sleeps on a pipe whose other end is the driver's: end of file means that the
driver is gone, however it went, or is done with Ray. Every other process that has a file of the
session's directory open (its log, at least) is then killed, and the directory removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

GIVE_UP_S = 8.0
POLL_S = 0.1


def users_of(directory: str, spared: set[int]) -> list[int]:
    """Ids of the processes that have a file in ``directory`` open, without the ``spared``.

    Environment and command line would be easier to look at, but Ray's processes overwrite both with
    their titles.
    """
    prefix = os.path.join(directory, "")
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in spared:
            continue
        try:
            links = [f"/proc/{name}/fd/{number}" for number in os.listdir(f"/proc/{name}/fd")]
        except OSError:
            continue  # it ended, or is somebody else's
        if any(_target(link).startswith(prefix) for link in links):
            found.append(int(name))
    return found


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def clean_up(directory: str, spared: set[int]) -> None:
    """Kill until nothing is left, then remove ``directory``."""
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        left = users_of(directory, spared)
        if not left:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(POLL_S)
    shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """``aftermath.py DIRECTORY``, with the driver at the other end of stdin."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    (directory,) = sys.argv[1:]
    driver = os.getppid()
    while os.read(0, 1):
        pass
    clean_up(directory, {os.getpid(), driver})


if __name__ == "__main__":
    main()
