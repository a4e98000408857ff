"""Finds tasks, and what else is plugged in, by name: built-in modules, then entry points."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, TypeVar

from orchestrator.errors import ConfigError
from orchestrator.measure.task import Task

T = TypeVar("T")


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Those of all packages along ``path``: reading them takes tens of milliseconds."""
    return entry_points(group=group)


class Registry(Generic[T]):
    """Objects of one kind by name. A fixed table, not a scan: a name must never run unknown code.

    Parameters
    ----------
    what : str
        The config group that chooses one.
    kind : type
        What every object must be.
    entry_point_group : str
        Where installed packages register theirs.
    built_in : mapping of str to str
        Name to ``module:attribute``.
    """

    def __init__(
        self, what: str, kind: type[T], entry_point_group: str, built_in: Mapping[str, str]
    ) -> None:
        self._what = what
        self._kind = kind
        self._group = entry_point_group
        self._built_in = dict(built_in)
        self._found: dict[str, T] = {}

    def names(self) -> list[str]:
        """Every one that can be asked for, sorted."""
        return sorted({*self._built_in, *self._installed().names})

    def _installed(self) -> EntryPoints:
        return _entry_points(self._group, tuple(sys.path))

    def find(self, name: str) -> T:
        """The one called ``name``, its module imported.

        Raises
        ------
        ConfigError
            None is called so (the message names those there are), or what is called so is of
            another kind.
        """
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def _load(self, name: str) -> T:
        if name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            loaded = getattr(importlib.import_module(module), attribute)
        else:
            found = [*self._installed().select(name=name)]
            if not found:
                raise ConfigError(
                    f"unknown {self._what} {name!r}",
                    where=self._what,
                    fix=f"Known: {', '.join(self.names())}",
                )
            loaded = found[0].load()
        if not isinstance(loaded, self._kind):
            raise ConfigError(
                f"entry point {name!r} is not a {self._kind.__name__}", where=self._what
            )
        return loaded


TASKS = Registry(
    "task",
    Task,
    "orchestrator.tasks",
    {
        "inference": "orchestrator.tasks.inference:TASK",
        "serving": "orchestrator.tasks.serving.serving:TASK",
        "quality": "orchestrator.tasks.quality:TASK",
        "ceilings": "orchestrator.tasks.ceilings.ceilings:TASK",
        "estimate": "orchestrator.tasks.estimate:TASK",
        "noop": "orchestrator.tasks.noop:TASK",
        "streaming": "orchestrator.tasks.streaming.streaming:TASK",
        "profile": "orchestrator.tasks.profile.profile:TASK",
        "training": "orchestrator.tasks.training.training:TASK",
        "attention": "orchestrator.tasks.attention.attention:TASK",
        "numerics": "orchestrator.tasks.numerics:TASK",
    },
)


def find_task(name: str) -> Task:
    """As :meth:`Registry.find`."""
    return TASKS.find(name)
