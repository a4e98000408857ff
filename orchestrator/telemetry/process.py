"""Tells the measured process on a GPU from others, also where pids are of another namespace."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from orchestrator.telemetry.nvml import ProcessMemory

# The inode of the initial pid namespace is fixed: PROC_PID_INIT_INO in the kernel's proc_ns.h.
_INITIAL_PID_NAMESPACE = "pid:[4026531836]"


@dataclass(frozen=True)
class ProcessSplit:
    """A GPU's processes seen from one attempt.

    Attributes
    ----------
    own_bytes : int or None
        Device memory of the measured process and what it has started; None where it is not to be
        told, with ``reason`` unless it simply is not on the GPU (yet).
    foreign, display : int
        Others that compute; others that only draw.
    """

    own_bytes: int | None
    foreign: int
    display: int
    reason: str | None = None


@cache
def in_host_namespace() -> bool:
    """Whether pids that NVML reports (the host's) are pids of this process's namespace."""
    try:
        return os.readlink("/proc/self/ns/pid") == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def belongs_to(pid: int, leader: int) -> bool:
    """Whether ``pid`` is ``leader``, of its process group, or a descendant of such a process.

    The measured process leads a group; a server that it starts leads another.
    """
    try:
        while pid > 1:
            if pid == leader or os.getpgid(pid) == leader:
                return True
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return False
    return False


def split(
    processes: Sequence[ProcessMemory],
    is_ours: Callable[[int], bool],
    *,
    host_namespace: bool,
    baseline: frozenset[int] = frozenset(),
) -> ProcessSplit:
    """Tell own from foreign processes.

    In a container NVML's pids are the host's and mean nothing here. Then whoever was on the GPU
    before the attempt (``baseline``) is foreign, and of the newcomers one is ours: a second one
    cannot be told from it, so own memory has no figure while more than one is there.
    """
    computing = [p for p in processes if p.compute]
    display = len(processes) - len(computing)
    if host_namespace:
        own = [p for p in computing if is_ours(p.pid)]
        foreign = len(computing) - len(own)
    else:
        own = [p for p in computing if p.pid not in baseline]
        foreign = len(computing) - len(own) + max(0, len(own) - 1)
        if len(own) > 1:
            return ProcessSplit(
                None, foreign, display, "pids of the host cannot be told apart here"
            )
    sizes = [p.used_bytes for p in own]
    if not own:
        return ProcessSplit(None, foreign, display)
    if any(size is None for size in sizes):
        return ProcessSplit(None, foreign, display, "this driver reports no memory per process")
    return ProcessSplit(sum(s for s in sizes if s is not None), foreign, display)
