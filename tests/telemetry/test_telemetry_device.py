"""Devices by UUID in every order, the cheap device kind, and what counts as the same hardware."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace

import pytest

import orchestrator.telemetry as telemetry
from orchestrator.telemetry import Device, Inventory, hardware_fingerprint, resolve_visible
from orchestrator.telemetry import device as device_module

H100 = Device("GPU-aaaa-1", "NVIDIA H100 80GB HBM3", "00000000:10:00.0", 80 * 2**30, "580.95.05")
A100 = replace(H100, uuid="GPU-aabb-2", name="NVIDIA A100-SXM4-80GB", pci_bus_id="00000000:21:00.0")
SLICE = replace(H100, uuid="MIG-cc", parent_uuid="GPU-aaaa-1", pci_bus_id="00000000:32:00.0")
PRESENT = (H100, A100, SLICE)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, PRESENT),
        ("all", PRESENT),
        ("", ()),
        ("-1", ()),
        ("1,0", (A100, H100)),
        ("GPU-aabb-2", (A100,)),
        ("GPU-aab", (A100,)),
        ("MIG-cc, 0", (SLICE, H100)),
        ("0,7,1", (H100,)),  # as CUDA: the first entry that names nothing ends the list
        ("GPU-aa", ()),  # names two
        ("0,0", (H100,)),
    ],
)
def test_visible_devices(visible: str | None, expected: tuple[Device, ...]) -> None:
    assert resolve_visible(visible, PRESENT) == expected


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


@pytest.mark.parametrize(
    ("visible", "torch_has_cuda", "found", "kind"),
    [
        (None, True, (H100,), "cuda"),
        ("0", True, (H100,), "cuda"),
        ("", True, (H100,), "cpu"),
        ("-1", True, (H100,), "cpu"),
        (None, False, (H100,), "cpu"),
        (None, True, (), "cpu"),
        (None, True, (replace(H100, simulated=True),), "cpu"),
    ],
)
def test_device_kind(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    torch_has_cuda: bool,
    found: tuple[Device, ...],
    kind: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(device_module, "_torch_has_cuda", lambda: torch_has_cuda)
    simulated = any(d.simulated for d in found)
    monkeypatch.setattr(device_module, "inventory", lambda: Inventory(found, simulated=simulated))
    assert telemetry.device_kind_here() == kind


def test_asking_for_the_device_kind_imports_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.telemetry as t; t.device_kind_here(); t.devices();"
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_exported_names() -> None:
    assert set(telemetry.__all__) == {
        "PARQUET_ARTIFACT",
        "Device",
        "Inventory",
        "Series",
        "SeriesSet",
        "Telemetry",
        "Watched",
        "derived",
        "device_kind_here",
        "devices",
        "hardware_facts",
        "hardware_fingerprint",
        "inventory",
        "judge",
        "resolve_visible",
    }
    assert all(hasattr(telemetry, name) for name in telemetry.__all__)
