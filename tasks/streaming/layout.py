"""Where each part of a decoder lies in its safetensors files, and how to read it at one go.

::

    file    | ... | q_proj | k_proj | ... | norm |   ...      tensors, in whatever order
    extent  |<----- one read ----->|      |<---->|            neighbours in the file, merged
    buffer  |..q_proj|k_proj|...   |..norm|                   each extent on pages of its own,
                                                              each tensor on a 64-byte boundary

A unit is what is brought into memory together: the embedding, one layer, the last norm, the head.
A read past the page cache takes whole pages into whole pages: those that an extent lies in fit
into the room it has in the buffer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.measure import InputError

# torch allocates on it, and kernels choose their way by it: equal tokens need equal alignment.
ALIGNMENT_BYTES = 64
# What the kernel reads past the page cache in, whatever the disk's own block is.
PAGE_BYTES = 4096

# Types of safetensors -> torch; those that streamed weights may have.
DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "U8": "uint8",
}


@dataclass(frozen=True)
class TensorPlace:
    """One tensor in a file: ``nbytes`` from ``offset``, of a torch ``dtype`` and ``shape``."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A tensor of a unit, where it lies on disk, and where it comes to lie in the buffer."""

    key: str
    place: TensorPlace
    buffer_offset: int


@dataclass(frozen=True)
class Extent:
    """One read: ``nbytes`` of ``file`` from ``offset`` into the buffer at ``buffer_offset``."""

    file: Path
    offset: int
    nbytes: int
    buffer_offset: int

    @property
    def lead_bytes(self) -> int:
        """From the beginning of the extent's first page in the file to the extent."""
        return self.offset % PAGE_BYTES

    @property
    def room_offset(self) -> int:
        """Where its pages begin in the buffer."""
        return self.buffer_offset - self.buffer_offset % PAGE_BYTES

    @property
    def room_bytes(self) -> int:
        """All of its pages."""
        return _up(self.lead_bytes + self.nbytes, PAGE_BYTES)


@dataclass(frozen=True)
class Unit:
    """What is brought into memory together.

    Attributes
    ----------
    name : str
        The module's, ``model.layers.3``.
    kind : str
        ``embedding``, ``layer``, ``norm`` or ``head``.
    buffer_bytes, read_bytes : int
        Room it takes in a buffer, alignment included; bytes read from disk.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]
    extents: tuple[Extent, ...]
    buffer_bytes: int

    @property
    def read_bytes(self) -> int:
        """Bytes that come from the disk."""
        return sum(extent.nbytes for extent in self.extents)


def places_in(files: Iterable[Path]) -> dict[str, TensorPlace]:
    """Every tensor of whole safetensors files, by name.

    Raises
    ------
    InputError
        If a tensor is of a type that weights do not have.
    """
    found: dict[str, TensorPlace] = {}
    for file in files:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise InputError(
                    f"{name} is of type {entry['dtype']}, which is not streamed",
                    where=str(file),
                    fix=f"Known: {', '.join(DTYPES)}",
                )
            begin, end = entry["data_offsets"]
            found[name] = TensorPlace(
                file,
                8 + length + begin,
                end - begin,
                DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
            )
    return found


def lay_out(name: str, kind: str, tensors: Mapping[str, TensorPlace]) -> Unit:
    """A unit of ``tensors``, its reads merged where neighbours in a file stay aligned."""
    parts: list[Part] = []
    extents: list[Extent] = []
    room = 0
    for key, place in sorted(tensors.items(), key=lambda item: (item[1].file, item[1].offset)):
        last = extents[-1] if extents else None
        if (
            last is not None
            and last.file == place.file
            and last.offset + last.nbytes == place.offset
            and (last.buffer_offset + last.nbytes) % ALIGNMENT_BYTES == 0
        ):
            start = last.buffer_offset + last.nbytes
            extents[-1] = Extent(
                last.file, last.offset, last.nbytes + place.nbytes, last.buffer_offset
            )
        else:
            extents.append(extent_at(place.file, place.offset, place.nbytes, room))
            start = extents[-1].buffer_offset
        parts.append(Part(key, place, start))
        room = extents[-1].room_offset + extents[-1].room_bytes
    return Unit(name, kind, tuple(parts), tuple(extents), room)


def extent_at(file: Path, offset: int, nbytes: int, room_offset: int = 0) -> Extent:
    """The read of ``nbytes`` from ``offset`` of ``file`` into pages from ``room_offset`` on.

    They come to lie as far into a page as in the file, down to the next boundary of 64 bytes.
    """
    lead = offset % PAGE_BYTES
    return Extent(file, offset, nbytes, room_offset + lead - lead % ALIGNMENT_BYTES)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def largest_bytes(units: Sequence[Unit]) -> int:
    """Room of the largest unit; 0 without any."""
    return max((unit.buffer_bytes for unit in units), default=0)
