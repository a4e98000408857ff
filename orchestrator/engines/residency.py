"""How much of a file the page cache holds: a load time means nothing without it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.measure import Recorder

_MAP_FAILED = ctypes.c_void_p(-1).value
# Of mincore's byte per page only bit 0, resident, is defined.
_LOWEST_BIT = bytes(value & 1 for value in range(256))


def resident_fraction(files: Iterable[Path]) -> float | None:
    """Share of the files' bytes in the page cache, 0 to 1; None where the kernel does not tell.

    Asks mincore(2) about a mapping of each file, without touching a page of it. Since Linux 5.2
    the kernel answers truthfully only for files that the caller owns or may write.
    """
    resident = total = 0
    for file in files:
        pages = _resident_pages(file)
        if pages is None:
            return None
        resident += pages
        total += -(-file.stat().st_size // mmap.PAGESIZE)
    return resident / total if total else None


def note_page_cache(files: Sequence[Path], recorder: Recorder) -> None:
    """Record how much of the weights files the page cache holds before they are loaded."""
    recorder.fact(
        "page_cache",
        {
            "controlled": False,
            "resident_fraction_before_load": resident_fraction(files) if files else None,
            "bytes": sum(file.stat().st_size for file in files),
        },
    )


def _resident_pages(file: Path) -> int | None:
    size = file.stat().st_size
    if size == 0:
        return 0
    if not (os.access(file, os.W_OK) or file.stat().st_uid == os.getuid()):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    handle = os.open(file, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
    finally:
        os.close(handle)
    if address == _MAP_FAILED:
        return None
    try:
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(address, size, flags) != 0:
            return None
        return bytes(flags).translate(_LOWEST_BIT).count(1)
    finally:
        libc.munmap(address, size)
