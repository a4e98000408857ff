"""The conditions of a trial on a slot: asked before its attempt starts, and while planning.

The one place that puts the groups together; each fact is read where it belongs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import Slot
from orchestrator.conditions import Conditions
from orchestrator.engines.content import content_of
from orchestrator.host.secrets import without_secrets
from orchestrator.host.software import software
from orchestrator.measure.registry import find_task
from orchestrator.telemetry.fingerprint import machine_of

if TYPE_CHECKING:
    from orchestrator.measure import Task
    from orchestrator.telemetry.device import Device

Identity = Mapping[str, Any]


class Surroundings:
    """Of this host; what does not change in the life of an object is found out once.

    Parameters
    ----------
    devices : sequence of Device
        GPUs that NVML knows here.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = devices
        self._environment = without_secrets(os.environ, hub=False)
        self._machines: dict[Slot, dict[str, Any]] = {}
        self._software: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, identity: Identity, slot: Slot) -> Conditions:
        """What numbers of this configuration are true of, made on ``slot`` now."""
        task = find_task(identity["task"]["name"])
        packages = _packages(task, identity)
        if slot not in self._machines:
            self._machines[slot] = machine_of(slot, self._devices)
        if packages not in self._software:
            self._software[packages] = software(packages, self._environment)
        machine, installed = dict(self._machines[slot]), dict(self._software[packages])
        if machine["cores"] == identity["device"]["threads"]:
            # The configuration itself asks for as many: trials that differ in it may be compared.
            machine["cores"] = "as threads"
        if drivers := {d.driver_version for d in self._devices if d.uuid in slot.gpus}:
            installed["driver"] = "/".join(sorted({text.split(".")[0] for text in drivers}))
        return Conditions(machine, installed, _content(task, identity))


def _packages(task: Task, identity: Identity) -> tuple[str, ...]:
    if task.packages is not None:
        return task.packages(identity)
    preloaded = dict.fromkeys(module.partition(".")[0] for module in task.preload_for(identity))
    quantized = identity["quant"].get("scheme", "none") != "none"
    return (*preloaded, *(["bitsandbytes"] if preloaded and quantized else []))


def _content(task: Task, identity: Identity) -> dict[str, str | None]:
    try:
        if task.content is not None:
            return dict(task.content(identity))
        return content_of(identity["model"])
    except Exception:  # also of a third party's task: what is wrong is said where it is needed
        return {"content": None}
