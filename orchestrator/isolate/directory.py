"""An attempt's own directory: its job, its log (capped), its artifacts; gone when the attempt is.

::

    orchestrator-attempt-XXXXXXXX/
      job.json      what the child is to do
      log.txt       its stdout and stderr; locked for as long as anyone of the attempt lives
      artifacts/    what the task writes
      tmp/          TMPDIR of the child
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.isolate.linux import punch_hole

PREFIX = "orchestrator-attempt-"
LOG_NAME = "log.txt"
LOG_HALF_BYTES = 8 << 20
_BLOCK_BYTES = 4096
ARTIFACT_MAX_BYTES = 64 << 20
ARTIFACTS_MAX_BYTES = 256 << 20


class AttemptDirectory:
    """Makes the directory on construction; :meth:`remove` it whatever happens.

    Parameters
    ----------
    root : Path, optional
        Where to make it; the system's temporary directory by default.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        self.job = self.path / "job.json"
        self.artifacts = self.path / "artifacts"
        self.temporary = self.path / "tmp"
        self.artifacts.mkdir()
        self.temporary.mkdir()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self.log = os.open(self.path / LOG_NAME, flags, 0o600)
        fcntl.flock(self.log, fcntl.LOCK_SH)
        self._punched = LOG_HALF_BYTES

    def write_job(self, job: dict[str, Any]) -> None:
        """Leave the child its orders."""
        self.job.write_text(json.dumps(job))

    def cap_log(self) -> None:
        """Give back to the disk the middle of a long log; cheap, to be called now and then.

        A child that prints gigabytes is neither slowed by a pipe nor let fill the disk, and unlike
        a file cut short under its writer nothing it prints meanwhile is lost. A file system that
        cannot punch holes keeps the whole log until the attempt ends.
        """
        end = (os.fstat(self.log).st_size - LOG_HALF_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES
        if end - self._punched >= LOG_HALF_BYTES:
            punch_hole(self.log, self._punched, end - self._punched)
            self._punched = end

    def read_log(self) -> bytes:
        """The log: whole, or its first and last part around a line that says what is missing."""
        size = os.fstat(self.log).st_size
        dropped = size - 2 * LOG_HALF_BYTES
        if dropped <= 0:
            return os.pread(self.log, size, 0)
        mark = f"\n[... {dropped} bytes of output were not kept ...]\n".encode()
        head = os.pread(self.log, LOG_HALF_BYTES, 0)
        return head + mark + os.pread(self.log, LOG_HALF_BYTES, size - LOG_HALF_BYTES)

    def collect(self, names: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
        """Content of the declared artifacts that are there, and why the others are not."""
        contents: dict[str, bytes] = {}
        missing: dict[str, str] = {}
        left = ARTIFACTS_MAX_BYTES
        root = self.artifacts.resolve()
        for name in names:
            path = self.artifacts / name
            try:
                # The task may have put a link there since it declared the name.
                if name == LOG_NAME or not path.resolve().is_relative_to(root):
                    raise OSError(f"the name {name!r} cannot be used")
                with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                    facts = os.fstat(file.fileno())
                    if not stat.S_ISREG(facts.st_mode):
                        raise OSError("not a file")
                    limit = min(ARTIFACT_MAX_BYTES, left)
                    if facts.st_size > limit:
                        raise OSError(f"{facts.st_size} bytes, {limit} are kept at most")
                    contents[name] = file.read(limit)
                left -= len(contents[name])
            except FileNotFoundError:
                missing[name] = "declared and never written"
            except (OSError, ValueError) as error:
                missing[name] = str(error)
        return contents, missing

    def remove(self) -> None:
        """Remove everything; what cannot be removed is left to :func:`sweep`."""
        with contextlib.suppress(OSError):
            os.close(self.log)
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(root: Path | None = None, *, min_age_s: float = 60.0) -> None:
    """Remove directories whose attempt and supervisor were both killed without a chance to.

    Younger ones than ``min_age_s`` are left alone: their maker may be just about to lock them.
    """
    for path in Path(root or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < min_age_s:
                continue
            try:
                log = os.open(path / LOG_NAME, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:  # its maker was killed while it made or removed it
                shutil.rmtree(path, ignore_errors=True)
                continue
            try:
                # Anyone of the attempt still alive holds the lock: it goes with the descriptor.
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(log)
