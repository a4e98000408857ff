"""Reads parts of files into memory, from the page cache or past it, as fast as it is allowed to."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from orchestrator.measure import InputError
from orchestrator.tasks.streaming.layout import ALIGNMENT_BYTES, PAGE_BYTES, Extent

# What is copied out of the page cache at once stays in the processor's; past it, more at once
# leaves the disk less often idle. A throttle is smooth with little.
_CHUNK_BYTES = 8 << 20
_DIRECT_CHUNK_BYTES = 32 << 20
_SMOOTH_CHUNK_BYTES = 4 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)
_NO_SUCH_FLAG = "this system has no O_DIRECT"
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
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
    direct : bool
        Past the page cache (``O_DIRECT``): the disk writes to the target by itself. Where the file
        system refuses that, through the page cache.
    throttle : Throttle, optional

    Attributes
    ----------
    refusal : str or None
        Why reads go through the page cache although ``direct`` was asked for.
    """

    def __init__(
        self,
        files: Iterable[Path],
        *,
        cached: bool = False,
        direct: bool = False,
        throttle: Throttle | None = None,
    ) -> None:
        self._cached = cached
        self._throttle = throttle
        self._handles: dict[Path, int] = {}
        self.refusal: str | None = None
        ordered = sorted(set(files))
        if direct:
            self.refusal = (
                self._open(ordered, _DIRECT) if _DIRECT else "this system has no O_DIRECT"
            )
        self._direct = direct and self.refusal is None
        if not self._direct:
            self._open(ordered, 0)

    @property
    def mode(self) -> str:
        """``direct``, ``page cache, dropped behind`` or ``page cache``."""
        if self._direct:
            return "direct"
        return "page cache" if self._cached else "page cache, dropped behind"

    @property
    def chunk_bytes(self) -> int:
        """The most that is asked of the kernel at once."""
        if self._throttle is not None:
            return _SMOOTH_CHUNK_BYTES
        return _DIRECT_CHUNK_BYTES if self._direct else _CHUNK_BYTES

    def read(self, extent: Extent, buffer: memoryview) -> None:
        """Bring ``extent`` to its place in ``buffer``, bytes that begin on a page.

        Raises
        ------
        InputError
            If the file ends before.
        """
        begin = extent.buffer_offset
        if not self._direct:
            target = buffer[begin : begin + extent.nbytes]
            self._fill(extent.file, extent.offset, target, extent.nbytes)
            if not self._cached:
                self._drop_behind(extent)
            return
        room = buffer[extent.room_offset : extent.room_offset + extent.room_bytes]
        lead = extent.lead_bytes
        # Of the last page the file may have less than there is room for.
        self._fill(extent.file, extent.offset - lead, room, lead + extent.nbytes)
        shift = lead % ALIGNMENT_BYTES
        if shift:  # as far into its page as in the file is not where a kernel wants it
            place = ctypes.addressof(ctypes.c_char.from_buffer(room)) + lead
            ctypes.memmove(place - shift, place, extent.nbytes)

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

    def _open(self, files: Sequence[Path], flag: int) -> str | None:
        """Open all of them; with ``flag``, None or why that is refused."""
        try:
            for file in files:
                handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC | flag)
                self._handles[file] = handle
                if flag:  # some file systems take the flag and refuse the read
                    os.preadv(handle, [mmap.mmap(-1, PAGE_BYTES)], 0)
        except OSError as error:
            if not flag or error.errno not in _REFUSALS:
                raise
            self.close()
            return f"rejected for {file}: {error.strerror}"
        return None

    def _fill(self, file: Path, offset: int, target: memoryview, wanted: int) -> None:
        """Read into ``target`` until ``wanted`` bytes of it are there."""
        handle = self._handles[file]
        chunk = self.chunk_bytes
        done = 0
        while done < wanted:
            part = target[done : done + chunk]
            due_s = self._throttle.reserve(len(part)) if self._throttle else None
            count = os.preadv(handle, [part], offset + done)
            done += count
            if count == 0 or (self._direct and done < wanted and count % PAGE_BYTES):
                raise InputError(
                    "the weights end early: the file has become shorter since it was looked at",
                    where=str(file),
                    fix="Leave the model alone while it is measured",
                )
            if self._throttle is not None and due_s is not None:
                self._throttle.wait_until(due_s)

    def _drop_behind(self, extent: Extent) -> None:
        # At the end and from a little before: a folio that two ranges share survives both.
        begin = max(0, extent.offset - _LARGEST_FOLIO_BYTES)
        length = extent.offset + extent.nbytes - begin
        os.posix_fadvise(self._handles[extent.file], begin, length, os.POSIX_FADV_DONTNEED)
