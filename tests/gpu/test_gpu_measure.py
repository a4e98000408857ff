"""CUDA clock and memory peaks on a real GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import CudaClock, CudaMemory, clock_for, timed, tracker

# The driver's control node: no need to import torch for seconds to learn that there is no GPU.
pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists(), reason="no NVIDIA driver on this machine"
)

MIB = 1 << 20


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch cannot use CUDA here")
    return torch


def test_marks_see_the_device_and_the_host_does_not_wait(torch: Any) -> None:
    clock = clock_for("cuda")
    assert isinstance(clock, CudaClock)
    a = torch.ones(4096, 4096, device="cuda")
    for _ in range(3):  # the library's own start-up belongs to no interval
        a @ a
    clock.sync()
    begin_ns = clock.now_ns()
    marks = [clock.mark()]
    for _ in range(20):
        a @ a
        marks.append(clock.mark())
    host_s = (clock.now_ns() - begin_ns) / 1e9
    intervals = clock.seconds_between(marks)
    assert len(intervals) == 20
    assert all(seconds > 0.0 for seconds in intervals)
    assert host_s < sum(intervals)


def test_marks_and_a_synchronised_span_agree(torch: Any) -> None:
    clock = clock_for("cuda")
    a = torch.ones(4096, 4096, device="cuda")
    a @ a
    with timed(clock) as span:
        marks = [clock.mark()]
        for _ in range(50):
            a @ a
            marks.append(clock.mark())
        intervals = clock.seconds_between(marks)
    assert sum(intervals) == pytest.approx(span.seconds, rel=0.1)


def test_the_allocator_s_peak_is_of_its_phase(torch: Any) -> None:
    memory = tracker("cuda")
    assert isinstance(memory, CudaMemory)
    held = memory.held_bytes()
    memory.reset()
    block = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    assert memory.held_bytes() - held >= 64 * MIB
    del block
    assert memory.peak_bytes() - held >= 64 * MIB
    memory.reset()
    assert memory.peak_bytes() - held < 64 * MIB
