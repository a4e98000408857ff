"""Peaks of memory by measured phase, taken outside what is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from orchestrator.measure import HostMemory, MemoryTracker, Recorder
from orchestrator.measure.sampling import RecordedPhases


class _WatchedPhases(RecordedPhases):
    def __init__(self, recorder: Recorder, memory: PhaseMemory) -> None:
        super().__init__(recorder)
        self._memory = memory

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with self._memory.watching(name), super().__call__(name):
            yield

    def together(self, name: str) -> AbstractContextManager[Any]:
        return self._memory.watching(name)


class PhaseMemory:
    """Peaks of each measured phase over what was held once the model was loaded.

    Parameters
    ----------
    weights_bytes : int
        Made before the model is loaded, by a program that maps its weights and sets room for all
        else aside at once: what they will take, so that all else counts.
    """

    def __init__(self, memory: MemoryTracker, *, weights_bytes: int = 0) -> None:
        self._memory = memory
        held = memory.held_bytes()
        self._held = None if held is None else held + weights_bytes
        self._reason = memory.absent_reason
        self._peaks: dict[str, int] = {}
        self._process_bytes: int | None = None

    @property
    def highest_bytes(self) -> int | None:
        """The highest peak of any measured phase; None before the first."""
        return max(self._peaks.values(), default=None)

    @property
    def highest_over_bytes(self) -> int | None:
        """The highest peak over what was held before; None where that cannot be told."""
        highest = self.highest_bytes
        if highest is None or self._held is None or highest < self._held:
            return None
        return highest - self._held

    def phases(self, recorder: Recorder) -> RecordedPhases:
        """Phases of ``recorder`` whose peaks are taken too, outside what is timed."""
        return _WatchedPhases(recorder, self)

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Take the peak of what is done inside, whatever phases it is of."""
        self._memory.reset()
        try:
            yield
        finally:  # a phase that ran out of memory is the one whose peak is asked for
            self._see(name, self._memory.peak_bytes())

    def record(self, recorder: Recorder) -> None:
        """Write the peaks, each phase's own and the highest, and the whole process's."""
        for name, peak in self._peaks.items():
            self._record_over(recorder, f"{name}.peak_memory_over_weights_bytes", peak)
        self._record_over(recorder, "peak_memory_over_weights_bytes", self.highest_bytes)
        if self._process_bytes is not None:
            recorder.value("process_memory_bytes", "bytes", self._process_bytes)

    def _see(self, name: str, peak: int | None) -> None:
        if peak is None:  # first: the next figure that is asked for has another reason
            self._reason = self._memory.absent_reason
        else:
            self._peaks[name] = max(peak, self._peaks.get(name, 0))
        self._see_process()

    def _see_process(self) -> None:
        # On CUDA telemetry asks the driver for it.
        if not isinstance(self._memory, HostMemory):
            return
        found = self._memory.proportional_peak_bytes()
        if found is not None:
            self._process_bytes = max(self._process_bytes or 0, found)

    def _record_over(self, recorder: Recorder, name: str, peak: int | None) -> None:
        if peak is None or self._held is None:
            recorder.absent(name, "bytes", self._reason or "no measured phase")
        elif peak < self._held:
            recorder.absent(name, "bytes", "less was held in the phase than before it")
        else:
            recorder.value(name, "bytes", peak - self._held)
