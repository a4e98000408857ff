"""Whole attempts watched on simulated GPUs: what each kind of device tells, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.measure import Absent, Phase, Value
from orchestrator.telemetry import nvml
from orchestrator.telemetry.device import devices, inventory
from orchestrator.telemetry.verdict import judge
from orchestrator.telemetry.watch import Telemetry

CONF = Path(__file__).resolve().parents[2] / "conf" / "verdict" / "default.yaml"
RULES = yaml.safe_load(CONF.read_text())["rules"]
# The machine that tests run on is busy with tests: its own state is no subject here.
HOST_RULES = ("steal", "other_load", "cgroup_throttling", "swap")
GPU_RULES = {k: v for k, v in RULES.items() if k not in HOST_RULES}


def watched(phases_s: dict[str, float], uuids: tuple[str, ...] | None = None) -> AttemptReport:
    """An attempt that sleeps through its phases, on every GPU of the scenario, which begins now."""
    slot = Slot("n", "h", (0,), uuids or tuple(d.uuid for d in devices()))
    telemetry = Telemetry({"nvml_period_s": 0.02, "host_period_s": 0.05})
    begun_ns = restart_scenario()
    telemetry.start(slot)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        telemetry.attach(process.pid)
        phases = []
        for name, length_s in phases_s.items():
            begin = time.perf_counter_ns()
            time.sleep(length_s)
            phases.append(Phase(name, begin, time.perf_counter_ns()))
        process.kill()
        process.wait()
    seen = telemetry.finish(phases)
    return AttemptReport(
        "a",
        "h",
        Outcome.OK,
        phases=phases,
        telemetry=seen.aggregates,
        facts={**seen.facts, "begun_ns": begun_ns},
        slot=slot,
    )


def restart_scenario() -> int:
    """Let the scenario's time begin now: forking and importing took a while on a busy machine."""
    path = Path(os.environ["ORCHESTRATOR_NVML_SCENARIO"])
    _, rest = path.read_text().split("\n", 1)
    now_ns = time.perf_counter_ns()
    path.write_text(f"start {now_ns}\n{rest}")
    return now_ns


def seconds_after(report: AttemptReport, name: str, onset_s: float) -> float:
    """How long a phase went on after the scenario's second ``onset_s``."""
    onset_ns = report.facts["begun_ns"] + round(onset_s * 1e9)
    phase = next(p for p in report.phases if p.name == name)
    assert phase.end_ns is not None
    return max(0.0, (phase.end_ns - max(phase.begin_ns, onset_ns)) / 1e9)


def value(report: AttemptReport, name: str) -> float:
    found = report.telemetry[name]
    assert isinstance(found, Value), found
    return found.value


def reason(report: AttemptReport, name: str) -> str:
    found = report.telemetry[name]
    assert isinstance(found, Absent), found
    return found.reason


def rule(report: AttemptReport, name: str) -> Any:
    return next(r for r in judge(report, GPU_RULES).rules if r.rule == name)


@pytest.mark.parametrize(
    ("scenario", "name", "power_w", "clock_mhz"),
    [
        ("v100", "Tesla V100-SXM2-32GB", 210, 1454),
        ("a100", "NVIDIA A100-SXM4-80GB", 280, 1340),
        ("h100", "NVIDIA H100 80GB HBM3", 490, 1881),
        ("h200", "NVIDIA H200", 490, 1881),
        ("b200", "NVIDIA B200", 700, 1867),
        ("rtx4090", "NVIDIA GeForce RTX 4090", 315, 2950),
    ],
)
def test_every_kind_of_gpu_tells_its_figures(
    play: Any, scenario: str, name: str, power_w: float, clock_mhz: float
) -> None:
    report = play(scenario, watched, {"decode": 0.5})
    assert report.facts["hardware"]["gpus"][0]["name"] == name
    assert report.facts["simulated"] is True
    assert report.facts["hardware_fingerprint"].startswith("simulated-1x")
    energy_j, error_j = value(report, "decode.energy_j"), value(report, "decode.energy_error_j")
    begin, end = report.phases[0].begin_ns, report.phases[0].end_ns
    assert abs(energy_j - power_w * (end - begin) / 1e9) <= error_j
    assert value(report, "decode.power_w") == pytest.approx(power_w, rel=0.5)
    assert value(report, "decode.power_max_w") == pytest.approx(power_w, rel=0.01)
    assert value(report, "decode.sm_clock_hz") == pytest.approx(clock_mhz * 1e6)
    assert value(report, "decode.gpu_utilization") == pytest.approx(0.97)
    assert value(report, "decode.throttle_thermal_s") == 0
    assert rule(report, "sm_clock").state == "pass"
    expected = "flagged" if scenario == "rtx4090" else "valid"  # a display server is on the 4090
    assert judge(report, GPU_RULES).state == expected


