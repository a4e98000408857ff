"""Results on disk before the tracking store hears of them.

::

    spool/                            0700, beside the store or in the user's state directory
      <sweep id>/                     one running driver's
        owner.lock                    locked while that driver lives
        0.sweep  1.<attempt>.begin  2.<attempt>.finish  9.sweep       records, 0600
        1.<attempt>.submitted                       until one of the other two is there
      corrupt/                        what could not be read, with the reason beside it

A record is a header line (format, SHA-256, length) and a zip archive. It appears under its name
only when it is whole: written to a temporary file, synced, renamed, and the directory synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.errors import StoreError, StoreUnavailable
from orchestrator.record.runrecord import RUNNING, SWEEP_TAG, RunRecord, digest_of

_MAGIC = b"orchestrator-spool"
_FORMAT = b"1"
_LOCK = "owner.lock"
_SUBMITTED = ".submitted"
_CREATE_PATIENCE_S = 10.0
CORRUPT = "corrupt"


class CorruptRecord(ValueError):
    """A spool file is not what was written; the message says how."""


@dataclass(frozen=True)
class Spooled:
    """A record read back from the spool."""

    path: Path
    record: RunRecord
    digest: str


def storage_error(error: OSError, where: Path) -> StoreError:
    """An operating system error on our own files as one line a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreUnavailable(
            "no space left on the disk", where=str(where), fix="Free some and run it again"
        )
    return StoreError(
        f"cannot be written: {os.strerror(error.errno) if error.errno else error}",
        where=str(where),
        fix="Check its permissions, or choose another tracking.root=DIRECTORY",
    )


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Publish ``content`` at ``path``, or nothing: write, sync, rename, sync the directory.

    Raises
    ------
    StoreError
        The disk is full or the place cannot be written; no part of the file is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Spool:
    """One driver's records; made with :meth:`create`, or by :func:`abandoned` to drain it."""

    def __init__(self, directory: Path, lock: FileLock) -> None:
        self.directory = directory
        self._lock = lock

    @classmethod
    def create(cls, root: Path, sweep_id: str) -> Spool:
        """A new spool under ``root``, owned by this process until :meth:`close`."""
        directory = root / sweep_id
        give_up_at = time.monotonic() + _CREATE_PATIENCE_S
        try:
            while True:
                # Whoever drains may look into it at any point: sees nothing, and removes it.
                try:
                    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    os.chmod(root, 0o700)
                    lock = FileLock(directory / _LOCK, mode=0o600, thread_local=False)
                    if _acquired(lock, directory / _LOCK):
                        break
                    met = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                except (FileExistsError, FileNotFoundError) as error:
                    # There when it was to be made, and gone when it was looked at.
                    met = error
                if time.monotonic() > give_up_at:
                    raise met
                time.sleep(0.01)
            sync_directory(root)
        except OSError as error:
            raise storage_error(error, directory) from error
        return cls(directory, lock)

    def write(self, record: RunRecord) -> Spooled:
        """Put ``record`` on disk; when this returns it survives the driver's death.

        A finished attempt also survives a power cut. A beginning need not: losing one loses the
        sight of an attempt that the same power cut ended.
        """
        path = self.directory / _file_name(record)
        digest = self._write(path, record, durable=record.status != RUNNING)
        if record.key_tag != SWEEP_TAG:
            self.withdraw(record.key)
        return Spooled(path, record, digest)

    def submit(self, record: RunRecord) -> None:
        """Note that the attempt of ``record`` may begin any time now, whether we hear of it or not.

        It survives this process, is for nobody but who drains after its death, and goes with
        :meth:`write` or :meth:`withdraw`.
        """
        self._write(self._submitted(record.key), record, durable=False)

    def withdraw(self, key: str) -> None:
        """The attempt ``key`` that was submitted is recorded otherwise, or will not be made."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._submitted(key))

    def _write(self, path: Path, record: RunRecord, *, durable: bool) -> str:
        content = record.to_bytes()
        digest = digest_of(content)
        header = b" ".join((_MAGIC, _FORMAT, digest.encode(), b"%d" % len(content))) + b"\n"
        write_whole(path, header + content, durable=durable)
        return digest

    def _submitted(self, key: str) -> Path:
        return self.directory / f"1.{_safe_key(key)}{_SUBMITTED}"

    def pending(self) -> list[Path]:
        """Records still here, in the order in which they are to be written to the store."""
        return _records_in(self.directory)

    def submitted(self) -> list[Path]:
        """Attempts that were submitted, and nothing more is known of them."""
        return sorted(self.directory.glob(f"1.*{_SUBMITTED}"))

    def remove(self, path: Path) -> None:
        """Forget a record that the store now holds."""
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the spool up; its directory goes when nothing waits in it."""
        if not self.pending():
            shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.release()


