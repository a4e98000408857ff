"""Clocks: marks, spans, and the fake one that everything timed is tested on."""

from __future__ import annotations

import pytest

from orchestrator.measure.clock import Clock, HostClock, clock_for, timed
from testing.clock import FakeClock


def test_a_host_mark_is_the_time_of_the_call() -> None:
    clock = HostClock()
    before = clock.now_ns()
    mark = clock.mark()
    assert before <= mark <= clock.now_ns()


def test_intervals_lie_between_consecutive_marks() -> None:
    clock = FakeClock(start_ns=7)
    marks = [clock.mark()]
    for seconds in (0.5, 0.25, 0.125):
        clock.advance(seconds)
        marks.append(clock.mark())
    assert clock.seconds_between(marks) == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("clock", [HostClock(), FakeClock()])
@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_marks_have_no_interval(clock: Clock, count: int) -> None:
    assert clock.seconds_between([clock.mark() for _ in range(count)]) == []


def test_marks_follow_the_device_and_never_wait_for_it() -> None:
    clock = FakeClock()
    marks = [clock.mark()]
    for _ in range(3):
        clock.launch(2.0)
        marks.append(clock.mark())
    assert clock.now_ns() == 0, "the host has not waited"
    assert clock.syncs == 0
    assert clock.seconds_between(marks) == [2.0, 2.0, 2.0]
    assert clock.syncs == 1


def test_a_span_holds_the_device_work_of_its_region_only() -> None:
    clock = FakeClock()
    clock.launch(5.0)  # still queued from before
    with timed(clock) as span:
        clock.launch(1.0)
    assert span.seconds == 1.0


def test_a_span_that_failed_has_no_length() -> None:
    spans = []

    def fail() -> None:
        with timed(FakeClock()) as span:
            spans.append(span)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    with pytest.raises(ValueError, match="not ended"):
        _ = spans[0].seconds


def test_the_clock_of_a_device_kind() -> None:
    assert isinstance(clock_for("cpu"), HostClock)
