"""Where derived files live between attempts, and the one way to put them there.

::

    <cache root>/                 0700; ORCHESTRATOR_CACHE, else ~/.cache/orchestrator
        converted/<key>/          a model turned into safetensors + tokenizer
        references/<key>.safetensors
        digests/<key>.json        content digests of large files
        environments/<key>/       packages that attempts run in
        locks/<key>.lock

Entries are named by the content they were made from, never changed once they are there, and
appear whole or not at all: written beside their name, fsynced, renamed. Several processes that
want the same entry wait for the one that makes it. Anything here may be deleted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import home_directory
from orchestrator.measure import InputError

ENVIRONMENT_VARIABLE = "ORCHESTRATOR_CACHE"
_LOCKS = "locks"
_MANY_FILES = 1000  # of which each by itself would take longer than all the machine's
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_root() -> Path:
    """The cache's directory, made if missing; :class:`InputError` where it cannot be written."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    root = (
        Path(named).expanduser()
        if named
        else home_directory(ENVIRONMENT_VARIABLE) / ".cache" / "orchestrator"
    )
    with _disk_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


def publish(
    final: Path,
    build: Callable[[Path], None],
    *,
    making: AbstractContextManager[object] | None = None,
) -> Path:
    """Return ``final``, built first if it is not there.

    Parameters
    ----------
    final : Path
        A file or directory inside the cache.
    build : callable
        Gets a path beside ``final`` that does not exist yet and leaves a file or a directory there.
    making : context manager, optional
        Entered while it is made or waited for, and not where it is there: a phase of its own name,
        for this time is no part of the trial that happens to be the first.

    Raises
    ------
    InputError
        If the disk is full or the cache cannot be written; whatever ``build`` raises.
    """
    if final.exists():
        return final
    locks = cache_root() / _LOCKS
    with _disk_errors(final):
        locks.mkdir(mode=0o700, exist_ok=True)
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with making or nullcontext(), _alone(locks / f"{final.name}.lock"):
            if final.exists():
                return final
            # The lock is ours: a partial entry of this name belongs to a process that is dead.
            for dead in final.parent.glob(f".partial-{final.name}-*"):
                _remove(dead)
            scratch = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".partial-{final.name}-"))
            try:
                made = scratch / final.name
                build(made)
                if made.is_dir() and sum(1 for _ in made.rglob("*")) > _MANY_FILES:
                    os.sync()
                else:
                    _sync_tree(made)
                os.rename(made, final)
                _sync(final.parent)
            finally:
                _remove(scratch)
    return final


@dataclass(frozen=True)
class Kind:
    """One kind of entries: how many there are, and what they weigh."""

    name: str
    entries: int
    bytes: int


def kept() -> list[Kind]:
    """What the cache holds, the heaviest kind first."""
    found = []
    for directory in cache_root().iterdir():
        if not directory.is_dir() or directory.name == _LOCKS:
            continue
        weight = 0
        for folder, _, names in os.walk(directory):
            for name in names:
                # Others put entries there meanwhile, and take them away.
                with suppress(FileNotFoundError):
                    weight += os.lstat(os.path.join(folder, name)).st_size
        found.append(Kind(directory.name, entries_of(directory.name), weight))
    return sorted(found, key=lambda kind: -kind.bytes)


def entries_of(name: str) -> int:
    """How many entries of a kind there are; what they weigh takes seconds to add up."""
    directory = cache_root() / name
    if not directory.is_dir():
        return 0
    return sum(not item.name.startswith(".") for item in directory.iterdir())


def forget(name: str) -> None:
    """Remove all entries of a kind; who is using one keeps what it has open."""
    _remove(cache_root() / name)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that the kernel lets go when this process ends, however it does.

    Not by a library: an environment's Python has no more of them than its engine needs.
    """
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(cache_root()).free
            what = f"no space left for the cache: {free / 2**30:.1f} GiB free"
        elif error.errno in _UNWRITABLE:
            what = "the cache cannot be written"
        else:
            raise
        raise InputError(
            what, where=str(path), fix=f"Make room or set {ENVIRONMENT_VARIABLE} to another place"
        ) from error


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
