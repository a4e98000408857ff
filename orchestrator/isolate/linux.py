"""The Linux facts isolation stands on: parent-death signals, subreaping, groups, memory held."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from orchestrator.host.memory import PAGE_BYTES

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def die_with_parent(parent_pid: int, signum: int = signal.SIGKILL) -> None:
    """Have the kernel send ``signum`` to this process when the *thread* that made it ends.

    The parent may be gone before the kernel is told, and then no signal ever comes: so look once
    more afterwards, and leave at once where this process has already been given away.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def flush_c_stdio() -> None:
    """Write out what native libraries have buffered; ``os._exit`` would throw it away."""
    _libc.fflush(None)


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Free the disk under a range of a file, which then reads as zeros; False where unsupported."""
    flags = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    place = ctypes.c_int64(offset), ctypes.c_int64(length)
    return bool(_libc.fallocate(descriptor, flags, *place) == 0)


def kill_quietly(pid: int, signum: int = signal.SIGKILL) -> None:
    """Signal one process that may already be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signum)


def kill_group_quietly(pgid: int) -> None:
    """SIGKILL a process group; atomic against members that fork."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def group_of(pid: int) -> int | None:
    """Process group of ``pid``; None where it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def resident_bytes(pid: int) -> int:
    """Resident set of one process from ``statm``: cheap, no lock taken; 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def proportional_bytes(pid: int) -> int | None:
    """Proportional set (shared pages divided among their holders); None where it is not readable.

    The kernel walks the page tables under the process's own lock for this: milliseconds for a large
    process, so it is asked for only to confirm what the resident set suggests.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, IndexError):
        return None
    return None


def describe_status(status: int) -> str:
    """A wait status in words: ``killed by SIGSEGV``, ``exited with status 3``."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"killed by {signal.Signals(number).name}"
        except ValueError:
            return f"killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"
