"""Finds tasks by registered name: built-in modules first, then installed entry points."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from orchestrator.errors import ConfigError
from orchestrator.measure.task import Task

ENTRY_POINT_GROUP = "orchestrator.tasks"

# name -> module holding ``TASK``. A fixed table, not a scan: a name must never run unknown code.
BUILT_IN = {
    "inference": "orchestrator.tasks.inference",
    "quality": "orchestrator.tasks.quality",
    "ceilings": "orchestrator.tasks.ceilings.ceilings",
    "estimate": "orchestrator.tasks.estimate",
    "noop": "orchestrator.tasks.noop",
    "streaming": "orchestrator.tasks.streaming.streaming",
    "profile": "orchestrator.tasks.profile.profile",
    "llamacpp": "orchestrator.tasks.llamacpp",
    "training": "orchestrator.tasks.training.training",
    "attention": "orchestrator.tasks.attention.attention",
    "numerics": "orchestrator.tasks.numerics",
}


def task_names() -> list[str]:
    """Every task that can be asked for, sorted."""
    return sorted({*BUILT_IN, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))})


@cache
def find_task(name: str) -> Task:
    """The task called ``name``, its module imported.

    Raises
    ------
    ConfigError
        None is called so (the message names those there are), or what is called so is no task.
    """
    if name in BUILT_IN:
        task = importlib.import_module(BUILT_IN[name]).TASK
    else:
        found = [e for e in entry_points(group=ENTRY_POINT_GROUP) if e.name == name]
        if not found:
            raise ConfigError(
                f"unknown task {name!r}", where="task", fix=f"Known: {', '.join(task_names())}"
            )
        task = found[0].load()
    if not isinstance(task, Task):
        raise ConfigError(f"entry point {name!r} is not a Task", where="task")
    return task
