"""Telemetry of a real GPU: what the simulation promises, tried on hardware where there is some."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.measure import Absent, Phase, Value
from orchestrator.telemetry import Inventory, Telemetry, inventory, judge, resolve_visible
from orchestrator.telemetry.gpu import GpuSampler

pytestmark = pytest.mark.gpu
RULES = yaml.safe_load(
    (Path(__file__).resolve().parents[2] / "conf" / "verdict" / "default.yaml").read_text()
)["rules"]
# Keeps the GPU busy for a while with nothing but torch, and says when it has begun.
LOAD = """
import time, torch
a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
torch.cuda.synchronize()
print("busy", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    for _ in range(50):
        b = a @ a
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def found() -> Inventory:
    here = inventory()
    if not here.devices or here.simulated:
        pytest.skip(f"no NVIDIA GPU: {here.reason or 'simulated'}")
    return here


@pytest.fixture
def busy(found: Inventory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that computes on the first GPU, and that GPU's UUID."""
    torch = pytest.importorskip("torch")
    if not torch.version.cuda:
        pytest.skip("torch is a build without CUDA")
    uuid = found.devices[0].uuid
    with subprocess.Popen(
        [sys.executable, "-c", LOAD],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n"
        yield process, uuid
        process.kill()


def test_devices_are_found_by_uuid(found: Inventory) -> None:
    for position, device in enumerate(found.devices):
        assert device.uuid.startswith(("GPU-", "MIG-"))
        assert device.memory_bytes > 2**30
        assert resolve_visible(str(position), found.devices) == (device,)
        assert resolve_visible(device.uuid, found.devices) == (device,)


def test_cuda_means_the_same_gpu_by_a_uuid(found: Inventory) -> None:
    torch = pytest.importorskip("torch")
    if not torch.version.cuda:
        pytest.skip("torch is a build without CUDA")
    program = "import torch; print(torch.cuda.get_device_properties(0).uuid)"
    for device in found.devices:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": device.uuid},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in device.uuid or device.parent_uuid is not None


def test_a_busy_gpu_tells_energy_power_clocks_and_memory(
    busy: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, uuid = busy
    slot = Slot("n", "h", (0,), (uuid,))
    telemetry = Telemetry({})
    telemetry.start(slot)
    telemetry.attach(process.pid)
    begin = time.perf_counter_ns()
    time.sleep(4)
    phases = [Phase("decode", begin, time.perf_counter_ns())]
    seen = telemetry.finish(phases)
    report = AttemptReport(
        "a", "h", Outcome.OK, phases=phases, telemetry=seen.aggregates, facts=seen.facts, slot=slot
    )
    figures = {n: m.value for n, m in seen.aggregates.items() if isinstance(m, Value)}
    reasons = {n: m.reason for n, m in seen.aggregates.items() if isinstance(m, Absent)}
    assert seen.facts["simulated"] is False
    assert seen.facts["telemetry"]["lost"] == {}
    assert figures["decode.sm_clock_hz"] > 1e8
    assert figures["decode.device_memory_bytes"] > 2**25
    if "decode.energy_j" in figures:
        watts = figures["decode.energy_j"] / 4
        assert 5 < watts < 3000
        if "decode.power_max_w" in figures:
            assert watts <= 1.3 * figures["decode.power_max_w"]
    else:
        assert reasons["decode.energy_j"]
    if "decode.process_memory_bytes" in figures:
        assert figures["decode.process_memory_bytes"] > 2**25
        assert figures["decode.foreign_processes"] == 0
    seconds = {n: v for n, v in figures.items() if n.startswith("decode.throttle_")}
    assert all(0 <= v <= 4.5 for v in seconds.values()), "counters are not in nanoseconds"
    rules = {r.rule: r for r in judge(report, RULES).rules}
    assert rules["device_lost"].state == "pass"
    assert all(r.reason for r in rules.values() if r.state == "unknown")


def test_reading_a_gpu_is_cheap(found: Inventory) -> None:
    sampler = GpuSampler([found.devices[0].uuid])
    sampler.open()
    sampler.attach(os.getpid())
    sampler.edge()
    spent_s, rounds = sampler.spent_s, 40
    for _ in range(rounds):
        sampler.tick()
    sampler.close()
    # 3 % of a core for eight GPUs at 50 ms leaves 0.19 ms a GPU; a driver's own share is generous.
    assert (sampler.spent_s - spent_s) / rounds < 0.005
