"""Metric arithmetic, and the errors that others ship: each test here would catch one.

All on a fake clock whose device works asynchronously, as CUDA does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import Recorder, first_call, repeat, timed
from orchestrator.measure.derive import (
    decode_tokens_per_s,
    e2e_s,
    joules_per_token,
    mfu,
    step_tokens_per_s,
    tpot_s,
)
from testing.clock import FakeClock

PREFILL_S = 0.5
TOKEN_S = 0.02
NEW_TOKENS = 32
INTERVALS = NEW_TOKENS - 1
PROTOCOL: dict[str, Any] = {
    "warmup": 1,
    "min_repetitions": 5,
    "max_repetitions": 10,
    "max_time_s": 1e9,
    "ci_relative_half_width": 0.05,
}


class Model:
    """Queues work on the fake device; the first call pays for lazy initialisation."""

    def __init__(self, clock: FakeClock, cold_s: float = 3.0) -> None:
        self.clock = clock
        self._cold_s = cold_s
        self.calls = 0

    def prefill(self) -> None:
        self.clock.launch(PREFILL_S + (self._cold_s if self.calls == 0 else 0.0))
        self.calls += 1

    def token(self) -> None:
        self.clock.launch(TOKEN_S)


def generate(model: Model) -> tuple[float, list[float]]:
    """TTFT and the intervals of decode, as a task takes them."""
    with timed(model.clock) as prefill:
        model.prefill()
    marks = [model.clock.mark()]
    for _ in range(INTERVALS):
        model.token()
        marks.append(model.clock.mark())
    return prefill.seconds, model.clock.seconds_between(marks)


@pytest.fixture
def model() -> Model:
    model = Model(FakeClock(), cold_s=0.0)
    model.prefill()
    model.clock.sync()
    return model


def test_events_are_not_carried_from_one_iteration_into_the_next(tmp_path: Path) -> None:
    """310 intervals where 10 repetitions of 31 happened, and no prefill among them."""
    events: list[dict[str, Any]] = []
    model = Model(FakeClock())
    recorder = Recorder(events.append, model.clock, tmp_path)
    protocol = {**PROTOCOL, "min_repetitions": 10}
    for repetition in repeat(recorder, protocol, watch="tpot_s"):
        ttft, intervals = generate(model)
        repetition.add("ttft_s", "s", ttft)
        repetition.extend("itl_s", "s", intervals)
        repetition.add("tpot_s", "s", tpot_s(intervals) or 0.0)
    itl = [
        v
        for e in events
        if e["e"] == "samples" and e["name"] == "itl_s" and e["role"] == "measured"
        for v in e["values"]
    ]
    assert len(itl) == 310
    assert max(itl) == pytest.approx(TOKEN_S)


def test_training_throughput_divides_one_step_by_one_step() -> None:
    clock = FakeClock()
    tokens_of_one_step, steps = 4096, 10
    rates = []
    for _ in range(steps):
        with timed(clock) as span:
            clock.launch(0.5)
        rates.append(step_tokens_per_s(tokens_of_one_step, span.seconds))
    assert rates == [8192.0] * steps
    assert step_tokens_per_s(4096, 0.0) is None


def test_nothing_untimed_precedes_the_cold_start(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    model = Model(FakeClock(), cold_s=3.0)
    recorder = Recorder(events.append, model.clock, tmp_path)
    with first_call(recorder):
        model.prefill()
    for repetition in repeat(recorder, PROTOCOL, watch="ttft_s"):
        repetition.add("ttft_s", "s", generate(model)[0])
    (cold,) = (e["value"] for e in events if e["e"] == "value")
    warm = {round(v, 9) for e in events if e["e"] == "samples" for v in e["values"]}
    assert cold == pytest.approx(PREFILL_S + 3.0)
    assert warm == {PREFILL_S}
    with pytest.raises(RuntimeError, match="before any repetition"), first_call(recorder):
        model.prefill()


def test_device_work_is_not_timed_without_waiting_for_the_device(model: Model) -> None:
    clock = model.clock
    begin_ns = clock.now_ns()
    model.prefill()
    assert clock.now_ns() == begin_ns, "the host's clock alone sees nothing"
    clock.sync()
    with timed(clock) as span:
        model.prefill()
    assert span.seconds == PREFILL_S


def test_inter_token_time_averages_the_intervals_there_are(model: Model) -> None:
    _, intervals = generate(model)
    assert len(intervals) == INTERVALS
    assert tpot_s(intervals) == pytest.approx(TOKEN_S)
    assert sum(intervals) / NEW_TOKENS < TOKEN_S, "what dividing by n would have said"


def test_tokens_per_second_do_not_count_prefill(model: Model) -> None:
    ttft, intervals = generate(model)
    assert decode_tokens_per_s(intervals) == pytest.approx(1.0 / TOKEN_S)
    assert decode_tokens_per_s(intervals, batch=4) == pytest.approx(4.0 / TOKEN_S)
    assert e2e_s(ttft, intervals) == pytest.approx(PREFILL_S + INTERVALS * TOKEN_S)


def test_per_token_marks_synchronise_once(model: Model) -> None:
    before = model.clock.syncs
    generate(model)
    assert model.clock.syncs - before == 3, "the two edges of prefill and the end of decode"


def test_a_single_token_has_no_decode() -> None:
    assert tpot_s([]) is None
    assert decode_tokens_per_s([]) is None
    assert e2e_s(0.5, []) == 0.5


def test_unknown_peaks_and_energies_stay_unknown() -> None:
    assert mfu(1e12, 1.0, None) is None
    assert mfu(1e12, 1.0, 4e12) == 0.25
    assert mfu(1e12, 0.0, 4e12) is None
    assert joules_per_token(None, 10) is None
    assert joules_per_token(5.0, 0) is None
    assert joules_per_token(5.0, 10) == 0.5


def test_a_utilisation_of_no_time_is_absent_and_not_zero() -> None:
    from orchestrator.measure.metric import Absent, Samples
    from orchestrator.measure.predicted import Limits, predicted_metrics
    from orchestrator.model.expectation import Expectation, Work
    from orchestrator.model.measured_device import NEAR, Measured

    device = Measured("d", {f"product.{NEAR}.float32": ((1e9, 1, 1.0),)}, (), (), 0.0)
    assert device.peak("float32") == 2e9
    expected = Expectation({}, 1, work={"mfu": Work(1e9, "step_s", "float32")})

    def share(*times_s: float) -> object:
        measured = {"step_s": Samples("step_s", "s", times_s)}
        return predicted_metrics(expected, measured, Limits(device, "none"))["mfu.measured_peak"]

    found, none = share(1.0, 2.0), share(1.0, 0.0)
    assert isinstance(found, Samples)
    assert found.values == (pytest.approx(0.5), pytest.approx(0.25))
    assert isinstance(none, Absent)
    assert "too short" in none.reason
