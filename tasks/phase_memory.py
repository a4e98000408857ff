"""Peaks of memory by measured phase, taken outside what is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.measure import HostMemory, MemoryTracker, Recorder


class PhaseMemory:
    """Peaks of each measured phase over what was held once the model was loaded."""

    def __init__(self, memory: MemoryTracker) -> None:
        self._memory = memory
        self._held = memory.held_bytes()
        self._reason = memory.absent_reason
        self._peaks: dict[str, int] = {}
        self._process_bytes: int | None = None

    @property
    def highest_bytes(self) -> int | None:
        """The highest peak of any measured phase; None before the first."""
        return max(self._peaks.values(), default=None)

    def phases(self, recorder: Recorder) -> Any:
        """A ``phase`` function that also takes the phase's peak, outside what is timed."""

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            self._memory.reset()
            try:
                with recorder.phase(name):
                    yield
            finally:  # a phase that ran out of memory is the one whose peak is asked for
                self._see(name, self._memory.peak_bytes())

        return phase

    def record(self, recorder: Recorder) -> None:
        """Write the peaks, each phase's own and the highest, and the whole process's."""
        for name, peak in self._peaks.items():
            self._record_over(recorder, f"{name}.peak_memory_over_weights_bytes", peak)
        self._record_over(recorder, "peak_memory_over_weights_bytes", self.highest_bytes)
        if self._process_bytes is not None:
            recorder.value("process_memory_bytes", "bytes", self._process_bytes)

    def _see(self, name: str, peak: int | None) -> None:
        if peak is None:
            self._reason = self._memory.absent_reason
            return
        self._peaks[name] = max(peak, self._peaks.get(name, 0))
        self._see_process(peak)

    def _see_process(self, peak: int) -> None:
        # On CUDA telemetry asks the driver for it. Here: the proportional set size now, and what
        # the resident set was higher at its peak, which is memory of this process alone.
        if not isinstance(self._memory, HostMemory):
            return
        pss, held = self._memory.pss_bytes(), self._memory.held_bytes()
        if pss is not None and held is not None:
            self._process_bytes = max(self._process_bytes or 0, pss + max(0, peak - held))

    def _record_over(self, recorder: Recorder, name: str, peak: int | None) -> None:
        if peak is None or self._held is None:
            recorder.absent(name, "bytes", self._reason or "no measured phase")
        elif peak < self._held:
            recorder.absent(name, "bytes", "less was held in the phase than before it")
        else:
            recorder.value(name, "bytes", peak - self._held)
