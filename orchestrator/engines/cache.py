"""Where derived files live between attempts, and the one way to put them there.

::

    <cache root>/                 0700; ORCHESTRATOR_CACHE, else ~/.cache/orchestrator
        converted/<key>/          a model turned into safetensors + tokenizer
        references/<key>.safetensors
        digests/<key>.json        content digests of large files
        locks/<key>.lock

Entries are named by the content they were made from, never changed once they are there, and
appear whole or not at all: written beside their name, fsynced, renamed. Several processes that
want the same entry wait for the one that makes it. Anything here may be deleted at any time.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from orchestrator.errors import home_directory
from orchestrator.measure import InputError

ENVIRONMENT_VARIABLE = "ORCHESTRATOR_CACHE"
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
    from filelock import FileLock

    locks = cache_root() / "locks"
    with _disk_errors(final):
        locks.mkdir(mode=0o700, exist_ok=True)
        final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with making or nullcontext(), FileLock(locks / f"{final.name}.lock"):
            if final.exists():
                return final
            # The lock is ours: a partial entry of this name belongs to a process that is dead.
            for dead in final.parent.glob(f".partial-{final.name}-*"):
                _remove(dead)
            scratch = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".partial-{final.name}-"))
            try:
                made = scratch / final.name
                build(made)
                _sync_tree(made)
                os.rename(made, final)
                _sync(final.parent)
            finally:
                _remove(scratch)
    return final


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space left for the model cache"
        elif error.errno in _UNWRITABLE:
            what = "the model cache cannot be written"
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
