"""Measures what the disk and the bus give, with the files and buffers that streaming uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tasks.stream.layout import Unit, largest_bytes
from tasks.stream.reader import Reader

if TYPE_CHECKING:
    import torch

# Enough to pass every cache of a disk controller by, little enough to take a second.
_ENOUGH_BYTES = 512 << 20


def disk_bytes_per_s(units: Sequence[Unit], reader: Reader, *, workers: int) -> float:
    """Read the units' own bytes with ``workers`` threads, nothing else running; bytes a second."""
    chosen: list[Unit] = []
    for unit in units:
        if sum(u.read_bytes for u in chosen) >= _ENOUGH_BYTES:
            break
        chosen.append(unit)
    buffers = [memoryview(bytearray(largest_bytes(chosen))) for _ in range(workers)]

    def read(index: int) -> None:
        for unit in chosen[index::workers]:
            for extent in unit.extents:
                target = buffers[index][extent.buffer_offset :][: extent.nbytes]
                reader.read_into(extent.file, extent.offset, target)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        begin_s = time.perf_counter()
        list(pool.map(read, range(workers)))
        spent_s = time.perf_counter() - begin_s
    return sum(unit.read_bytes for unit in chosen) / spent_s


def h2d_bytes_per_s(nbytes: int, device: torch.device, *, pinned: bool) -> float:
    """Copy ``nbytes`` to the GPU a few times; bytes a second of the best. Needs CUDA: to be tried.

    The best, not the median: it stands for what the bus can do.
    """
    import torch

    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    best_s = float("inf")
    for _ in range(5):
        torch.cuda.synchronize(device)
        begin_s = time.perf_counter()
        target.copy_(host, non_blocking=pinned)
        torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - begin_s)
    return nbytes / best_s