def test_laptop_has_no_energy_and_says_why(play: Any) -> None:
    report = play("laptop", watched, {"decode": 0.3})
    assert reason(report, "decode.energy_j") == "this GPU does not support it"
    assert reason(report, "decode.power_limit_w") == "this GPU does not support it"
    assert value(report, "decode.power_w") == pytest.approx(60, rel=0.01)
    assert rule(report, "sm_clock").state == "pass"


def test_gpu_that_tells_next_to_nothing_is_unverified(play: Any) -> None:
    report = play("not_supported", watched, {"decode": 0.3})
    for figure in ("energy_j", "power_w", "temperature_max_c", "process_memory_bytes"):
        assert reason(report, f"decode.{figure}") == "this GPU does not support it"
    assert value(report, "decode.sm_clock_hz") > 0
    assert judge(report, GPU_RULES).state == "unverified"
    assert rule(report, "thermal_slowdown").state == "unknown"


@pytest.mark.parametrize(
    ("driver", "reasons", "figure", "broken"),
    [
        # The thermal counters have other ids in each of these three drivers.
        ("580.95.05", "sw_thermal_slowdown", "throttle_thermal_s", "thermal_slowdown"),
        ("570.133.20", "hw_thermal_slowdown", "throttle_thermal_s", "thermal_slowdown"),
        ("535.183.01", "hw_thermal_slowdown", "throttle_thermal_s", "thermal_slowdown"),
        ("580.95.05", "hw_power_brake", "throttle_power_brake_s", "power_brake"),
        ("535.183.01", "hw_power_brake", "throttle_power_brake_s", "power_brake"),
        ("580.95.05", "hw_slowdown", "throttle_hardware_s", "hardware_slowdown"),
        ("580.95.05", "sw_power_cap", "throttle_power_cap_s", "power_cap"),
    ],
)
def test_throttling_that_begins_mid_phase(
    play: Any, driver: str, reasons: str, figure: str, broken: str
) -> None:
    steps = {"reasons": [[0, []], [0.6, [reasons]]]}
    scenario = {"driver": driver, "devices": [{"model": "h100", "steps": steps}]}
    report = play(scenario, watched, {"prefill": 0.3, "decode": 0.8})
    throttled_s = value(report, f"decode.{figure}")
    # Sampled reasons resolve a reading's spacing, which is wide where the machine is busy.
    assert throttled_s == pytest.approx(seconds_after(report, "decode", 0.6), abs=0.25)
    assert throttled_s > 0
    if seconds_after(report, "prefill", 0.5) == 0:
        assert value(report, f"prefill.{figure}") == 0, "the phase before it was not touched"
    found = rule(report, broken)
    assert found.state == RULES[broken]["state"]
    assert found.value == pytest.approx(throttled_s, rel=0.2)
    others = {"throttle_thermal_s", "throttle_power_brake_s", "throttle_power_cap_s"} - {figure}
    assert all(value(report, f"decode.{other}") == 0 for other in others)


def test_clock_held_down_is_invalid(play: Any) -> None:
    scenario = {"devices": [{"model": "h100", "steps": {"sm_clock_mhz": 1400}}]}
    report = play(scenario, watched, {"decode": 0.3})
    assert rule(report, "sm_clock").value == pytest.approx(1400 / 1980)
    assert judge(report, GPU_RULES).state == "invalid"


def test_clock_locked_by_the_person_counts_against_what_they_allow(play: Any) -> None:
    steps = {"sm_clock_mhz": 1400, "sm_clock_app_mhz": 1410}
    report = play({"devices": [{"model": "a100", "steps": steps}]}, watched, {"decode": 0.3})
    assert rule(report, "sm_clock").state == "pass"


def test_foreign_process_is_invalid(play: Any) -> None:
    busy = [{"pid": 1, "bytes": 10**9, "from_s": 0.4}]
    report = play(
        {"devices": [{"model": "h100", "processes": busy}]}, watched, {"load": 0.2, "decode": 0.6}
    )
    assert value(report, "decode.foreign_processes") == 1
    assert rule(report, "foreign_process").state == "invalid"


