"""Host memory that a disk can write to by itself: whole pages, as few and as large as there are.

A read past the page cache is cut into as many requests as its target has separate pieces of
physical memory; on huge pages that is a few hundred times fewer than on ordinary ones.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from orchestrator.tasks.streaming.layout import PAGE_BYTES

if TYPE_CHECKING:
    import torch

_HUGE_PAGE_BYTES = 2 << 20


def lasting(nbytes: int, *, pinned: bool = False) -> torch.Tensor:
    """Memory to be used again and again: uint8, (nbytes,), present from now on, on huge pages.

    Parameters
    ----------
    pinned : bool
        Page-locked by CUDA, on pages of its choice.
    """
    import torch

    if pinned:
        return _aligned(
            torch.empty(nbytes + PAGE_BYTES, dtype=torch.uint8, pin_memory=True), nbytes, PAGE_BYTES
        )
    if nbytes < _HUGE_PAGE_BYTES:
        return passing(nbytes).fill_(0)
    # Private: shared memory, the default, gets no huge pages.
    area = mmap.mmap(-1, nbytes + _HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: ordinary pages
            area.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(area, dtype=torch.uint8)
    # Touched now: no page fault in the first step.
    return _aligned(whole, nbytes, _HUGE_PAGE_BYTES).fill_(0)


def passing(nbytes: int) -> torch.Tensor:
    """Memory for one use: uint8, (nbytes,), page-aligned, as the allocator gives it."""
    import torch

    return _aligned(torch.empty(nbytes + PAGE_BYTES, dtype=torch.uint8), nbytes, PAGE_BYTES)


def _aligned(whole: torch.Tensor, nbytes: int, alignment: int) -> torch.Tensor:
    begin = -whole.data_ptr() % alignment
    return whole[begin : begin + nbytes]