def _acquired(lock: FileLock, path: Path) -> bool:
    """Whether ``lock`` is ours and lies at ``path``; False where another had it, or removed it.

    A lock that was removed with its directory locks nothing that anybody will find.
    """
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):
        return False
    if path.exists():
        return True
    lock.release()
    return False


def _safe_key(key: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_\-]{1,100}", key):
        return key
    return hashlib.sha256(key.encode()).hexdigest()


def _file_name(record: RunRecord) -> str:
    key = _safe_key(record.key)
    if record.key_tag == SWEEP_TAG:
        return "0.sweep" if record.status == RUNNING else "9.sweep"
    return f"1.{key}.begin" if record.status == RUNNING else f"2.{key}.finish"


def _records_in(directory: Path) -> list[Path]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [directory / n for n in sorted(names) if re.match(r"[0-9]\..*(sweep|begin|finish)$", n)]


def read(path: Path, *, files: bool = True) -> Spooled:
    """Read one record back.

    Raises
    ------
    CorruptRecord
        The header, the length, the checksum or the archive is wrong.
    FileNotFoundError
        It was drained in the meantime.
    """
    content = path.read_bytes()
    header, _, body = content.partition(b"\n")
    fields = header.split(b" ")
    if len(fields) != 4 or fields[0] != _MAGIC:
        raise CorruptRecord("not a spool record")
    if fields[1] != _FORMAT:
        raise CorruptRecord(f"of another format ({fields[1].decode(errors='replace')[:20]})")
    digest = digest_of(body)
    if fields[3] != b"%d" % len(body) or fields[2] != digest.encode():
        raise CorruptRecord("its checksum does not match: cut short or changed")
    try:
        return Spooled(path, RunRecord.from_bytes(body, files=files), digest)
    except (ValueError, StoreError) as error:
        raise CorruptRecord(str(error)) from error


def set_aside(path: Path, reason: str) -> str:
    """Move a record that cannot be used to ``corrupt/``; returns a line about it."""
    target_directory = path.parent.parent / CORRUPT
    target_directory.mkdir(mode=0o700, exist_ok=True)
    target = target_directory / f"{path.parent.name}.{path.name}.{time.time_ns()}"
    os.replace(path, target)
    with contextlib.suppress(OSError):
        target.with_suffix(".why").write_text(reason + "\n")
    return f"spool record {path.name} was set aside as {target}: {reason}"


@contextlib.contextmanager
def abandoned(directory: Path) -> Iterator[Spool | None]:
    """The spool of a driver that no longer lives, to be drained; None while it lives."""
    lock = FileLock(directory / _LOCK, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield None
        return
    spool = Spool(directory, lock)
    try:
        for stale in directory.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        yield spool
    finally:
        spool.close()


def spool_directories(root: Path) -> list[Path]:
    """Every driver's directory under ``root``, oldest first."""
    try:
        found = [
            (entry.stat().st_mtime, entry.name)
            for entry in os.scandir(root)
            if entry.is_dir() and entry.name != CORRUPT
        ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"cannot be read: {error.strerror}", where=str(root), fix="Check its permissions"
        ) from error
    return [root / name for _, name in sorted(found)]


def waiting_results(root: Path) -> int:
    """Attempts that ``sync`` would record: those of drivers that no longer live. Changes nothing.

    An attempt that begun and never ended is one, for it is recorded as lost.
    """
    return sum(
        len({path.name.split(".")[1] for path in _records_in(directory)} - {"sweep"})
        for directory in spool_directories(root)
        if not _in_use(directory)
    )


def _in_use(directory: Path) -> bool:
    """Whether a driver holds the lock. A shared lock of a moment, which a new driver waits for."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def unread(root: Path) -> Iterator[Spooled]:
    """Every whole record under ``root`` without its files; corrupt ones are passed over."""
    for directory in spool_directories(root):
        yield from unread_in(directory)


def unread_in(directory: Path) -> Iterator[Spooled]:
    """The same of one driver's directory."""
    for path in _records_in(directory):
        try:
            yield read(path, files=False)
        except (CorruptRecord, FileNotFoundError):
            continue
