"""The simulated library speaks NVML's ABI: the unmodified pynvml loads it and understands it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from orchestrator.errors import ConfigError
from orchestrator.telemetry.simulate.library import _SOURCES, LIBRARY, environment
from orchestrator.telemetry.simulate.scenario import HERE, read_scenario, scenario_of, shipped


def test_library_compiles_without_a_warning(tmp_path: Path) -> None:
    sources = [str(HERE / name) for name in _SOURCES if name.endswith(".c")]
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-shared", "-std=gnu11"]
    command = ["cc", *flags, "-o", str(tmp_path / LIBRARY), *sources, "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_library_exports_nvml_and_nothing_else(library_cache: Path) -> None:
    library = next(library_cache.rglob(LIBRARY))
    done = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no nm on this machine")
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert "nvmlInitWithFlags" in names
    assert all(name.startswith("nvml") for name in names)


def identity(handle_kind: str) -> dict[str, Any]:
    pynvml.nvmlInit()
    by_index = pynvml.nvmlDeviceGetHandleByIndex(0)
    uuid = pynvml.nvmlDeviceGetUUID(by_index)
    bus_id = pynvml.nvmlDeviceGetPciInfo(by_index).busId
    handle = (
        pynvml.nvmlDeviceGetHandleByUUID(uuid)
        if handle_kind == "uuid"
        else pynvml.nvmlDeviceGetHandleByPciBusId(bus_id)
    )
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    older = pynvml.nvmlDeviceGetMemoryInfo(handle)
    field = pynvml.nvmlDeviceGetFieldValues(
        handle, [pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX]
    )
    found = {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "capability": pynvml.nvmlDeviceGetCudaComputeCapability(handle),
        "memory": (memory.total, memory.reserved, memory.used, memory.free),
        "memory_v1": (older.total, older.used, older.free),
        "limit_mw": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "clock_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "pci": pynvml.nvmlDeviceGetPciInfo(handle).bus,
        "power_mw": (field[0].nvmlReturn, field[0].value.uiVal),
        "nvlink": field[1].nvmlReturn,
        "processes": [
            (p.pid, p.usedGpuMemory) for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        ],
        "reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
    }
    pynvml.nvmlShutdown()
    return found


@pytest.mark.parametrize("handle_kind", ["uuid", "bus_id"])
def test_pynvml_reads_what_the_scenario_says(play: Any, handle_kind: str) -> None:
    gib = 2**30
    scenario = {
        "driver": "580.95.05",
        "devices": [
            {
                "model": "h100",
                "uuid": "GPU-0123",
                "bus_id": "00000000:3B:00.0",
                "steps": {"memory_used_bytes": 3 * gib, "reasons": ["sw_power_cap", "sync_boost"]},
                "processes": [{"pid": 77, "bytes": gib}, {"pid": 78}],
            }
        ],
    }
    found = play(scenario, identity, handle_kind)
    total, reserved = 81559 * 2**20, 512 * 2**20
    assert found == {
        "uuid": "GPU-0123",
        "name": "NVIDIA H100 80GB HBM3",
        "driver": "simulated-580.95.05",
        "capability": (9, 0),
        "memory": (total, reserved, 3 * gib, total - reserved - 3 * gib),
        "memory_v1": (total, 3 * gib + reserved, total - reserved - 3 * gib),
        "limit_mw": 700_000,
        "clock_mhz": 1980,
        "pci": 0x3B,
        "power_mw": (0, 490_000),
        "nvlink": pynvml.NVML_ERROR_NOT_SUPPORTED,
        "processes": [(77, gib), (78, None)],
        "reasons": 0x14,
    }


def initialise() -> list[int]:
    codes = []
    for _ in range(2):
        try:
            pynvml.nvmlInit()
            codes.append(0)
        except pynvml.NVMLError as error:
            codes.append(error.value)
    return codes


def test_a_refused_initialisation_stays_refused(play: Any) -> None:
    assert play("mismatch", initialise) == [pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH] * 2
    assert play("h100", initialise) == [0, 0]


def test_struct_sizes_match_pynvmls(play: Any) -> None:
    assert ctypes.sizeof(pynvml.c_nvmlFieldValue_t) == 40
    assert pynvml.nvmlMemory_v2 == ctypes.sizeof(pynvml.c_nvmlMemory_v2_t) | 2 << 24


@pytest.mark.parametrize("name", shipped())
def test_shipped_scenario_is_readable_and_described(name: str) -> None:
    scenario = read_scenario(name)
    assert scenario.description
    assert scenario.lines(5).startswith("start 5\ndriver simulated-")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"devices": [{"model": "h10"}]}, "no model 'h10'"),
        ({"device": []}, "devices"),
        ({"devices": [{"model": "h100", "steps": {"power": 3}}]}, "power_w"),
        ({"devices": [{"model": "h100", "steps": {"reasons": ["thermal"]}}]}, "thermal"),
        ({"devices": [{"model": "h100", "errors": [{"error": "LOST"}]}]}, "LOST"),
        ({"devices": [{"model": "h100", "steps": {"power_w": [[2, 1], [1, 2]]}}]}, "back in time"),
        ({"devices": [{"model": "h100"}], "cuda_order": [1]}, "cuda_order"),
        ({"devices": ["h100"]}, "JSON object"),
    ],
)
def test_scenario_that_cannot_be_meant_is_refused(tree: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scenario_of(tree, "test")


def test_scenario_file_that_is_missing_or_no_json(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for source, says in (("nothing", "h100"), (tmp_path / "no.json", "no such"), (broken, "JSON")):
        with pytest.raises(ConfigError, match=says):
            read_scenario(source)


def test_a_new_process_sees_the_gpus_through_its_environment(
    library_cache: Path, tmp_path: Path
) -> None:
    import os

    program = (
        "from orchestrator.telemetry.device import devices, device_kind_here;"
        "print([d.name for d in devices()], device_kind_here())"
    )
    added = environment("mig", tmp_path, cache=library_cache)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **added},
    )
    assert done.stdout.strip() == (
        "['NVIDIA H100 80GB HBM3 MIG 3g.40gb', 'NVIDIA H100 80GB HBM3 MIG 2g.20gb', "
        "'NVIDIA H100 80GB HBM3 MIG 1g.10gb'] cpu"
    ), done.stderr


def test_command_line_runs_a_command_under_a_scenario() -> None:
    command = [sys.executable, "-m", "orchestrator.telemetry.simulate"]
    program = "from orchestrator.telemetry.device import devices; raise SystemExit(len(devices()))"
    done = subprocess.run([*command, "eight", sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 8
    listed = subprocess.run(command, capture_output=True, text=True)
    assert all(name in listed.stdout for name in shipped())
    unknown = subprocess.run([*command, "h1000", "true"], capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "no scenario 'h1000'" in unknown.stderr
