"""Telemetry of a real process without a GPU: figures per phase, files, facts, failures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.attempt import Slot
from orchestrator.measure import Absent, Phase, Value
from orchestrator.measure.series import PARQUET_ARTIFACT
from orchestrator.telemetry import watch
from orchestrator.telemetry.host import SLOW_EVERY
from orchestrator.telemetry.procfs import KernelFile
from orchestrator.telemetry.watch import Telemetry
from testing.waiting import until

_now_ns = time.perf_counter_ns
SLOT = Slot("node", "host", tuple(sorted(os.sched_getaffinity(0))))


def wait_for_rounds(telemetry: Telemetry, count: int) -> None:
    """Until so many more rounds of the host's sampler have seen a process that computes."""
    host, deadline = telemetry._host, time.monotonic() + 60
    assert host is not None
    begun = host.ticks
    while host.ticks < begun + count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_figures_per_phase_of_a_real_process(busy_process: subprocess.Popen[bytes]) -> None:
    threads = threading.active_count()
    telemetry = Telemetry({"host_period_s": 0.02, "nvml_period_s": 0.05})
    telemetry.start(SLOT)
    telemetry.attach(busy_process.pid)
    edges = [time.perf_counter_ns()]
    for rounds in (1, 4):
        wait_for_rounds(telemetry, rounds)
        edges.append(time.perf_counter_ns())
    busy_process.kill()
    busy_process.wait()
    watched = telemetry.finish(
        [Phase("prefill", edges[0], edges[1]), Phase("decode", edges[1], edges[2])]
    )
    decode = watched.aggregates["decode.cpu_s"]
    assert isinstance(decode, Value)
    assert 0 < decode.value <= 1.2 * (edges[2] - edges[1]) / 1e9 + 0.05
    assert isinstance(watched.aggregates["decode.rss_bytes"], Value)
    energy = watched.aggregates["decode.energy_j"]
    assert energy == Absent("decode.energy_j", "J", "the attempt owns no GPU")
    for prefix in ("prefill.", "decode.", "measured.", "attempt."):
        assert any(name.startswith(prefix) for name in watched.aggregates)
    rows = pq.read_table(io.BytesIO(watched.artifacts[PARQUET_ARTIFACT])).to_pylist()
    assert {"process", "host"} == {row["source"] for row in rows}
    assert all(-0.001 <= row["t_s"] < 60 for row in rows)
    facts = watched.facts
    assert facts["simulated"] is False
    assert facts["hardware"]["cores"] == len(SLOT.cpus)
    assert facts["hardware_fingerprint"]
    assert facts["telemetry"]["host_rounds"] > 3
    assert threading.active_count() == threads, "no sampler outlives its attempt"


