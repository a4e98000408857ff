"""Energy per token and peaks of memory, from what the task measured and what telemetry saw."""

from __future__ import annotations

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.measure import Absent, Metric, Phase, Samples, Value
from orchestrator.telemetry.derived import derived


def report(energy: Metric | None, *, batch: int = 4, new_tokens: int = 5) -> AttemptReport:
    """Three repetitions of one batch; the second is slower."""
    paces = (0.02, 0.03, 0.02)
    first_s, steps = 0.5, new_tokens - 1
    metrics: dict[str, Metric] = {
        "ttft_s": Samples("ttft_s", "s", (first_s,) * 3, (9.0,)),
        "e2e_s": Samples("e2e_s", "s", tuple(first_s + steps * pace for pace in paces), (9.0,)),
        "decode_tokens_per_s": Samples(
            "decode_tokens_per_s", "tokens/s", tuple(batch / pace for pace in paces)
        ),
        # Two of the tokens came together: fewer intervals than tokens.
        "itl_s": Samples("itl_s", "s", (0.02,) * (3 * steps - 2)),
    }
    seen = {} if energy is None else {"decode.energy_j": energy}
    return AttemptReport("a", "h", Outcome.OK, metrics=metrics, telemetry=seen)


def test_energy_is_divided_by_the_tokens_of_the_whole_batch_decoded() -> None:
    found = derived(report(Value("decode.energy_j", "J", 96.0)))
    # 3 repetitions, 4 rows, 5 new tokens of which the first belongs to the prefill: 48 tokens.
    assert found["joules_per_token"] == Value("joules_per_token", "J/token", pytest.approx(2.0))


def test_no_energy_is_no_figure_with_the_same_reason() -> None:
    found = derived(report(Absent("decode.energy_j", "J", "the attempt owns no GPU")))
    assert found["joules_per_token"] == Absent(
        "joules_per_token", "J/token", "the attempt owns no GPU"
    )
    assert isinstance(derived(report(None))["joules_per_token"], Absent)


def watched(slot: Slot, **figures: float) -> AttemptReport:
    seen: dict[str, Metric] = {
        f"attempt.{name}": Value(f"attempt.{name}", "bytes", number)
        for name, number in figures.items()
    }
    return AttemptReport("a", "h", Outcome.OK, telemetry=seen, slot=slot)


def test_memory_of_a_gpu_attempt_is_the_drivers() -> None:
    slot = Slot("n", "host", (0,), ("GPU-1",))
    found = derived(watched(slot, device_memory_bytes=9e9, process_memory_bytes=7e9))
    assert found["device_memory_bytes"] == Value("device_memory_bytes", "bytes", 9e9)
    assert found["process_memory_bytes"] == Value("process_memory_bytes", "bytes", 7e9)
    unknown = derived(watched(slot, device_memory_bytes=9e9, pss_bytes=1e9))
    assert unknown["process_memory_bytes"] == Absent("process_memory_bytes", "bytes", "not sampled")


def test_memory_of_a_cpu_attempt_is_its_control_groups() -> None:
    found = derived(watched(Slot("n", "host", (0,)), cgroup_memory_bytes=3e9))
    assert found == {"device_memory_bytes": Value("device_memory_bytes", "bytes", 3e9)}


def test_task_without_tokens_has_no_such_figure() -> None:
    assert derived(AttemptReport("a", "h", Outcome.OK)) == {}


def loaded(energy: Metric | None) -> AttemptReport:
    """A window of 10 s in which a server answered 4 requests and 40 tokens a second."""
    found = {name: Value(name, "1/s", rate) for name, rate in RATES.items()}
    seen = {} if energy is None else {"serving.energy_j": energy}
    phases = [Phase("warmup", 0, 10**9), Phase("serving", 10**9, 11 * 10**9)]
    return AttemptReport("a", "h", Outcome.OK, metrics={**found}, telemetry=seen, phases=phases)


RATES = {"output_tokens_per_s": 40.0, "request_rate_per_s": 4.0}


def test_energy_under_load_is_divided_by_what_ended_in_the_window() -> None:
    found = derived(loaded(Value("serving.energy_j", "J", 800.0)))
    assert found["joules_per_token"] == Value("joules_per_token", "J/token", pytest.approx(2.0))
    assert found["joules_per_request"] == Value("joules_per_request", "J", pytest.approx(20.0))
    nothing = derived(loaded(None))
    assert all(isinstance(metric, Absent) for metric in nothing.values())
    assert len(nothing) == 2
