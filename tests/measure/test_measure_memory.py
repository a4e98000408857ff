"""Memory peaks: of this real process, and of /proc files that cannot or will not tell."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from orchestrator.measure import HostClock, HostMemory, Recorder, tracker
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.recorder import Event

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_is_of_its_phase_and_not_of_the_one_before() -> None:
    memory = tracker("cpu")
    held = memory.held_bytes()
    assert held is not None
    memory.reset()
    # Not of the heap: what is freed there may stay with the process.
    with mmap.mmap(-1, 64 * MIB) as block:
        block[:: mmap.PAGESIZE] = b"x" * (64 * MIB // mmap.PAGESIZE)
    peak = memory.peak_bytes()
    if peak is None:
        pytest.skip(f"this kernel cannot tell: {memory.absent_reason}")
    assert peak - held > 48 * MIB
    memory.reset()
    later = memory.peak_bytes()
    if later is None:
        pytest.skip(f"this kernel cannot reset: {memory.absent_reason}")
    assert later < peak - 48 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shared_pages_count_in_part() -> None:
    memory = HostMemory()
    held, shared_out = memory.held_bytes(), memory.pss_bytes()
    assert held is not None
    if shared_out is None:
        pytest.skip(f"this kernel cannot tell: {memory.absent_reason}")
    assert 0 < shared_out <= held * 1.05


def proc(path: Path, *, rss: int, peak: int) -> Path:
    (path / "status").write_text(f"Name:\tx\nVmHWM:\t{peak} kB\nVmRSS:\t{rss} kB\n")
    return path


def test_a_peak_with_shared_pages_shared_out(tmp_path: Path) -> None:
    memory = HostMemory(proc(tmp_path, rss=100_000, peak=130_000))
    assert memory.proportional_peak_bytes() is None
    (tmp_path / "smaps_rollup").write_text("x\nRss: 100000 kB\nPss: 40000 kB\n")
    # What it rose above now is its own; of the rest 60,000 kB are others' as well.
    assert memory.proportional_peak_bytes() == 70_000 * 1024


def test_a_kernel_that_does_not_reset_tells_only_a_new_peak(tmp_path: Path) -> None:
    memory = HostMemory(proc(tmp_path, rss=100_000, peak=900_000))
    memory.reset()  # writes clear_refs, which nothing listens to
    assert memory.peak_bytes() is None
    assert memory.absent_reason == "the peak before this phase was higher and cannot be reset here"
    proc(tmp_path, rss=100_000, peak=950_000)
    assert memory.peak_bytes() == 950_000 * 1024
    assert memory.absent_reason is None


def test_a_forbidden_reset_is_no_error(tmp_path: Path) -> None:
    proc(tmp_path, rss=100, peak=900)
    (tmp_path / "clear_refs").mkdir()  # cannot be written to, by root either
    memory = HostMemory(tmp_path)
    memory.reset()
    assert memory.peak_bytes() is None


def test_what_proc_does_not_have_is_none_with_a_reason(tmp_path: Path) -> None:
    memory = HostMemory(tmp_path)
    assert memory.held_bytes() is None
    assert "cannot be read" in (memory.absent_reason or "")
    (tmp_path / "status").write_text("Name:\tkernel thread\n")
    assert memory.peak_bytes() is None
    assert "has no VmHWM" in (memory.absent_reason or "")


def test_why_a_phases_peak_is_not_known_is_said_with_it(tmp_path: Path) -> None:
    proc(tmp_path, rss=100_000, peak=900_000)
    (tmp_path / "smaps_rollup").write_text("x\nPss: 40000 kB\n")
    events: list[Event] = []
    memory = PhaseMemory(HostMemory(tmp_path))
    with memory.watching("decode"):  # under a peak of earlier work, which nothing resets
        pass
    memory.record(Recorder(events.append, HostClock(), tmp_path))
    told = {event["name"]: event for event in events}
    assert "cannot be reset here" in told["peak_memory_over_weights_bytes"]["reason"]
    assert told["process_memory_bytes"]["value"] == 840_000 * 1024
