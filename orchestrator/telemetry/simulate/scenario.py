"""A scenario of simulated GPUs: JSON a person writes, checked, turned into lines for nvml.c.

::

    {"description": "...", "driver": "580.95.05",
     "devices": [{"model": "h100", "count": 1,
                  "steps": {"power_w": [[0, 500], [2.0, 700]],          seconds, value
                            "reasons": [[0, []], [2.0, ["sw_thermal_slowdown"]]]},
                  "errors": [{"function": "*", "from_s": 3.0, "error": "GPU_IS_LOST"}],
                  "processes": [{"pid": 4242, "bytes": 1000000, "from_s": 0.5}],
                  "slices": [{"profile": "1g.10gb"}]}]}

Everything not said is the model's (``models.json``) as a busy, healthy GPU. Times count from the
moment the simulation is activated.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.telemetry.nvml import SIMULATED_DRIVER, TRANSLATION, load_pynvml

HERE = Path(__file__).resolve().parent
SHIPPED = HERE / "scenarios"

REASON_BITS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
}
STEPS = (
    *("power_w", "power_limit_w", "sm_clock_mhz", "sm_clock_max_mhz", "sm_clock_app_mhz"),
    *("memory_clock_mhz", "temperature_c", "memory_temperature_c", "pstate", "utilization"),
    *("memory_utilization", "memory_total_bytes", "memory_reserved_bytes", "memory_used_bytes"),
    *("reasons", "pcie_generation", "pcie_width", "ecc_corrected", "ecc_uncorrected"),
    *("energy_tick_s", "energy_base_mj", "energy_modulus_mj", "energy_reset_s"),
)
_KEYS = {
    "scenario": ("description", "driver", "cuda", "init_error", "cuda_order", "devices"),
    "device": (
        *("model", "count", "uuid", "bus_id", "steps", "errors", "fields", "unsupported"),
        *("processes", "hang_s", "slices"),
    ),
    "slice": ("profile", "uuid", "memory_total_bytes", "memory_used_bytes", "processes"),
    "process": ("kind", "pid", "bytes", "from_s", "until_s"),
    "error": ("function", "from_s", "error"),
}
_FOREVER_S = 1e12


@dataclass(frozen=True)
class Scenario:
    """A checked scenario; ``lines(start_ns)`` is what nvml.c reads.

    Attributes
    ----------
    cuda_order : tuple of int
        Positions of the devices in the order CUDA would list them; NVML's own order is by bus id.
    """

    name: str
    description: str
    cuda_order: tuple[int, ...]
    uuids: tuple[str, ...]
    body: tuple[str, ...]

    def lines(self, start_ns: int) -> str:
        """The line file of this scenario, begun at ``start_ns`` on CLOCK_MONOTONIC."""
        return "\n".join([f"start {start_ns}", *self.body, ""])


def shipped() -> list[str]:
    """Names of the scenarios that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


def read_scenario(source: str | Path) -> Scenario:
    """A scenario by file, or by the name of a shipped one; raises :class:`ConfigError`."""
    path = Path(source)
    if not path.suffix and not path.exists():
        path = SHIPPED / f"{source}.json"
        if not path.exists():
            raise ConfigError(
                f"no scenario {str(source)!r}", fix=f"A JSON file, or one of {', '.join(shipped())}"
            )
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(str(error.strerror).lower(), where=str(path)) from error
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", where=str(path)) from error
    return scenario_of(data, path.stem, where=str(path))


def scenario_of(data: Mapping[str, Any], name: str, *, where: str = "scenario") -> Scenario:
    """Check a scenario's JSON tree; raises :class:`ConfigError` that names the nearest key."""
    _check(data, "scenario", where)
    codes = _codes()
    driver = data.get("driver", "580.95.05")
    body = [f"driver {SIMULATED_DRIVER}-{driver}", f"nvml 13.{driver}"]
    body.append(f"cuda {int(data.get('cuda', 13000))}")
    if data.get("init_error"):
        body.append(f"init {_code(data['init_error'], codes, where)}")
    models = json.loads((HERE / "models.json").read_text())
    uuids: list[str] = []
    number = 0
    for entry in data.get("devices", ()):
        _check(entry, "device", where)
        model = models.get(entry.get("model"))
        if model is None:
            known = ", ".join(models)
            raise ConfigError(
                f"no model {entry.get('model')!r}", where=where, fix=f"Known: {known}"
            )
        for _ in range(int(entry.get("count", 1))):
            body += _device(entry, model, name, number, codes, where, uuids)
            number += 1
    order = tuple(data.get("cuda_order", range(number)))
    if sorted(order) != list(range(number)):
        raise ConfigError(f"cuda_order is no order of {number} devices", where=where)
    return Scenario(name, str(data.get("description", "")), order, tuple(uuids), tuple(body))


