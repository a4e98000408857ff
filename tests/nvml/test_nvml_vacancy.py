"""Attempts wait until their GPUs are free of earlier work, else are not measured at all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot, Trial
from orchestrator.schedule.events import Waiting
from orchestrator.schedule.supervise.gpu_memory import GpuMemoryGate
from orchestrator.telemetry.vacancy import Held, Vacancy

GIB = 2**30
RULE = {"state": "invalid", "limit": GIB}


def gpu(**what: Any) -> dict[str, Any]:
    return {"devices": [{"model": "h100", "uuid": "GPU-0123", **what}]}


def looked(limit_bytes: float = GIB, uuid: str = "GPU-0123") -> tuple[bool, tuple[Held, ...]]:
    vacancy = Vacancy((uuid,), limit_bytes)
    return vacancy.is_free(), vacancy.held


def test_what_is_held_and_by_whom(play: Any) -> None:
    full = gpu(
        steps={"memory_used_bytes": 6 * GIB},
        processes=[
            {"pid": 77, "bytes": 5 * GIB},
            {"kind": "graphics", "pid": 9, "bytes": GIB // 2},
        ],
    )
    free, held = play(full, looked)
    assert not free
    # A desktop's share is there before and after every attempt: it is nobody's remains.
    assert held == (Held("GPU-0123", 6 * GIB - GIB // 2, (77,)),)
    assert str(held[0]) == "5.5 GiB of GPU-0123 in use by process 77"
    assert play(full, looked, 6 * GIB) == (True, ())


def test_a_desktop_alone_is_free(play: Any) -> None:
    drawing = [{"kind": "graphics", "pid": 9, "bytes": 3 * GIB}]
    busy = gpu(steps={"memory_used_bytes": 3 * GIB + 1000}, processes=drawing)
    assert play(busy, looked) == (True, ())


def test_a_gpu_that_cannot_be_asked_passes(play: Any) -> None:
    denied = gpu(errors=[{"function": "nvmlDeviceGetMemoryInfo_v2", "error": "NO_PERMISSION"}])
    assert play(denied, looked) == (True, ())
    assert play("mismatch", looked) == (True, ())
    assert play("h100", looked, GIB, "GPU-of-another-node") == (True, ())


def hung() -> bool:
    path = Path(os.environ["ORCHESTRATOR_NVML_SCENARIO"])
    _, rest = path.read_text().split("\n", 1)
    path.write_text(f"start {time.perf_counter_ns()}\n{rest}")
    vacancy = Vacancy(("GPU-0123",), GIB)
    vacancy.is_free()
    time.sleep(1.1)
    return vacancy.is_free(timeout_s=0.3)


def test_a_driver_that_hangs_does_not_hold_the_supervisor(play: Any) -> None:
    assert play(gpu(hang_s=[1.0, 3600]), hung), "it would be waited for in vain"


def waited(state: str, wait_s: float) -> tuple[list[Waiting], bool, AttemptReport | None]:
    verdict = {"rules": {"memory_before": {**RULE, "state": state}}, "memory_wait_s": wait_s}
    spec = PlannedAttempt(Trial("h" * 64, {}), 2, "attempt-1", "s", verdict=verdict)
    memory = GpuMemoryGate(spec, Slot("n", "host", (0,), ("GPU-0123",), "GPU-0123"))
    said = list(memory.wait(lambda: False))
    return said, memory.refuses, memory.report() if memory.held else None


def test_memory_that_is_given_back_is_waited_for(play: Any) -> None:
    # Relative to the scenario's beginning, which is before the child was forked.
    leaving = gpu(steps={"memory_used_bytes": [[0, 6 * GIB], [4.0, 0]]})
    said, refuses, report = play(leaving, waited, "invalid", 60.0)
    assert not refuses
    assert report is None
    assert all("waiting for memory of earlier work: 6.0 GiB" in event.text for event in said)


def test_memory_that_stays_refuses_the_attempt_and_the_verdict_names_it(play: Any) -> None:
    full = gpu(steps={"memory_used_bytes": 6 * GIB}, processes=[{"pid": 77, "bytes": 6 * GIB}])
    said, refuses, report = play(full, waited, "invalid", 0.3)
    assert refuses
    assert said == []
    assert report.outcome is Outcome.INVALID
    assert report.reason == "not begun: 6.0 GiB of GPU-0123 in use by process 77"
    assert (report.attempt_id, report.sweep, report.number) == ("attempt-1", "s", 2)
    assert report.ended_at == report.started_at + report.duration_s
    assert report.verdict.state == "invalid"
    (rule,) = report.verdict.rules
    assert (rule.rule, rule.state, rule.value, rule.limit) == (
        "memory_before",
        "invalid",
        6.0 * GIB,
        GIB,
    )


def test_a_rule_that_only_flags_lets_it_begin_after_the_wait(play: Any) -> None:
    full = gpu(steps={"memory_used_bytes": 6 * GIB})
    _, refuses, report = play(full, waited, "flagged", 0.3)
    assert not refuses
    assert report is not None
    _, refuses, report = play(full, waited, "off", 30.0)
    assert not refuses
    assert report is None


def cancelled() -> tuple[bool, bool]:
    verdict = {"rules": {"memory_before": RULE}, "memory_wait_s": 600.0}
    spec = PlannedAttempt(Trial("h", {}), verdict=verdict)
    memory = GpuMemoryGate(spec, Slot("n", "host", (0,), ("GPU-0123",)))
    list(memory.wait(lambda: True))
    return bool(memory.held), memory.refuses


def test_a_cancel_ends_the_wait(play: Any) -> None:
    assert play(gpu(steps={"memory_used_bytes": 6 * GIB}), cancelled) == (True, True)