def test_what_a_process_waits_for_before_it_is_there_is_no_part_of_the_attempt(
    busy_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_ns = 600_000_000_000  # an environment is built, or much imported
    telemetry = Telemetry({"host_period_s": 0.02})
    monkeypatch.setattr(watch.time, "perf_counter_ns", lambda: _now_ns() - waited_ns)
    telemetry.start(SLOT)
    monkeypatch.undo()
    telemetry.attach(busy_process.pid)
    wait_for_rounds(telemetry, 8 * SLOW_EVERY)
    busy_process.kill()
    busy_process.wait()
    found = telemetry.finish([]).aggregates["attempt.steal_ratio"]
    assert isinstance(found, Value), found


def test_a_process_whose_page_tables_stay_locked_does_not_hold_the_supervisor(
    busy_process: subprocess.Popen[bytes],
) -> None:
    unlocked = threading.Event()

    class Locked(KernelFile):
        def read(self) -> bytes | None:
            unlocked.wait()
            return None

    telemetry = Telemetry({"host_period_s": 0.02})
    telemetry.start(SLOT)
    host = telemetry._host
    assert host is not None
    telemetry.attach(busy_process.pid)
    host._process["smaps_rollup"] = Locked(host._process["smaps_rollup"].path)
    host._pss_page_s = 0.0  # no page costs anything: it is read as soon as it is due
    wait_for_rounds(telemetry, 2)
    until(lambda: host._pss_due_ns < time.perf_counter_ns())
    try:
        found = telemetry.finish([]).aggregates
    finally:
        unlocked.set()
    assert isinstance(found["attempt.rss_bytes"], Value)


def test_a_kernel_file_of_another_form_costs_only_what_comes_after_it(
    busy_process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    telemetry = Telemetry({"host_period_s": 0.02})
    telemetry.start(SLOT)
    host = telemetry._host
    assert host is not None
    telemetry.attach(busy_process.pid)
    wait_for_rounds(telemetry, 2 * SLOW_EVERY)
    (tmp_path / "stat").write_text("cpu0 of another form\ncpu1 too\n")
    host._host["stat"] = KernelFile(tmp_path / "stat")
    pacer = next(p for p in telemetry._pacers if p.name == "telemetry-host")
    until(lambda: pacer.failure is not None)
    now = time.perf_counter_ns()
    watched = telemetry.finish([Phase("body", now, now + 10**9)])
    assert "ValueError" in watched.facts["telemetry"]["failures"][0]
    assert isinstance(watched.aggregates["attempt.rss_bytes"], Value)
    absent = watched.aggregates["body.cpu_s"]
    assert isinstance(absent, Absent)
    assert "readings cover" in absent.reason


def test_attempt_whose_process_never_came_to_be() -> None:
    telemetry = Telemetry({})
    telemetry.start(SLOT)
    watched = telemetry.finish([])
    cpu = watched.aggregates["attempt.cpu_s"]
    assert isinstance(cpu, Absent)
    assert cpu.reason == "was never read"


def test_series_that_cannot_be_stored_take_nothing_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    telemetry = Telemetry({})
    telemetry.start(SLOT)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    watched = telemetry.finish([])
    assert watched.artifacts == {}
    assert "pyarrow" in watched.facts["telemetry"]["series_absent"]
    assert isinstance(watched.aggregates["attempt.cpu_s"], Absent)


def test_process_that_is_gone_at_once(busy_process: subprocess.Popen[bytes]) -> None:
    busy_process.kill()
    busy_process.wait()
    telemetry = Telemetry({})
    telemetry.start(SLOT)
    telemetry.attach(busy_process.pid)
    now = time.perf_counter_ns()
    watched = telemetry.finish([Phase("body", now, None)])
    assert isinstance(watched.aggregates["body.cpu_s"], Absent)


def test_without_nvml_a_gpu_slot_gets_reasons_and_no_numbers(
    busy_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.telemetry import gpu
    from orchestrator.telemetry.nvml import Kind, NvmlError

    def no_driver() -> None:
        raise NvmlError("no NVIDIA driver here", kind=Kind.UNAVAILABLE)

    monkeypatch.setattr(gpu.GpuSampler.__init__, "__kwdefaults__", _with_session(gpu, no_driver))
    telemetry = Telemetry({})
    telemetry.start(Slot("node", "host", SLOT.cpus, ("GPU-1",)))
    telemetry.attach(busy_process.pid)
    watched = telemetry.finish([Phase("body", time.perf_counter_ns(), None)])
    for name in ("energy_j", "power_w", "sm_clock_ratio", "throttle_thermal_s"):
        found = watched.aggregates[f"body.{name}"]
        assert isinstance(found, Absent)
        assert found.reason == "no NVIDIA driver here"
    assert watched.facts["telemetry"]["unopened"] == {"GPU-1": "no NVIDIA driver here"}


def test_a_gpu_without_a_uuid_is_asked_for_and_explained(
    busy_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.telemetry import gpu
    from orchestrator.telemetry.nvml import Kind, NvmlError

    def mismatch() -> None:
        raise NvmlError("driver and NVML library differ", kind=Kind.UNAVAILABLE)

    monkeypatch.setattr(gpu.GpuSampler.__init__, "__kwdefaults__", _with_session(gpu, mismatch))
    telemetry = Telemetry({})
    telemetry.start(Slot("node", "host", SLOT.cpus, (), "0"))
    telemetry.attach(busy_process.pid)
    watched = telemetry.finish([Phase("body", time.perf_counter_ns(), None)])
    energy = watched.aggregates["body.energy_j"]
    assert isinstance(energy, Absent)
    assert energy.reason == "driver and NVML library differ"
    assert watched.facts["hardware_fingerprint"].startswith("1xunknown-gpu-")


def _with_session(gpu: object, session: object) -> dict[str, object]:
    kept = gpu.GpuSampler.__init__.__kwdefaults__  # type: ignore[attr-defined]
    return {**kept, "session": session}