def with_own_process(gib: int) -> AttemptReport:
    """An attempt whose own process the driver lists; the scenario is written once it has a pid."""
    from orchestrator.telemetry.simulate.library import simulated
    from orchestrator.telemetry.simulate.scenario import scenario_of

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        listed = [{"pid": process.pid, "bytes": gib * 2**30}]
        scenario = scenario_of({"devices": [{"model": "h100", "processes": listed}]}, "own")
        folder = Path(os.environ["ORCHESTRATOR_NVML_SCENARIO"]).parent
        cache = Path(os.environ["LD_LIBRARY_PATH"].split(":")[0]).parent
        with simulated(scenario, folder, cache=cache):
            telemetry = Telemetry({"nvml_period_s": 0.02})
            telemetry.start(Slot("n", "h", (0,), scenario.uuids))
            telemetry.attach(process.pid)
            begin = time.perf_counter_ns()
            time.sleep(0.4)
            phases = [Phase("decode", begin, time.perf_counter_ns())]
            seen = telemetry.finish(phases)
        process.kill()
    return AttemptReport("a", "h", Outcome.OK, telemetry=seen.aggregates, facts=seen.facts)


def test_memory_of_the_measured_process(play: Any) -> None:
    report = play("h100", with_own_process, 7)
    assert value(report, "decode.process_memory_bytes") == 7 * 2**30
    assert value(report, "decode.foreign_processes") == 0


def test_gpu_that_falls_off_the_bus(play: Any) -> None:
    lost = [{"function": "*", "from_s": 1.5, "error": "GPU_IS_LOST"}]
    scenario = {"devices": [{"model": "h100", "errors": lost}, {"model": "h100"}]}
    report = play(scenario, watched, {"prefill": 0.4, "decode": 1.8})
    assert reason(report, "decode.energy_j") == "the GPU fell off the bus"
    assert value(report, "prefill.power_max_w") == pytest.approx(980, rel=0.01)
    verdict = judge(report, GPU_RULES)
    assert verdict.state == "invalid"
    assert "fell off the bus" in rule(report, "device_lost").reason
    assert list(report.facts["telemetry"]["lost"]) == [report.slot.gpu_uuids[0]]


def asked_again(uuids: tuple[str, ...], length_s: float) -> tuple[int, bool]:
    """GPUs lost or not found in an attempt, and whether the next one asks the driver again."""
    report = watched({"decode": length_s}, uuids)
    seen = report.facts["telemetry"]
    return len({**seen["lost"], **seen["unopened"]}), not nvml._shared


@pytest.mark.parametrize(
    ("device", "uuids", "lost"),
    [
        ({"errors": [{"function": "*", "from_s": 0.5, "error": "GPU_IS_LOST"}]}, (), 1),
        ({"hang_s": [0.5, 3600]}, (), 1),
        ({}, ("GPU-of-another-node",), 1),
        ({}, (), 0),
    ],
)
def test_after_a_lost_gpu_the_driver_is_asked_again(
    play: Any, device: dict[str, Any], uuids: tuple[str, ...], lost: int
) -> None:
    found = play({"devices": [{"model": "h100", **device}]}, asked_again, uuids, 0.8)
    assert found == (lost, lost > 0)


def test_driver_of_another_version_than_its_library(play: Any) -> None:
    report = play("mismatch", watched, {"decode": 0.2}, ("GPU-x",))
    assert "different versions" in reason(report, "decode.energy_j")
    assert judge(report, GPU_RULES).state == "unverified"
    assert report.facts["simulated"] is True


def test_no_permission_is_a_reason(play: Any) -> None:
    denied = [
        {"function": "nvmlDeviceGetComputeRunningProcesses_v3", "error": "NO_PERMISSION"},
        {"function": "nvmlDeviceGetMemoryInfo_v2", "error": "NO_PERMISSION"},
    ]
    report = play({"devices": [{"model": "h100", "errors": denied}]}, watched, {"decode": 0.3})
    assert reason(report, "decode.foreign_processes") == "no permission to read it"
    assert reason(report, "decode.device_memory_bytes") == "no permission to read it"
    assert judge(report, GPU_RULES).state == "unverified"


def test_driver_that_hangs_does_not_take_the_supervisor_with_it(play: Any) -> None:
    # For longer than any test lasts: it would be waited for in vain.
    scenario = {"devices": [{"model": "h100", "hang_s": [1.0, 3600]}]}
    report = play(scenario, watched, {"decode": 1.3})
    assert reason(report, "decode.energy_j") == "NVML does not answer"
    assert rule(report, "device_lost").state == "invalid"


def test_unknown_uuid_is_a_reason(play: Any) -> None:
    report = play("h100", watched, {"decode": 0.2}, ("GPU-of-another-node",))
    assert reason(report, "decode.energy_j") == "no GPU with this UUID here"
    assert judge(report, GPU_RULES).state == "unverified"


