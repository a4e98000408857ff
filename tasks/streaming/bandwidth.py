"""Measures what the disk and the bus give, with the files and buffers that streaming uses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from orchestrator.tasks.streaming.buffers import lasting
from orchestrator.tasks.streaming.layout import PAGE_BYTES, Extent, Unit, extent_at
from orchestrator.tasks.streaming.reader import Reader

if TYPE_CHECKING:
    import torch

# Enough to pass every cache of a disk controller by, little enough to take a second.
_ENOUGH_BYTES = 512 << 20
_THREADS = (1, 2)


class DiskProbe:
    """What the disk gives where nothing else runs, in rounds between the sequences.

    In rounds, because disks are shared and change from minute to minute: what is held against each
    other was measured in turn. Made before the budget is, for its memory is not streaming's.

    Parameters
    ----------
    units : sequence of Unit
        Whose bytes are read.
    reader : Reader
        The best way to read them.
    """

    def __init__(self, units: Sequence[Unit], reader: Reader) -> None:
        self._reader = reader
        self._chunks = _chunks(units, reader.chunk_bytes)
        self._buffers = [lasting(reader.chunk_bytes + PAGE_BYTES) for _ in range(max(_THREADS))]
        self._rates: dict[int, list[float]] = {count: [] for count in _THREADS}

    def round(self) -> None:
        """Read once with each number of threads."""
        for count, rates in self._rates.items():
            rates.append(self._bytes_per_s(count))

    @property
    def bytes_per_s(self) -> float:
        """Of the best round: it stands for what the disk can do."""
        return max(max(rates) for rates in self._rates.values())

    def _bytes_per_s(self, threads: int) -> float:
        def read(index: int) -> None:
            buffer = memoryview(self._buffers[index].numpy())
            for chunk in self._chunks[index::threads]:
                self._reader.read(chunk, buffer)

        with ThreadPoolExecutor(max_workers=threads) as pool:
            begin_s = time.perf_counter()
            list(pool.map(read, range(threads)))
            spent_s = time.perf_counter() - begin_s
        return sum(chunk.nbytes for chunk in self._chunks) / spent_s


def _chunks(units: Sequence[Unit], chunk_bytes: int) -> list[Extent]:
    """What is read in a round, in the order of the files."""
    found: list[Extent] = []
    left = _ENOUGH_BYTES
    for extent in (extent for unit in units for extent in unit.extents):
        for begin in range(0, extent.nbytes, chunk_bytes):
            if left <= 0:
                return found
            nbytes = min(chunk_bytes, extent.nbytes - begin)
            found.append(extent_at(extent.file, extent.offset + begin, nbytes))
            left -= nbytes
    return found


def h2d_bytes_per_s(nbytes: int, device: torch.device, *, pinned: bool) -> float:
    """Copy ``nbytes`` to the GPU a few times; bytes a second of the best. Needs CUDA.

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