def _device(
    entry: Mapping[str, Any],
    model: Mapping[str, Any],
    name: str,
    number: int,
    codes: Mapping[str, int],
    where: str,
    uuids: list[str],
) -> Iterator[str]:
    own = entry.get("uuid") or f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{name}/{number}')}"
    uuids.append(own)
    bus = entry.get("bus_id") or f"00000000:{0x10 + 0x11 * number:02X}:00.0"
    yield from ("device", f"string uuid {own}", f"string name {model['name']}")
    yield f"string bus_id {bus}"
    steps = {**_healthy(model), **entry.get("steps", {})}
    if entry.get("slices"):
        yield "step mig 0 1"
    elif model["capability"] in ([8, 0], [9, 0], [10, 0]):
        yield "step mig 0 0"
    yield f"step capability_major 0 {model['capability'][0]}"
    yield f"step capability_minor 0 {model['capability'][1]}"
    yield from _steps(steps, where)
    for function in entry.get("unsupported", ()):
        yield f"error {function} 0 {codes['NOT_SUPPORTED']}"
    for error in entry.get("errors", ()):
        _check(error, "error", where)
        code = _code(error["error"], codes, where)
        yield f"error {error.get('function', '*')} {float(error.get('from_s', 0))} {code}"
    for field, error in entry.get("fields", {}).items():
        yield f"field {int(field)} {_code(error, codes, where)}"
    yield from _processes(entry, where)
    if "hang_s" in entry:
        begin, end = entry["hang_s"]
        yield f"hang {float(begin)} {float(end)}"
    for position, part in enumerate(entry.get("slices", ())):
        _check(part, "slice", where)
        profile = part.get("profile", "1g.10gb")
        key = f"{name}/{number}/{position}"
        slice_uuid = part.get("uuid") or f"MIG-{uuid.uuid5(uuid.NAMESPACE_OID, key)}"
        uuids.append(slice_uuid)
        yield from (
            "slice",
            f"string uuid {slice_uuid}",
            f"string name {model['name']} MIG {profile}",
        )
        total = part.get("memory_total_bytes", 10 * 2**30)
        yield f"step memory_total_bytes 0 {total}"
        yield f"step memory_used_bytes 0 {part.get('memory_used_bytes', 0)}"
        yield from _processes(part, where)


def _healthy(model: Mapping[str, Any]) -> dict[str, Any]:
    limit_w = model["power_limit_w"]
    steps: dict[str, Any] = {
        "power_w": model.get("power_w") or 0.7 * limit_w,
        "sm_clock_mhz": round(0.95 * model["sm_clock_max_mhz"]),
        "sm_clock_max_mhz": model["sm_clock_max_mhz"],
        "memory_clock_mhz": model["memory_clock_mhz"],
        "temperature_c": 62,
        "pstate": 0,
        "utilization": 0.97,
        "memory_utilization": 0.6,
        "memory_total_bytes": model["memory_mib"] * 2**20,
        "memory_reserved_bytes": 512 * 2**20,
        "memory_used_bytes": 0,
        "reasons": [],
        "pcie_generation": model["pcie"][0],
        "pcie_width": model["pcie"][1],
    }
    if limit_w is not None:
        steps["power_limit_w"] = limit_w
    if model["energy_tick_s"] is not None:
        steps |= {"energy_tick_s": model["energy_tick_s"], "energy_base_mj": 1_000_000}
    if model["memory_temperature"]:
        steps["memory_temperature_c"] = 68
    if model["ecc"]:
        steps |= {"ecc_corrected": 0, "ecc_uncorrected": 0}
    return steps


def _steps(steps: Mapping[str, Any], where: str) -> Iterator[str]:
    for key, value in steps.items():
        if key not in STEPS:
            raise ConfigError(f"unknown quantity {key!r}", where=where, fix=nearest(key, STEPS))
        if value is None:
            continue
        moving = isinstance(value, Sequence) and any(isinstance(v, Sequence) for v in value)
        moving = moving and not isinstance(value, str) and not isinstance(value[0], str)
        last_s = -math.inf
        for at_s, level in value if moving else [(0, value)]:
            if at_s < last_s:
                raise ConfigError(f"the steps of {key} go back in time", where=where)
            last_s = at_s
            yield f"step {key} {float(at_s)} {_bits(level, where) if key == 'reasons' else level}"


def _bits(names: Sequence[str], where: str) -> int:
    bits = 0
    for name in names:
        if name not in REASON_BITS:
            fix = nearest(name, REASON_BITS)
            raise ConfigError(f"unknown clocks-event reason {name!r}", where=where, fix=fix)
        bits |= REASON_BITS[name]
    return bits


def _processes(entry: Mapping[str, Any], where: str) -> Iterator[str]:
    for process in entry.get("processes", ()):
        _check(process, "process", where)
        until_s = process.get("until_s")
        until_s = _FOREVER_S if until_s is None else until_s
        kind, pid = process.get("kind", "compute"), int(process["pid"])
        memory = int(process.get("bytes") or 0)
        yield f"process {kind} {pid} {memory} {float(process.get('from_s', 0))} {float(until_s)}"


def _check(entry: Mapping[str, Any], kind: str, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"a {kind} is a JSON object", where=where)
    for key in entry:
        if key not in _KEYS[kind]:
            fix = nearest(key, _KEYS[kind])
            raise ConfigError(f"unknown key {key!r} in a {kind}", where=where, fix=fix)


def _codes() -> dict[str, int]:
    pynvml = load_pynvml()
    return {name: int(getattr(pynvml, f"NVML_ERROR_{name}")) for name in TRANSLATION}


def _code(name: str, codes: Mapping[str, int], where: str) -> int:
    if name not in codes:
        raise ConfigError(f"unknown NVML error {name!r}", where=where, fix=nearest(name, codes))
    return codes[name]
