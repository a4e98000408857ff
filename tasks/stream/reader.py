"""Reads parts of files into memory, from the page cache or past it, as fast as it is allowed to."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.measure import InputError

# Long enough that the call's cost vanishes, short enough for a throttle to be smooth.
_CHUNK_BYTES = 8 << 20
_LARGEST_FOLIO_BYTES = 2 << 20


class Throttle:
    """Lets ``bytes_per_s`` pass in all, whoever asks: a slower disk than there is.

    Parameters
    ----------
    now, sleep : callable
        Monotonic seconds, and a way to let them pass.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = float("-inf")

    def reserve(self, nbytes: int) -> float:
        """Book the disk for ``nbytes``; gives the moment they may be there."""
        with self._lock:
            self._free_at_s = max(self._free_at_s, self._now()) + nbytes / self._bytes_per_s
            return self._free_at_s

    def wait_until(self, moment_s: float) -> None:
        """Sleep until ``moment_s`` unless it has passed."""
        if (left_s := moment_s - self._now()) > 0:
            self._sleep(left_s)


class Reader:
    """Open files that several threads read at once.

    Parameters
    ----------
    files : iterable of Path
    cached : bool
        Whether what was read stays in the page cache; otherwise it is dropped behind each read,
        so that the next read of it comes from the disk, whichever step that belongs to.
    throttle : Throttle, optional
    """

    def __init__(
        self, files: Iterable[Path], *, cached: bool, throttle: Throttle | None = None
    ) -> None:
        self._cached = cached
        self._throttle = throttle
        self._handles: dict[Path, int] = {}
        for file in sorted(set(files)):
            self._handles[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, file: Path, offset: int, target: memoryview) -> None:
        """Fill ``target``, bytes, from ``offset`` of ``file``.

        Raises
        ------
        InputError
            If the file ends before.
        """
        handle = self._handles[file]
        done = 0
        while done < len(target):
            wanted = min(_CHUNK_BYTES, len(target) - done)
            due_s = self._throttle.reserve(wanted) if self._throttle else None
            count = os.preadv(handle, [target[done : done + wanted]], offset + done)
            if count == 0:
                raise InputError(
                    "the weights end early: the file has become shorter since it was looked at",
                    where=str(file),
                    fix="Leave the model alone while it is measured",
                )
            if self._throttle is not None and due_s is not None:
                self._throttle.wait_until(due_s)
            done += count
        if not self._cached:
            # At the end and from a little before: a folio that two ranges share survives both.
            begin = max(0, offset - _LARGEST_FOLIO_BYTES)
            os.posix_fadvise(handle, begin, offset + done - begin, os.POSIX_FADV_DONTNEED)

    def drop_cache(self) -> None:
        """Ask the kernel to forget all of these files; what is unwritten is written first."""
        for handle in self._handles.values():
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def fill_cache(self) -> None:
        """Read every file through once."""
        scratch = memoryview(bytearray(_CHUNK_BYTES))
        for handle in self._handles.values():
            offset = 0
            while count := os.preadv(handle, [scratch], offset):
                offset += count

    def close(self) -> None:
        """Close the files."""
        while self._handles:
            os.close(self._handles.popitem()[1])
