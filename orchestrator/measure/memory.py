"""Peaks of memory between two points: the host process, or the CUDA allocator.

::

    memory = tracker(device_kind)
    held = memory.held_bytes()
    memory.reset()
    ...                                  the phase
    peak = memory.peak_bytes()           None where it cannot be told: see memory.absent_reason

The figures of one tracker may be subtracted from each other: both are of the same kind
(resident set on the host, the caching allocator's live bytes on CUDA).
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

_KIB = 1024


class MemoryTracker(Protocol):
    """Held and peak bytes of this process on one kind of device."""

    @property
    def absent_reason(self) -> str | None:
        """Why the last figure asked for was None; None where it was not."""
        ...

    def reset(self) -> None:
        """Forget earlier peaks: the next peak is of what follows."""
        ...

    def peak_bytes(self) -> int | None:
        """Most bytes held at once since :meth:`reset`; None where that cannot be told."""
        ...

    def held_bytes(self) -> int | None:
        """Bytes held now; None where that cannot be told."""
        ...


class HostMemory:
    """Resident set of this process, its peak reset through ``/proc/self/clear_refs``.

    A forked child shares pages with its server until it writes to them; they count in full here,
    and cancel in a difference. :meth:`pss_bytes` shares them out.

    Parameters
    ----------
    proc : Path
        ``/proc/self``; a test gives its own.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._proc = proc
        self._peak_before: int | None = None
        self.absent_reason: str | None = None

    def reset(self) -> None:
        """Reset the kernel's high-water mark; where that is not allowed, remember it."""
        # 5 resets the resident set's high-water mark (Linux 4.0, proc(5)); where it is not
        # allowed the lifetime peak goes on, and tells something only if it rises.
        try:
            (self._proc / "clear_refs").write_text("5")
        except OSError:
            self._peak_before = self._status("VmHWM")
            return
        peak, held = self._status("VmHWM"), self._status("VmRSS")
        took = peak is not None and held is not None and peak <= held * 1.05 + (1 << 20)
        self._peak_before = None if took else peak

    def peak_bytes(self) -> int | None:
        """Highest resident set since :meth:`reset`; None where an earlier peak hides it."""
        peak = self._status("VmHWM")
        if peak is None:
            return None
        if self._peak_before is not None and peak <= self._peak_before:
            self.absent_reason = "the peak before this phase was higher and cannot be reset here"
            return None
        return peak

    def held_bytes(self) -> int | None:
        """The resident set now."""
        return self._status("VmRSS")

    def pss_bytes(self) -> int | None:
        """Proportional set size now: shared pages divided among those who share them.

        Walks the page tables (about 1 ms a GiB): outside timed regions only.
        """
        return self._field("smaps_rollup", "Pss")

    def proportional_peak_bytes(self) -> int | None:
        """Peak since :meth:`reset` with shared pages shared out.

        The proportional set size now, and what the resident set was higher at its peak: memory of
        this process alone, for the pages it shares with its fork server were there before.
        """
        pss, held, peak = self.pss_bytes(), self.held_bytes(), self._status("VmHWM")
        if pss is None or held is None or peak is None:
            return None
        return pss + max(0, peak - held)

    def _status(self, name: str) -> int | None:
        return self._field("status", name)

    def _field(self, file: str, name: str) -> int | None:
        self.absent_reason = None
        try:
            lines = (self._proc / file).read_text().splitlines()
        except OSError as error:
            self.absent_reason = f"{self._proc / file} cannot be read: {error.strerror}"
            return None
        for line in lines:
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * _KIB
        self.absent_reason = f"{self._proc / file} has no {name}"
        return None


class CudaMemory:
    """Live bytes of torch's caching allocator, summed over the devices this process sees.

    With several devices the peak is the sum of each one's own, an upper bound.
    """

    absent_reason: str | None = None

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda

    def reset(self) -> None:
        """Reset the allocator's peak on every device."""
        for device in range(self._cuda.device_count()):
            self._cuda.reset_peak_memory_stats(device)

    def peak_bytes(self) -> int:
        """Most bytes in live tensors since :meth:`reset`, summed over devices."""
        return sum(
            self._cuda.max_memory_allocated(device) for device in range(self._cuda.device_count())
        )

    def held_bytes(self) -> int:
        """Bytes in live tensors now, summed over devices."""
        return sum(
            self._cuda.memory_allocated(device) for device in range(self._cuda.device_count())
        )

    def reserved_bytes(self) -> int:
        """Most bytes the allocator took from the device since :meth:`reset`, cache included."""
        return sum(
            self._cuda.max_memory_reserved(device) for device in range(self._cuda.device_count())
        )


def tracker(device_kind: str) -> MemoryTracker:
    """The tracker of a device kind: ``cpu`` or ``cuda``."""
    return CudaMemory() if device_kind == "cuda" else HostMemory()
