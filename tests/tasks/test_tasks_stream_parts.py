"""The parts of streaming by themselves: layout, ledger, throttle, pipeline, reader."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure import InputError
from orchestrator.measure.registry import find_task
from orchestrator.tasks.streaming.buffers import Loader, lasting
from orchestrator.tasks.streaming.intervals import (
    CuttingClock,
    StepLedger,
    best_rate,
    best_step_s,
    bottleneck,
    overlap_efficiency,
)
from orchestrator.tasks.streaming.layout import (
    ALIGNMENT_BYTES,
    PAGE_BYTES,
    TensorPlace,
    extent_at,
    lay_out,
    places_in,
)
from orchestrator.tasks.streaming.prefetch import AsyncPipeline
from orchestrator.tasks.streaming.reader import Reader, Throttle
from testing.clock import FakeClock

check = find_task("streaming").check


@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_a_layout_reads_every_byte_once_and_aligned(tmp_sizes: list[int]) -> None:
    places, offset = {}, 104
    for index, size in enumerate(tmp_sizes):
        places[f"t{index}"] = TensorPlace(Path("f"), offset, size, "uint8", (size,))
        offset += size
    unit = lay_out("u", "layer", places)
    assert unit.read_bytes == sum(tmp_sizes)
    rooms = [(e.room_offset, e.room_offset + e.room_bytes) for e in unit.extents]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(rooms))
    assert rooms[-1][1] <= unit.buffer_bytes
    assert all(part.buffer_offset % ALIGNMENT_BYTES == 0 for part in unit.parts)
    content = bytes(i % 251 for i in range(offset))
    buffer = bytearray(unit.buffer_bytes)
    for e in unit.extents:
        buffer[e.buffer_offset : e.buffer_offset + e.nbytes] = content[
            e.offset : e.offset + e.nbytes
        ]
    for part in unit.parts:
        place = part.place
        got = buffer[part.buffer_offset : part.buffer_offset + place.nbytes]
        assert got == content[place.offset : place.offset + place.nbytes]


def test_aligned_neighbours_are_one_read(saved_model: Path) -> None:
    places = places_in([saved_model / "model.safetensors"])
    layer = {name: place for name, place in places.items() if ".layers.0." in name}
    assert len(layer) == 9
    assert len(lay_out("model.layers.0", "layer", layer).extents) == 1


def test_a_ledger_adds_up_and_refuses_what_overlaps() -> None:
    clock = FakeClock()
    ledger = StepLedger(clock)
    ledger.cut()
    with ledger.foreground("wait", "a"):
        clock.advance(1.0)
    clock.advance(0.25)
    with ledger.foreground("forward", "a"):
        clock.advance(2.0)
    ledger.cut()
    (step,) = ledger.steps()
    assert (step["wait"], step["forward"], step["unattributed"]) == (1.0, 2.0, 0.25)
    (units,) = ledger.step_units()
    assert units["a"] == {"wait": 1.0, "forward": 2.0, "unattributed": 0.25}
    ledger.add("create", "a", 500_000_000, 1_100_000_000)
    with pytest.raises(ValueError, match="overlaps"):
        ledger.steps()


def test_busy_time_of_two_threads_at_once_counts_once_and_only_inside_the_cuts() -> None:
    clock = FakeClock()
    ledger = StepLedger(clock)
    with ledger.background("disk_read", "a"):
        clock.advance(1.0)
        ledger.cut()
        with ledger.background("disk_read", "b"):
            clock.advance(2.0)
        clock.advance(1.0)
    clock.advance(5.0)
    ledger.cut()
    assert ledger.busy_s("disk_read") == pytest.approx(3.0)


def test_a_mark_and_its_cut_are_one_moment_although_the_thread_lost_its_core() -> None:
    class Late(FakeClock):
        waits_s = iter([0.004])

        def mark(self) -> int:
            mark = super().mark()
            self.advance(next(self.waits_s, 0.0))
            return int(mark)

    clock = Late()
    ledger = StepLedger(clock)
    cutting = CuttingClock(clock, ledger)
    marks = [cutting.mark()]
    clock.advance(1.0)
    marks.append(cutting.mark())
    (step,) = ledger.steps()
    assert sum(step.values()) == sum(cutting.seconds_between(marks)) == 1.0


def test_the_account_of_overlap() -> None:
    busy_s = {"disk": 3.0, "compute": 2.0}
    assert overlap_efficiency(busy_s, 5.0) == 0.0
    assert overlap_efficiency(busy_s, 3.0) == 1.0
    assert overlap_efficiency({"disk": 3.0}, 3.0) is None
    assert bottleneck(busy_s) == "disk"
    assert best_step_s({"disk": 100.0}, {"disk": 50.0}, 1.5) == 2.0
    assert best_step_s({"disk": 100.0}, {"disk": 50.0}, 2.5) == 2.5
    # A disk that gave more under streaming than by itself can give it: no step beats the bound.
    tpots_s = (1.6, 1.5, 1.7)
    rate = best_rate(50.0, 100.0, tpots_s)
    assert rate == pytest.approx(100.0 / 1.5)
    assert min(tpots_s) >= best_step_s({"disk": 100.0}, {"disk": rate}, 1.0) - 1e-12
    assert best_rate(80.0, 100.0, tpots_s) == 80.0


def test_a_throttle_lets_so_many_bytes_pass_whoever_asks() -> None:
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    throttle = Throttle(100.0, now=lambda: now_s[0], sleep=sleep)
    due = [throttle.reserve(50), throttle.reserve(150)]
    assert due == [0.5, 2.0]
    throttle.wait_until(due[1])
    assert now_s[0] == 2.0
    assert throttle.reserve(100) == 3.0


class _SlowFirst(Loader):
    """Reads units out of order: the first of each pair is held back until the second is there."""

    def __init__(self) -> None:
        self.second = threading.Event()

    def new_slot(self, capacity_bytes: int | None = None) -> Any:
        return object()

    def load(self, unit: Any, slot: Any, span: Any) -> dict[str, Any]:
        if unit.name == "a":
            assert self.second.wait(10)
        elif unit.name == "b":
            self.second.set()
        elif unit.name == "bad":
            raise InputError("no such byte")
        return {}


def _unit(name: str) -> Any:
    return lay_out(name, "layer", {name: TensorPlace(Path("f"), 0, 4, "uint8", (4,))})


@pytest.fixture
def pipelines() -> Iterator[list[AsyncPipeline]]:
    made: list[AsyncPipeline] = []
    yield made
    for pipeline in made:
        pipeline.close()


def test_units_come_in_order_whichever_worker_is_first(pipelines: list[AsyncPipeline]) -> None:
    ring = [_unit("a"), _unit("b")]
    pipeline = AsyncPipeline(ring, _SlowFirst(), StepLedger(FakeClock()), depth=2, workers=2)
    pipelines.append(pipeline)
    for unit in ring * 5:
        loaded = pipeline.take(unit)
        assert loaded.unit is unit
        pipeline.release(loaded)
    with pytest.raises(RuntimeError, match="asked for b"):
        pipeline.take(ring[1])


def test_a_settled_pipeline_has_read_all_it_has_room_for(pipelines: list[AsyncPipeline]) -> None:
    ring = [_unit("c"), _unit("d"), _unit("e")]
    pipeline = AsyncPipeline(ring, _SlowFirst(), StepLedger(FakeClock()), depth=1, workers=1)
    pipelines.append(pipeline)
    for unit in ring:
        pipeline.release(pipeline.take(unit))
        pipeline.settle()
        assert len(pipeline._ready) == 2


def test_a_worker_that_fails_fails_the_step(pipelines: list[AsyncPipeline]) -> None:
    ring = [_unit("bad")]
    pipelines.append(AsyncPipeline(ring, _SlowFirst(), StepLedger(FakeClock()), depth=1, workers=1))
    with pytest.raises(InputError, match="no such byte"):
        pipelines[0].take(ring[0])


@pytest.mark.parametrize("offset", [0, 64, 104, 4096, 70_008])
@pytest.mark.parametrize("nbytes", [1, 4096, 100_000, 700_000])
def test_a_read_brings_every_byte_to_an_aligned_place(
    tmp_path: Path, offset: int, nbytes: int
) -> None:
    content = random.Random(offset + nbytes).randbytes(offset + nbytes + 5000)
    file = tmp_path / "f"
    file.write_bytes(content[: offset + nbytes + (5000 if nbytes == 4096 else 0)])
    extent = extent_at(file, offset, nbytes, room_offset=2 * PAGE_BYTES)
    for options in ({"direct": True}, {"cached": True}, {}):
        reader = Reader([file], **options)
        host = lasting(2 * PAGE_BYTES + extent.room_bytes)
        reader.read(extent, memoryview(host.numpy()))
        found = host[extent.buffer_offset :][:nbytes]
        assert found.data_ptr() % ALIGNMENT_BYTES == 0
        assert bytes(found.numpy()) == content[offset : offset + nbytes]
        reader.close()


def test_lasting_memory_asks_for_huge_pages() -> None:
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.exists():
        pytest.skip("no transparent huge pages")
    held = lasting(16 << 20)
    assert held.data_ptr() % (2 << 20) == 0
    begin = f"{held.data_ptr():x}"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        span = line.split(" ", 1)[0].split("-")
        if len(span) == 2 and int(span[0], 16) <= int(begin, 16) < int(span[1], 16):
            break
    flags = next(line for line in lines if line.startswith("VmFlags"))
    assert " hg" in flags


def test_direct_reads_that_are_refused_go_through_the_page_cache_and_say_why() -> None:
    file = Path("/proc/version")  # no such file system takes them
    if not file.exists():
        pytest.skip("no procfs")
    reader = Reader([file], direct=True)
    assert reader.mode == "page cache, dropped behind"
    assert reader.refusal
    assert "Invalid argument" in reader.refusal
    extent = extent_at(file, 0, 5)
    room = memoryview(bytearray(extent.room_bytes))
    reader.read(extent, room)
    assert bytes(room[:5]) == file.read_bytes()[:5]
    reader.close()


@pytest.mark.parametrize("direct", [False, True])
def test_what_was_read_is_not_left_in_the_page_cache(tmp_path: Path, direct: bool) -> None:
    from orchestrator.engines.residency import resident_fraction

    file = tmp_path / "f"
    file.write_bytes(bytes(1 << 20))
    whole = extent_at(file, 0, 1 << 20)
    host = lasting(whole.room_bytes + PAGE_BYTES)
    target = memoryview(host.numpy())
    if resident_fraction([file]) is None:
        pytest.skip("the kernel does not tell")
    reader = Reader([file], direct=direct)
    reader.drop_cache()
    before = resident_fraction([file])
    if before:
        pytest.skip("this file system keeps its pages")
    reader.read(whole, target)
    assert (resident_fraction([file]) or 0.0) < 0.1
    with pytest.raises(InputError, match="end early"):
        reader.read(extent_at(file, 10, 1 << 20), target)
    reader.close()
    reader = Reader([file], cached=True)
    reader.read(whole, target)
    assert resident_fraction([file]) == 1.0
    reader.close()
