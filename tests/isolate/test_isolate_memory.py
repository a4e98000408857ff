from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.isolate import linux
from orchestrator.isolate import memory_watch as memory
from orchestrator.isolate.memory_watch import MemoryWatch


class Machine:
    """Resident and proportional sets that a test sets; counts how often the costly one is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident = {1: 0}
        self.proportional: dict[int, int | None] = {1: 0}
        self.confirmations = 0
        self.now_s = 0.0
        monkeypatch.setattr(memory, "resident_bytes", lambda pid: self.resident[pid])
        monkeypatch.setattr(memory, "proportional_bytes", self._proportional)
        monkeypatch.setattr(memory, "descendants", lambda pid: [p for p in self.resident if p > 1])

    def _proportional(self, pid: int) -> int | None:
        self.confirmations += 1
        return self.proportional[pid]

    def look(self, watch: MemoryWatch) -> bool:
        self.now_s += 0.1
        return watch.exceeded()


def test_shared_pages_do_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.resident = {1: 800, 2: 800}
    machine.proportional = {1: 450, 2: 450}
    watch = MemoryWatch(1, 1000, now=lambda: machine.now_s)
    assert not machine.look(watch)
    assert watch.peak_bytes == 900
    machine.proportional = {1: 600, 2: 450}
    machine.resident = {1: 950, 2: 800}
    assert machine.look(watch)
    assert watch.peak_bytes == 1050


def test_the_costly_look_is_taken_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.resident, machine.proportional = {1: 1500}, {1: 500}
    watch = MemoryWatch(1, 1000, now=lambda: machine.now_s)
    for _ in range(50):
        assert not machine.look(watch)
    assert machine.confirmations <= 6


def test_where_proportional_sets_are_hidden_resident_ones_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    machine.resident, machine.proportional = {1: 1001}, {1: None}
    assert machine.look(MemoryWatch(1, 1000, now=lambda: machine.now_s))


def test_real_readings_agree_with_each_other() -> None:
    held = b"\1" * (64 << 20)
    resident = linux.resident_bytes(os.getpid())
    proportional = linux.proportional_bytes(os.getpid())
    assert proportional is not None
    assert len(held) < proportional <= resident * 1.01
    assert linux.resident_bytes(2**22 + 1) == 0
    assert linux.proportional_bytes(2**22 + 1) is None


def test_the_peak_of_a_killed_process_is_not_that_since_a_phase_began(
    probe: Callable[..., AttemptReport],
) -> None:
    report = probe(
        "import mmap, signal, time\n"
        "from orchestrator.measure import HostMemory\n"
        "with mmap.mmap(-1, 96 << 20) as block:\n"
        "    block[:: mmap.PAGESIZE] = b'x' * ((96 << 20) // mmap.PAGESIZE)\n"
        "    time.sleep(0.5)\n"
        "HostMemory().reset()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        watched=True,
    )
    assert report.outcome is Outcome.CRASHED
    assert report.metrics["process_memory_bytes"].value > 96 << 20
