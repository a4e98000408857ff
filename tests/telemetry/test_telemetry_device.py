"""Devices by UUID in every order, and the cheap device kind."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from orchestrator.telemetry import device as device_module
from orchestrator.telemetry.device import Device, Inventory, resolve_visible

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
    assert device_module.device_kind_here() == kind


def test_asking_for_the_device_kind_imports_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.telemetry.device as t; t.device_kind_here(); t.devices();"
        "print([m for m in ('torch', 'numpy', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
