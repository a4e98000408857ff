"""The conditions of a trial on a slot: asked before its attempt starts, and while planning.

The one place that puts the groups together; each fact is read where it belongs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import Slot
from orchestrator.conditions import AS_THREADS, Conditions
from orchestrator.engines.content import content_of
from orchestrator.engines.registry import is_remote
from orchestrator.host.software import software
from orchestrator.isolate.variables import server_environment
from orchestrator.measure.registry import find_task
from orchestrator.plan.lm_eval import harness_software
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
        reached = server_environment(os.environ, {}, hub=False)
        self._environment = {k: v for k, v in reached.items() if os.environ.get(k) == v}
        self._machines: dict[Slot, dict[str, Any]] = {}
        self._software: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, identity: Identity, slot: Slot) -> Conditions:
        """What numbers of this configuration are true of, made on ``slot`` now."""
        task = find_task(identity["task"]["name"])
        packages = task.packages_for(identity)
        environment = identity.get("environment")
        if slot not in self._machines:
            self._machines[slot] = machine_of(slot, self._devices)
        if packages not in self._software:
            self._software[packages] = software(packages, self._environment)
        machine, installed = dict(self._machines[slot]), dict(self._software[packages])
        installed |= harness_software(identity)
        if environment is not None:
            versions = environment["packages"]
            installed = {k: v for k, v in installed.items() if k not in packages}
            installed |= {name: versions[name] for name in packages if name in versions}
            installed["python"] = environment["python"]
        if machine["cores"] == identity["device"]["threads"]:
            # The configuration itself asks for as many: trials that differ in it may be compared.
            machine["cores"] = AS_THREADS
        if is_remote(identity):
            machine = {"machine": None}
        if drivers := {d.driver_version for d in self._devices if d.uuid in slot.gpus}:
            installed["driver"] = "/".join(sorted({text.split(".")[0] for text in drivers}))
        return Conditions(machine, installed, _content(task, identity))


def _content(task: Task, identity: Identity) -> dict[str, str | None]:
    try:
        if task.content is not None:
            return dict(task.content(identity))
        return content_of(identity["model"])
    except Exception:  # also of a third party's task: what is wrong is said where it is needed
        return {"content": None}
