"""Holds streaming to the memory it may use: refused before it starts, or ended when it exceeds it.

Counted is what the process holds on its device beyond what it held before the first weight was
read; the page cache is not, it belongs to the system.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.measure import InputError, OutOfMemory, tracker
from orchestrator.tasks.streaming.layout import Unit

if TYPE_CHECKING:
    import torch


class Budget:
    """A limit on memory; None for no limit.

    Parameters
    ----------
    limit_bytes : int or None
    device : torch.device
    """

    def __init__(self, limit_bytes: int | None, device: torch.device) -> None:
        self._limit_bytes = limit_bytes
        self._device = device
        self._memory = tracker(device.type)
        self._before = self._memory.held_bytes() or 0
        self._memory.reset()
        self.peak_bytes: int | None = None
        if limit_bytes is not None and device.type == "cuda":
            import torch

            total = torch.cuda.get_device_properties(device).total_memory
            allowed = self._before + limit_bytes
            torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)

    def end(self) -> None:
        """What follows is not streaming: it is not held to the limit."""
        self.check()
        if self._limit_bytes is not None and self._device.type == "cuda":
            import torch

            torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def expect(self, needed_bytes: int, units: Sequence[Unit]) -> None:
        """Refuse what cannot fit.

        Raises
        ------
        InputError
            If one unit alone is larger than the limit.
        OutOfMemory
            If residents and slots together are.
        """
        if self._limit_bytes is None:
            return
        largest = max(units, key=lambda unit: unit.buffer_bytes)
        if largest.buffer_bytes > self._limit_bytes:
            raise InputError(
                f"{largest.name} alone takes {largest.buffer_bytes} bytes, the budget is "
                f"{self._limit_bytes}",
                where="task.budget_bytes",
                fix=f"Give at least {needed_bytes}",
            )
        if needed_bytes > self._limit_bytes:
            raise self._error(needed_bytes, "will take")

    def check(self) -> None:
        """Look at the peak so far; :class:`OutOfMemory` where it is over the limit."""
        peak = self._memory.peak_bytes()
        if peak is None:
            return
        self.peak_bytes = max(self.peak_bytes or 0, peak - self._before)
        if self._limit_bytes is not None and self.peak_bytes > self._limit_bytes:
            raise self._error(self.peak_bytes, "took")

    @property
    def absent_reason(self) -> str:
        """Why there is no peak."""
        return self._memory.absent_reason or "nothing has run"

    def _error(self, nbytes: int, verb: str) -> OutOfMemory:
        return OutOfMemory(
            f"streaming {verb} {nbytes} bytes, the budget is {self._limit_bytes}",
            where="task.budget_bytes",
            fix="Lower task.depth, keep less resident, or raise the budget",
            device=self._device.type == "cuda",
        )
