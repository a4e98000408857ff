"""What hardware an attempt ran on, and the short name that says what it is comparable with."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.attempt import Slot
from orchestrator.host import cpu, memory
from orchestrator.telemetry.device import Device
from orchestrator.telemetry.nvml import SCENARIO_VARIABLE

# Instruction sets that kernels are chosen by.
_VECTORS = re.compile(r"avx|amx|fma|f16c|sse4|sve|asimd|bf16|fphp|i8mm")


def hardware_of(slot: Slot, devices: Sequence[Device]) -> dict[str, Any]:
    """Facts of an attempt on ``slot``, of whose GPUs NVML knows ``devices``.

    Recorded of every attempt, watched or not: without them nobody could say what its figures are
    comparable with, or that they were simulated.

    Returns
    -------
    dict
        ``hardware``, ``hardware_fingerprint`` and ``simulated``.
    """
    owned = [device for device in devices if device.uuid in slot.gpus]
    unknown = len(slot.gpus) - len(owned)
    facts: dict[str, Any] = {
        "cpu": cpu.model() or "unknown",
        "cores": len(slot.cpus) or os.cpu_count() or 1,
        "gpus": [asdict(device) for device in owned],
        # Also where the simulated driver refused to answer at all.
        "simulated": bool(slot.gpus) and SCENARIO_VARIABLE in os.environ,
    }
    if unknown:
        facts |= {"unknown_gpus": unknown, "host": slot.host}
    return {
        "hardware": facts,
        "hardware_fingerprint": hardware_fingerprint(facts),
        "simulated": facts["simulated"],
    }


def machine_of(slot: Slot, devices: Sequence[Device]) -> dict[str, Any]:
    """What :class:`~orchestrator.conditions.Conditions` says of the machine, for ``slot``.

    Memory only where it was set aside: without a limit a number does not depend on how much there
    is.
    """
    facts = hardware_of(slot, devices)["hardware"]
    gpus = [
        {
            "name": gpu["name"],
            "memory_gib": round((gpu["memory_bytes"] or 0) / 2**30),
            "power_limit_w": gpu["power_limit_w"] or 0,
        }
        for gpu in facts["gpus"]
    ]
    found: dict[str, Any] = {
        "CPU": facts["cpu"],
        "instructions": " ".join(sorted(filter(_VECTORS.match, cpu.flags()))),
        "cores": facts["cores"],
    }
    # Set by whoever runs the machine, and worth a part of every time.
    settings = {"CPU governor": cpu.governor(), "huge pages": memory.huge_pages()}
    found |= {name: value for name, value in settings.items() if value is not None}
    if gpus:
        found["GPUs"] = len(gpus)
        found |= {f"GPU {key}": value for key, value in gpus[0].items()}
        if any(gpu != gpus[0] for gpu in gpus):
            found["GPUs of several kinds"] = json.dumps(gpus)
    if "unknown_gpus" in facts:
        found |= {"unknown GPUs": facts["unknown_gpus"], "host": facts["host"]}
    if slot.memory_bytes is not None:
        found["memory_limit_bytes"] = slot.memory_bytes
    if facts["simulated"]:
        found["simulated"] = True
    return found


def hardware_fingerprint(facts: Mapping[str, Any]) -> str:
    """Short name of what a figure is comparable on; equal for equal hardware, whatever the unit.

    GPU model, memory, power limit and major driver version count, and the CPU with its cores; not
    the UUID (two H100s of one kind compare) nor the host's name. GPUs that NVML could not tell of
    are only known to be the same on the same host.

    Parameters
    ----------
    facts : mapping
        The ``hardware`` of :func:`hardware_of`.
    """
    gpus = [
        {
            "name": g.get("name"),
            "memory_gib": round((g.get("memory_bytes") or 0) / 2**30),
            "power_limit_w": g.get("power_limit_w"),
            "driver": str(g.get("driver_version") or "").split(".")[0],
        }
        for g in facts.get("gpus") or ()
    ]
    basis: dict[str, Any] = {"cpu": facts.get("cpu"), "cores": facts.get("cores"), "gpus": gpus}
    unknown = facts.get("unknown_gpus")
    if unknown:
        basis |= {"unknown_gpus": unknown, "host": facts.get("host")}
    text = json.dumps(basis, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    if gpus:
        label = f"{len(gpus)}x{_slug(gpus[0]['name'])}"
    elif unknown:
        label = f"{unknown}xunknown-gpu"
    else:
        label = f"{facts.get('cores')}x{_slug(facts.get('cpu'))}"
    return f"{'simulated-' if facts.get('simulated') else ''}{label}-{digest}"


def _slug(name: object) -> str:
    plain = re.sub(r"\((r|tm)\)|nvidia|geforce|processor|cpu|@.*$", " ", str(name).lower())
    return "-".join(re.findall(r"[a-z0-9.]+", plain))[:40] or "unknown"
