"""What a trial asks of the cluster, and whether it can be done at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.attempt import Resources
from orchestrator.environments.lock import why_unresolved
from orchestrator.errors import ConfigError, TaskError
from orchestrator.measure.task import Task
from orchestrator.measure.wording import counted
from orchestrator.plan.schema import ResourcesConfig


def resources_of(identity: Mapping[str, Any], asked: ResourcesConfig, task: Task) -> Resources:
    """What was asked for, and for the rest what the device and the task need.

    Raises
    ------
    ConfigError
        ``device=cuda`` with no GPU; more threads than cores, which would be measured as fewer.
    """
    device = identity["device"]
    on_cuda = device["kind"] == "cuda"
    gpus = asked.gpus if asked.gpus is not None else int(on_cuda)
    if on_cuda and gpus == 0:
        raise ConfigError(
            "0 GPUs on device=cuda", where="resources.gpus", fix="Leave it out, or use device=cpu"
        )
    threads, cpus = device["threads"], asked.cpus
    needed = None if threads is None else threads + task.own_cores
    if cpus is None:
        cpus = needed
    elif needed is not None and cpus < needed:
        own = f" and {task.own_cores} for {task.name} itself" if task.own_cores else ""
        raise ConfigError(
            f"{counted(cpus, 'core')} for {counted(threads, 'thread')}{own}",
            where="resources.cpus",
            fix=f"Leave it out, or give {needed}",
        )
    # None on GPUs is their fair share of the node's cores, which only the scheduler knows.
    if cpus is None and gpus == 0 and not task.whole_node:
        cpus = 1
    return Resources(
        gpus=gpus, cpus=cpus, memory_bytes=asked.memory_bytes, accelerator=asked.accelerator
    )


def infeasible_reason(task: Task, identity: Mapping[str, Any]) -> str | None:
    """One line why ``task`` cannot do this, or None; a check that breaks is a reason too."""
    environment = identity["environment"]
    if reason := why_unresolved(environment):
        return reason
    try:
        # First, for it may know which environment has the package.
        if reason := task.check(identity):
            return reason
        for name in task.packages_for(identity) if environment is not None else ():
            if name not in environment["packages"]:
                return f"its environment has no {name}"
        return None
    except TaskError as error:
        return str(error)
    except ConfigError:
        raise
    except Exception as error:
        # A third-party check must not take the other trials of the plan down with it.
        return f"the task's own check failed: {type(error).__name__}: {error}"
