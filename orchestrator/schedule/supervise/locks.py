"""Exclusive ownership of things of one host (cores, GPUs) among all our processes on it.

Each thing is a file under a directory of the user, locked with ``flock``: the kernel lets go of it
when its holder dies, however it dies. Two drivers on one host respect each other this way, which
Ray's own accounting, one per cluster, cannot do.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from orchestrator.errors import ClusterError

DIRECTORY_VARIABLE = "ORCHESTRATOR_LOCAL_DIR"


def local_directory() -> Path:
    """This user's directory on this host, created 0700; the same for every process of the user.

    Not ``TMPDIR``: two shells may differ in it and would then not see each other's locks.

    Raises
    ------
    ClusterError
        Somebody else made it, or others may write to it.
    """
    asked = os.environ.get(DIRECTORY_VARIABLE)
    return private_directory(Path(asked)) if asked else short_directory()


def short_directory() -> Path:
    """Where :func:`local_directory` is unless told otherwise: short enough for sockets in it."""
    return private_directory(Path("/tmp") / f"orchestrator-{os.getuid()}")


def private_directory(path: Path) -> Path:
    """``path``, created 0700 whatever the umask; raises as :func:`local_directory`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ClusterError(
            "is not a directory of this user alone",
            where=str(path),
            fix=f"Remove it, or set {DIRECTORY_VARIABLE} to another directory",
        )
    return path


class Request:
    """A wish for ``count`` of ``names``: ask :meth:`granted` until it is, then :meth:`release`.

    All or nothing, so that two requests never hold half of what both need.

    Parameters
    ----------
    directory : Path
        Holds the lock files; made if missing.
    names : sequence of str
        In order of preference.
    count : int
        How many of them.
    queue : bool
        Whether an unmet request holds back those that come after it. A wish for a whole node would
        else starve behind small ones.
    """

    def __init__(
        self, directory: Path, names: Sequence[str], count: int, *, queue: bool = True
    ) -> None:
        if count > len(names):
            raise ValueError(f"{count} of {len(names)} names")
        self._directory = directory
        self._names = names
        self._count = count
        self._turn = self._lock("queue") if queue else None
        self._held: dict[str, BaseFileLock] = {}
        directory.mkdir(mode=0o700, exist_ok=True)

    @property
    def held(self) -> tuple[str, ...]:
        """What is owned now."""
        return tuple(self._held)

    def granted(self) -> bool:
        """Try to take everything, without waiting."""
        if len(self._held) == self._count:
            return True
        if self._turn is not None and not self._turn.is_locked and not _acquire(self._turn):
            return False
        held: dict[str, BaseFileLock] = {}
        for name in self._names:
            if len(held) == self._count:
                break
            lock = self._lock(name)
            if _acquire(lock):
                held[name] = lock
        if len(held) < self._count:
            for lock in held.values():
                lock.release()
            return False
        self._held = held
        if self._turn is not None:
            self._turn.release()
        return True

    def release(self) -> None:
        """Let go of everything, also of a place in the queue; may be called twice."""
        for lock in self._held.values():
            lock.release()
        self._held = {}
        if self._turn is not None:
            self._turn.release()

    def _lock(self, name: str) -> BaseFileLock:
        return FileLock(self._directory / f"{name}.lock", mode=0o600, thread_local=False)


def _acquire(lock: BaseFileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
