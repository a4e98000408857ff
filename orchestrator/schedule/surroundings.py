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
from orchestrator.errors import OrchestratorError
from orchestrator.host.secrets import without_secrets
from orchestrator.host.software import software
from orchestrator.measure.registry import find_task
from orchestrator.telemetry.fingerprint import machine_of

if TYPE_CHECKING:
    from orchestrator.measure import Task
    from orchestrator.telemetry.device import Device

Identity = Mapping[str, Any]


def conditions_on(identity: Identity, slot: Slot, devices: Sequence[Device]) -> Conditions:
    """What numbers of this configuration are true of, made on ``slot`` of this host now.

    Parameters
    ----------
    devices : sequence of Device
        GPUs that NVML knows here; of them the slot's count.
    """
    task = find_task(identity["task"]["name"])
    machine = machine_of(slot, devices)
    if machine["cores"] == identity["device"]["threads"]:
        # The configuration itself asks for as many: trials that differ in it may be compared.
        machine["cores"] = "as threads"
    packages = software(_packages(task, identity), without_secrets(os.environ, hub=False))
    drivers = {d.driver_version.split(".")[0] for d in devices if d.uuid in slot.gpus}
    if drivers:
        packages["driver"] = "/".join(sorted(drivers))
    return Conditions(machine, packages, _content(task, identity))


def _packages(task: Task, identity: Identity) -> tuple[str, ...]:
    if task.packages is not None:
        return task.packages(identity)
    preloaded = dict.fromkeys(module.partition(".")[0] for module in task.preload)
    quantized = identity["quant"]["scheme"] != "none"
    return (*preloaded, *(["bitsandbytes"] if preloaded and quantized else []))


def _content(task: Task, identity: Identity) -> dict[str, str | None]:
    try:
        if task.content is not None:
            return dict(task.content(identity))
        return content_of(identity["model"])
    except (OrchestratorError, OSError):
        return {"content": None}  # what is wrong is said where it is needed
