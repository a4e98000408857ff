"""What counts as the same hardware, and what is known of an attempt that nobody watched."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from orchestrator.attempt import Slot
from orchestrator.host import cpu
from orchestrator.telemetry.device import Device
from orchestrator.telemetry.fingerprint import hardware_fingerprint, hardware_of, machine_of
from orchestrator.telemetry.nvml import SCENARIO_VARIABLE

H100 = Device("GPU-aaaa-1", "NVIDIA H100 80GB HBM3", "00000000:10:00.0", 80 * 2**30, "580.95.05")
A100 = replace(H100, uuid="GPU-aabb-2", name="NVIDIA A100-SXM4-80GB", pci_bus_id="00000000:21:00.0")


def facts(*devices: Device, cpu: str = "AMD EPYC 9654", cores: int = 8) -> dict[str, object]:
    return {"cpu": cpu, "cores": cores, "gpus": [asdict(d) for d in devices]}


def test_fingerprint_is_of_the_kind_not_of_the_unit() -> None:
    base = hardware_fingerprint(facts(H100))
    assert hardware_fingerprint(facts(replace(H100, uuid="GPU-other"))) == base
    assert hardware_fingerprint(facts(replace(H100, driver_version="580.105"))) == base
    different = [
        facts(A100),
        facts(H100, H100),
        facts(replace(H100, power_limit_w=350.0)),
        facts(replace(H100, driver_version="590.1")),
        facts(replace(H100, memory_bytes=94 * 2**30)),
        facts(H100, cpu="Intel Xeon"),
        facts(H100, cores=16),
        facts(),
    ]
    prints = {hardware_fingerprint(f) for f in different}
    assert len(prints) == len(different)
    assert base not in prints


def test_simulated_hardware_never_has_a_real_fingerprint() -> None:
    simulated = {**facts(replace(H100, simulated=True)), "simulated": True}
    assert hardware_fingerprint(simulated).startswith("simulated-")
    assert not hardware_fingerprint(facts(H100)).startswith("simulated-")


def test_an_attempts_hardware_is_that_of_its_own_gpus() -> None:
    slot = Slot("n", "host", (0, 1, 2), (A100.uuid,), A100.uuid)
    found = hardware_of(slot, (H100, A100))
    assert [g["name"] for g in found["hardware"]["gpus"]] == [A100.name]
    assert found["hardware"]["cores"] == 3
    assert found["hardware_fingerprint"].startswith("1xa100")
    assert found["simulated"] is False


def test_gpus_nobody_can_tell_of_are_the_same_on_one_host_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prints = [
        hardware_of(slot, ())["hardware_fingerprint"]
        for slot in (
            Slot("n", "host", (0,), (), "0"),
            Slot("n", "host", (0,), (), "1"),
            Slot("m", "other", (0,), (), "0"),
            Slot("n", "host", (0,), (), "0,1"),
            Slot("n", "host", (0,)),
        )
    ]
    assert prints[0].startswith("1xunknown-gpu-")
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    monkeypatch.setenv(SCENARIO_VARIABLE, "/nowhere")
    assert hardware_of(Slot("n", "host", (0,), (), "0"), ())["simulated"] is True
    assert hardware_of(Slot("n", "host", (0,)), ())["simulated"] is False


def test_how_the_machine_is_set_is_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = Slot("node", "host", (0,))
    monkeypatch.setattr(cpu, "governor", lambda: None)
    before = machine_of(slot, ())
    assert "CPU governor" not in before
    monkeypatch.setattr(cpu, "governor", lambda: "powersave")
    assert machine_of(slot, ()) == {**before, "CPU governor": "powersave"}
