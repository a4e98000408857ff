"""Which processes belong together."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from orchestrator.host.cgroup import ROOT


def descendants(pid: int, root: Path = ROOT) -> list[int]:
    """Every living descendant of ``pid``, parents before children; a snapshot, never a promise."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for child in _children(root / "proc" / str(waiting.pop()) / "task"):
            if child not in found:
                found.append(child)
                waiting.append(child)
    return found


def _children(tasks: Path) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(tasks):
            # A thread may end between the listing and the reading.
            with contextlib.suppress(OSError), open(f"{tasks}/{thread}/children", "rb", 0) as file:
                found.extend(map(int, file.read().split()))
    return found
