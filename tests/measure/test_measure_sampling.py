"""Sampling under a protocol, on a fake clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import InputError
from orchestrator.measure import Recorder, Repetition, first_call, repeat
from testing.clock import FakeClock

PROTOCOL: dict[str, Any] = {
    "warmup": 2,
    "min_repetitions": 5,
    "max_repetitions": 10,
    "max_time_s": 1e9,
    "ci_relative_half_width": 0.05,
    "confidence": 0.95,
    "resamples": 1000,
}


class Bench:
    """A recorder on a fake clock, and what it was told."""

    def __init__(self, directory: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.clock = FakeClock()
        self.recorder = Recorder(self.events.append, self.clock, directory)

    def run(self, seconds: Callable[[int], float], **changes: Any) -> list[Repetition]:
        """Repeat work whose k-th execution (warm-up included) takes ``seconds(k)``."""
        seen = []
        sampling = repeat(self.recorder, {**PROTOCOL, **changes}, watch="step_s")
        for call, repetition in enumerate(sampling):
            self.clock.advance(seconds(call))
            repetition.add("step_s", "s", seconds(call))
            seen.append(repetition)
        return seen

    def series(self, name: str, role: str = "measured") -> list[float]:
        told = [e for e in self.events if e["e"] == "samples" and e["name"] == name]
        return [value for e in told if e["role"] == role for value in e["values"]]

    @property
    def stop(self) -> dict[str, Any]:
        (event,) = (e for e in self.events if e["e"] == "stop")
        return event


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_warm_up_is_kept_apart_and_numbered_by_itself(bench: Bench) -> None:
    seen = bench.run(lambda call: 9.0 if call < 2 else 1.0)
    assert [(r.warmup, r.index) for r in seen[:4]] == [
        (True, 0),
        (True, 1),
        (False, 0),
        (False, 1),
    ]
    assert bench.series("step_s", "warmup") == [9.0, 9.0]
    assert set(bench.series("step_s")) == {1.0}


def test_a_steady_series_stops_at_the_least_number_by_ci(bench: Bench) -> None:
    bench.run(lambda call: 1.0)
    assert len(bench.series("step_s")) == 5
    assert bench.stop == {"e": "stop", "name": "step_s", "reason": "ci"}


def test_a_wild_series_stops_at_the_cap(bench: Bench) -> None:
    bench.run(lambda call: 1.0 + call % 2)
    assert len(bench.series("step_s")) == 10
    assert bench.stop["reason"] == "max_repetitions"


def test_the_time_cap_holds_after_the_least_number_and_excludes_warm_up(bench: Bench) -> None:
    bench.run(lambda call: 100.0 if call < 2 else 1.0 + call % 2, max_time_s=9.0)
    # 7 repetitions of 1 and 2 s in turn take 10 s; after 6 it was 9 s.
    assert len(bench.series("step_s")) == 6
    assert bench.stop["reason"] == "max_time"


def test_no_cap_cuts_below_the_least_number(bench: Bench) -> None:
    bench.run(lambda call: 1.0 + call % 2, max_time_s=0.5)
    assert len(bench.series("step_s")) == 5


def test_each_repetition_begins_empty(tmp_path: Path) -> None:
    """Per-token values of one repetition must not turn up again in the next."""
    bench = Bench(tmp_path)
    intervals = 31
    counts = []
    for repetition in repeat(bench.recorder, {**PROTOCOL, "warmup": 1}, watch="itl_s"):
        marks = [bench.clock.mark()]
        for _ in range(intervals):
            bench.clock.advance(0.01)
            marks.append(bench.clock.mark())
        repetition.extend("itl_s", "s", bench.clock.seconds_between(marks))
    for event in bench.events:
        if event["e"] == "samples":
            counts.append(len(event["values"]))
    assert set(counts) == {intervals}
    assert len(bench.series("itl_s")) == intervals * (len(counts) - 1)


def test_a_repetition_that_is_over_takes_no_more(bench: Bench) -> None:
    first, *_ = bench.run(lambda call: 1.0)
    with pytest.raises(RuntimeError, match="is over"):
        first.add("step_s", "s", 1.0)


def test_samples_reach_the_recorder_between_repetitions_only(bench: Bench) -> None:
    for repetition in repeat(bench.recorder, PROTOCOL, watch="step_s"):
        before = len(bench.events)
        repetition.add("step_s", "s", 1.0)
        repetition.extend("itl_s", "s", [0.1, 0.2])
        assert len(bench.events) == before, "nothing is written while the work is timed"


def test_a_repetition_cut_short_leaves_no_samples(bench: Bench) -> None:
    sampling = repeat(bench.recorder, PROTOCOL, watch="step_s")
    for repetition in itertools.islice(sampling, 3):
        repetition.add("step_s", "s", 1.0)
    sampling.close()  # type: ignore[attr-defined]
    assert len(bench.series("step_s", "warmup")) == 2
    assert bench.series("step_s") == []


def test_the_watched_metric_must_be_recorded(bench: Bench) -> None:
    def forgetful() -> Iterator[None]:
        for repetition in repeat(bench.recorder, PROTOCOL, watch="step_s"):
            repetition.add("other_s", "s", 1.0)
            yield

    with pytest.raises(ValueError, match="recorded no step_s"):
        list(forgetful())


def test_one_name_has_one_unit(bench: Bench) -> None:
    repetition = next(iter(repeat(bench.recorder, PROTOCOL, watch="step_s")))
    repetition.add("step_s", "s", 1.0)
    with pytest.raises(ValueError, match="is in s, not ms"):
        repetition.add("step_s", "ms", 1000.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"min_repetitions": 11},
        {"min_repetitions": 0},
        {"warmup": -1},
        {"max_time_s": 0.0},
        {"ci_relative_half_width": 0.0},
    ],
)
def test_a_protocol_that_cannot_be_meant_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="protocol"):
        bench.run(lambda call: 1.0, **changes)


def test_a_protocol_with_a_missing_key_is_refused(bench: Bench) -> None:
    protocol = {k: v for k, v in PROTOCOL.items() if k != "max_time_s"}
    with pytest.raises(InputError, match="max_time_s is missing"):
        next(iter(repeat(bench.recorder, protocol, watch="step_s")))


def test_the_first_call_is_timed_with_the_device_and_only_before_sampling(bench: Bench) -> None:
    with first_call(bench.recorder):
        bench.clock.launch(4.0)
    assert bench.events == [{"e": "value", "name": "first_call_s", "unit": "s", "value": 4.0}]
    bench.run(lambda call: 1.0)
    with pytest.raises(RuntimeError, match="before any repetition"), first_call(bench.recorder):
        pass


@settings(max_examples=25)
@given(
    seconds=st.lists(st.floats(0.5, 2.0), min_size=12, max_size=12),
    least=st.integers(1, 10),
)
def test_counts_stay_within_the_protocol_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[float], least: int
) -> None:
    bench = Bench(tmp_path_factory.getbasetemp())
    seen = bench.run(lambda call: seconds[call], min_repetitions=least)
    measured = bench.series("step_s")
    assert least <= len(measured) <= 10
    assert bench.series("step_s", "warmup") + measured == seconds[: len(seen)]
    assert bench.stop["reason"] in {"ci", "max_repetitions", "max_time"}
