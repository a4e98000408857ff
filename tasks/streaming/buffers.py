"""Memory that units are read into: one buffer used again and again, or new memory per tensor.

Buffers are host memory that a disk can write to by itself: whole pages, as few and as large as
there are.

A read past the page cache is cut into as many requests as its target has separate pieces of
physical memory; on huge pages that is a few hundred times fewer than on ordinary ones.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.tasks.streaming.intervals import Span
from orchestrator.tasks.streaming.layout import PAGE_BYTES, Unit, extent_at
from orchestrator.tasks.streaming.reader import Reader

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


@dataclass
class Buffer:
    """Room for one unit: a buffer on the host and, with a GPU, one on it; None: made per tensor."""

    host: torch.Tensor | None
    device: torch.Tensor | None


class Loader:
    """Reads one unit from disk and brings it to the device.

    Parameters
    ----------
    capacity_bytes : int
        Room of the largest unit.
    single : bool
        One buffer a slot, allocated once; otherwise new memory for every tensor.
    pinned : bool
        Page-locked host memory; CUDA only.
    """

    def __init__(
        self,
        reader: Reader,
        device: torch.device,
        *,
        capacity_bytes: int,
        single: bool,
        pinned: bool,
    ) -> None:
        self._reader = reader
        self._device = device
        self._capacity_bytes = capacity_bytes
        self._single = single
        self._pinned = pinned
        self._stream: Any = None
        if device.type == "cuda":
            import torch

            self._stream = torch.cuda.Stream(device)

    def new_slot(self, capacity_bytes: int | None = None) -> Buffer:
        """A slot; its buffers are allocated here, pinned where that was asked for."""
        if not self._single:
            return Buffer(None, None)
        room = self._capacity_bytes if capacity_bytes is None else capacity_bytes
        host = lasting(room, pinned=self._pinned)
        on_device = None
        if self._stream is not None:
            import torch

            on_device = torch.empty(room, dtype=torch.uint8, device=self._device)
        return Buffer(host, on_device)

    def load(self, unit: Unit, slot: Buffer, span: Span) -> dict[str, torch.Tensor]:
        """The unit's tensors on the device as flat bytes, by key; valid until the slot is reused.

        ``span`` books ``disk_read``, ``pin`` and ``h2d``.
        """
        if slot.host is None:
            return self._load_each(unit, span)
        view = memoryview(slot.host.numpy())
        with span("disk_read", unit.name):
            for extent in unit.extents:
                self._reader.read(extent, view)
        flat = slot.host
        if slot.device is not None:
            with span("h2d", unit.name):
                self._copy([(slot.host, slot.device)], unit.buffer_bytes)
            flat = slot.device
        return {
            part.key: flat[part.buffer_offset : part.buffer_offset + part.place.nbytes]
            for part in unit.parts
        }

    def _load_each(self, unit: Unit, span: Span) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        with span("disk_read", unit.name):
            for part in unit.parts:
                extent = extent_at(part.place.file, part.place.offset, part.place.nbytes)
                host = passing(extent.room_bytes)
                self._reader.read(extent, memoryview(host.numpy()))
                tensors[part.key] = host[extent.buffer_offset :][: extent.nbytes]
        if self._stream is None:
            return tensors
        if self._pinned:
            with span("pin", unit.name):
                tensors = {key: host.pin_memory() for key, host in tensors.items()}
        import torch

        with span("h2d", unit.name):
            # Made in the copy stream and freed to it: the model has synchronised before that.
            with torch.cuda.stream(self._stream):
                on_device = {
                    key: torch.empty(host.numel(), dtype=torch.uint8, device=self._device)
                    for key, host in tensors.items()
                }
            self._copy([(tensors[key], on_device[key]) for key in tensors], None)
        return on_device

    def _copy(self, pairs: list[tuple[torch.Tensor, torch.Tensor]], nbytes: int | None) -> None:
        """Copy in the copy stream and wait for its event: this thread waits, the model does not."""
        import torch

        done = torch.cuda.Event(blocking=True)  # waits asleep: the model's thread needs the core
        with torch.cuda.stream(self._stream):
            for host, device in pairs:
                device[:nbytes].copy_(host[:nbytes], non_blocking=self._pinned)
            done.record()
        done.synchronize()
