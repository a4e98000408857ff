"""The recorder turns calls into plain events and refuses what is no measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import MetricSpec, Mismatch, Recorder
from testing.clock import FakeClock


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def recorder(events: list[dict[str, Any]], tmp_path: Path) -> Recorder:
    return Recorder(events.append, FakeClock(), tmp_path)


def test_phases_are_synchronised_at_their_begin_and_numbered(
    recorder: Recorder, events: list[dict[str, Any]]
) -> None:
    clock = recorder.clock
    assert isinstance(clock, FakeClock)
    clock.launch(3.0)
    for expected in (0, 1):
        with recorder.phase("decode") as index:
            clock.advance(1.0)
        assert index == expected
    assert [(e["edge"], e["index"], e["t_ns"] / 1e9) for e in events] == [
        ("begin", 0, 3.0),
        ("end", 0, 4.0),
        ("begin", 1, 4.0),
        ("end", 1, 5.0),
    ]
    assert json.loads(json.dumps(events)) == events


def test_a_phase_that_fails_still_ends(recorder: Recorder, events: list[dict[str, Any]]) -> None:
    with pytest.raises(MemoryError), recorder.phase("load"):
        raise MemoryError
    assert [e["edge"] for e in events] == ["begin", "end"]


def test_a_phase_told_afterwards_is_one_of_its_namesakes(
    recorder: Recorder, events: list[dict[str, Any]]
) -> None:
    recorder.window("decode", 2_000, 5_000)
    with recorder.phase("decode") as index:
        pass
    assert index == 1
    assert [(e["edge"], e["index"], e["t_ns"], e["measured"]) for e in events[:2]] == [
        ("begin", 0, 2_000, True),
        ("end", 0, 5_000, True),
    ]


class Timeline:
    """Behaves like ``torch.cuda.nvtx``: a stack of its own, and an error where it is empty."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.seen: list[str] = []

    def range_push(self, msg: str) -> int:
        self.open.append(msg)
        self.seen.append("/".join(self.open))
        return len(self.open) - 1

    def range_pop(self) -> int:
        self.open.pop()
        return len(self.open)


def test_phases_are_ranges_on_the_timeline_of_a_cuda_device(
    recorder: Recorder, events: list[dict[str, Any]]
) -> None:
    timeline = recorder.clock.nvtx = Timeline()
    with recorder.phase("load"):
        pass
    with recorder.phase("warmup"), recorder.phase("prefill"):
        assert timeline.open == ["warmup", "prefill"]
    recorder.window("decode", 2_000, 5_000)  # over before it is told: no range can show it
    assert timeline.seen == ["load", "warmup", "warmup/prefill"]
    assert timeline.open == []
    assert len(events) == 8


@pytest.mark.parametrize("unsaid", ["decode begin", "decode end", "load end"])
def test_a_range_ends_although_its_phase_cannot_be_told(tmp_path: Path, unsaid: str) -> None:
    def emit(event: dict[str, Any]) -> None:
        if f"{event['name']} {event['edge']}" == unsaid:
            raise OSError("the pipe is closed")

    timeline, clock = Timeline(), FakeClock()
    clock.nvtx = timeline
    recorder = Recorder(emit, clock, tmp_path)
    with pytest.raises(OSError, match="pipe"), recorder.phase("load"), recorder.phase("decode"):
        pass
    assert timeline.open == []
    assert timeline.seen == ["load", "load/decode"]


def test_a_range_ends_with_a_phase_that_fails(recorder: Recorder) -> None:
    timeline = recorder.clock.nvtx = Timeline()
    with pytest.raises(MemoryError), recorder.phase("load"), recorder.phase("decode"):
        raise MemoryError
    assert timeline.open == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_sample_is_made_up(recorder: Recorder, events: list[dict[str, Any]], bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        recorder.samples("ttft_s", "s", [1.0, bad])
    recorder.value("energy_j", "J", bad)
    assert [e["e"] for e in events] == ["absent"]


def test_a_mismatch_is_recorded_and_raised(
    recorder: Recorder, events: list[dict[str, Any]]
) -> None:
    recorder.engaged("dtype", "bfloat16", "bfloat16")
    with pytest.raises(Mismatch, match=r"asked for weights Linear4bit, got Linear"):
        recorder.engaged("weights", "Linear4bit", "Linear")
    assert [e["ok"] for e in events] == [True, False]


def test_artifacts_stay_in_their_directory(recorder: Recorder, tmp_path: Path) -> None:
    path = recorder.artifact("trace/trace.json.gz")
    assert path.parent.is_dir()
    assert path.is_relative_to(tmp_path)
    with pytest.raises(ValueError, match="leaves"):
        recorder.artifact("../elsewhere.txt")


def test_one_name_is_one_quantity_in_one_unit(
    recorder: Recorder, events: list[dict[str, Any]]
) -> None:
    recorder.samples("step_s", "s", [0.1])
    recorder.value("hot", "degC", 50.0)
    recorder.value("hot", "°C", 51.0)  # the same unit, and a later word on it
    recorder.samples("itl_s", "s", [0.1], role="warmup")
    recorder.absent("itl_s", "s", "all tokens came together")
    said = len(events)
    with pytest.raises(ValueError, match="step_s is in s, not ms"):
        recorder.samples("step_s", "ms", [100.0])
    with pytest.raises(ValueError, match="hot is in °C, not K"):
        recorder.value("hot", "K", 324.0)
    for replacing in (
        lambda: recorder.value("step_s", "s", 1.0),
        lambda: recorder.absent("step_s", "s", "x"),
    ):
        with pytest.raises(ValueError, match="would replace the other"):
            replacing()
    with pytest.raises(ValueError, match="would replace the other"):
        recorder.samples("hot", "°C", [50.0])
    recorder.declare([MetricSpec("load_ms", "ms")])
    with pytest.raises(ValueError, match="load_ms is in ms, not s"):
        recorder.value("load_ms", "s", 0.1)
    with pytest.raises(ValueError, match="load_ms is in ms, not s"):
        recorder.declare([MetricSpec("load_ms", "s")])
    assert len(events) == said + 1


@pytest.mark.parametrize("name", ["measured", "attempt"])
def test_no_phase_is_called_as_all_of_them_are(
    recorder: Recorder, events: list[dict[str, Any]], name: str
) -> None:
    with pytest.raises(ValueError, match=f"no phase can be called {name}"), recorder.phase(name):
        pass
    with pytest.raises(ValueError, match="its figures are those of"):
        recorder.window(name, 0, 1)
    assert events == []