def test_mig_slice_has_its_memory_and_its_parents_clocks(play: Any) -> None:
    uuids = play("mig", lambda: [d.uuid for d in devices()])
    report = play("mig", watched, {"decode": 0.3}, (uuids[0],))
    assert value(report, "decode.device_memory_bytes") == 2**29
    assert value(report, "decode.sm_clock_hz") == pytest.approx(1881e6)
    assert value(report, "decode.throttle_thermal_s") == 0
    assert "share it" in reason(report, "decode.energy_j")
    gpus = report.facts["hardware"]["gpus"]
    assert [g["memory_bytes"] for g in gpus] == [40 * 2**30]


@pytest.mark.parametrize(
    ("error", "says"), [("NOT_FOUND", "MIG is on without a slice"), ("UNKNOWN", "without a reason")]
)
def test_gpu_cut_into_no_slices_is_no_gpu(play: Any, error: str, says: str) -> None:
    errors = [{"function": "nvmlDeviceGetMigDeviceHandleByIndex", "error": error}]
    cut = {"model": "h100", "slices": [{}], "errors": errors}
    found = play({"devices": [cut, {"model": "h100"}]}, inventory)
    assert len(found.devices) == 1
    assert found.devices[0].parent_uuid is None
    assert found.broken
    assert found.reason.startswith("GPU 0: ")
    assert says in found.reason


@pytest.mark.parametrize(
    ("steps", "says"),
    [({"energy_reset_s": 0.8}, "backwards"), ({"energy_tick_s": 1.0}, "may be off by")],
)
def test_energy_counter_that_resets_or_hardly_moves(
    play: Any, steps: dict[str, float], says: str
) -> None:
    report = play({"devices": [{"model": "h100", "steps": steps}]}, watched, {"decode": 1.3})
    assert says in reason(report, "decode.energy_j")


def test_energy_counter_that_wraps_within_a_phase(play: Any) -> None:
    # 32 bits of millijoules, 200 J before their end: at 490 W the counter wraps after 0.4 s.
    steps = {"energy_base_mj": 2**32 - 200_000, "energy_modulus_mj": 2**32}
    report = play({"devices": [{"model": "h100", "steps": steps}]}, watched, {"decode": 0.9})
    begin, end = report.phases[0].begin_ns, report.phases[0].end_ns
    expected_j = 490 * (end - begin) / 1e9
    energy_j, error_j = value(report, "decode.energy_j"), value(report, "decode.energy_error_j")
    assert abs(energy_j - expected_j) <= error_j


def orders() -> tuple[list[str], list[str]]:
    from orchestrator.telemetry.device import resolve_visible

    present = devices()
    return (
        [d.uuid for d in present],
        [resolve_visible(str(i), present)[0].uuid for i in range(len(present))],
    )


def test_pinning_is_by_uuid_where_cuda_lists_gpus_in_another_order(play: Any) -> None:
    from orchestrator.telemetry.simulate.scenario import read_scenario

    scenario = read_scenario("eight")
    present, resolved = play("eight", orders)
    assert resolved == present == list(scenario.uuids)
    # A position means another GPU to CUDA than to NVML; a UUID means the same to both.
    cuda = [scenario.uuids[i] for i in scenario.cuda_order]
    assert all(cuda[i] != present[i] for i in range(8))
    assert {u: cuda[cuda.index(u)] for u in present} == {u: u for u in present}


def test_memory_left_by_an_earlier_attempt_is_invalid(play: Any) -> None:
    steps = {"memory_used_bytes": 6 * 2**30}
    report = play({"devices": [{"model": "h100", "steps": steps}]}, watched, {"decode": 0.2})
    assert rule(report, "memory_before").value == 6 * 2**30
    assert judge(report, GPU_RULES).state == "invalid"


def rehearsed(rules: dict[str, Any]) -> AttemptReport:
    from orchestrator.telemetry.simulate.rehearsal import rehearse

    return rehearse(rules, seconds=0.4, telemetry={"nvml_period_s": 0.02})


def test_a_policy_can_be_tried_on_a_scenario(play: Any) -> None:
    hot = {"devices": [{"model": "h100", "steps": {"reasons": ["sw_thermal_slowdown"]}}]}
    report = play(hot, rehearsed, GPU_RULES)
    assert report.verdict.state == "invalid"
    lenient = {**GPU_RULES, "thermal_slowdown": {"state": "invalid", "limit": 60}}
    assert play(hot, rehearsed, lenient).verdict.state == "valid"
