"""Which options of a trial change nothing of what it measures, and what is said where one is asked.

An option says itself which others it depends on (``only`` of its field), a task which groups it
does not read (``Task.unread``). A line says that what was asked for has no effect in any trial of a
plan; or, where it has none in some of them, how many measure the same. It is no error: who gives
one list of options to all tasks means no harm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

from orchestrator.measure.registry import find_task
from orchestrator.measure.wording import counted, plain
from orchestrator.plan.axes import Axis, Fixed
from orchestrator.plan.identity import config_hash, copied, kinds_of
from orchestrator.plan.schema import SETTING_KINDS

# What is for processes that measure; a pure task's cells are computed by the driver.
_OF_PROCESSES = ("environment", "device.threads", "repeats", "timeout_s", "isolate", "telemetry")


@dataclass(frozen=True)
class Idle:
    """Why an option has no effect (``task.transfer=sync``), and whether it says more than usual."""

    because: str
    asked: bool = True


def without_effect(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Idle]:
    """Groups and options that change nothing of what this trial measures, by dotted name."""
    task = find_task(identity["task"]["name"])
    unread = (*task.unread, *(_OF_PROCESSES if task.is_pure else ()))
    found = dict.fromkeys(unread, Idle(f"task={task.name}"))
    # A search says itself what it needs.
    if not task.under_load and settings["search"]["kind"] == "none":
        found["slo"] = Idle(f"task={task.name}, which is under no load")
    for group, kind in kinds_of(identity).items():
        found.update(_idle(kind, identity[group], group))
    for group, kind in SETTING_KINDS.items():
        found.update(_idle(kind, settings[group], group))
    return found


def _idle(kind: type, values: Mapping[str, Any], group: str) -> Iterator[tuple[str, Idle]]:
    for option in _dependent(kind):
        for name, wanted in option.metadata["only"].items():
            if values[name] != wanted:
                # What chooses an option of a group goes by the group's own name.
                key = group if name == "kind" else f"{group}.{name}"
                because = f"{key}={plain(values[name])}"
                yield f"{group}.{option.name}", Idle(because, values[option.name] != option.default)


@lru_cache(maxsize=64)
def _dependent(kind: type) -> tuple[Field[Any], ...]:
    found = fields(kind) if is_dataclass(kind) else ()
    return tuple(option for option in found if option.metadata.get("only"))


class Effects:
    """What each word of a command line and its sweep did, over the trials of one plan.

    Parameters
    ----------
    fixed, axes : sequence of Fixed, of Axis
        What was asked for.
    usual : mapping
        What is chosen where nobody asks, of groups and of single values.
    """

    def __init__(
        self, fixed: Sequence[Fixed], axes: Sequence[Axis], usual: Mapping[str, Any]
    ) -> None:
        self._asked = {i.key: i.where for i in fixed if usual.get(i.key) != i.value}
        self._asked.update({axis.key: axis.where for axis in axes})
        self._axes = [axis.key for axis in axes]
        self._useless: dict[str, str] = {}
        self._useful: set[str] = set()
        self._measured: set[str] = set()
        self._again: Counter[tuple[str, str]] = Counter()

    def add(self, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Take a trial into account."""
        idle = without_effect(identity, settings)
        found = {key: idle[of] for key in self._asked if (of := _holder(key, idle)) is not None}
        self._useful.update(self._asked.keys() - found.keys())
        for key, one in found.items():
            if one.asked:
                self._useless[key] = one.because
        varied = [key for key in self._axes if key in found]
        if not varied:
            return
        measured = config_hash(_without(identity, varied))
        if measured in self._measured:
            for key in varied:
                self._again[key, found[key].because] += 1
        self._measured.add(measured)

    def notes(self) -> tuple[str, ...]:
        """A line for each word without effect, and for each axis that measures the same again."""
        useless = {
            f"{where}, {key}" if (where := self._asked[key]) else key: because
            for key, because in self._useless.items()
            if key not in self._useful
        }
        return (
            *(f"{named} has no effect on {because}" for named, because in useless.items()),
            *(
                f"{key} has no effect on {because}: {counted(count, 'trial')} of this plan will"
                " measure the same as another. sweep.exclude leaves them out"
                for (key, because), count in self._again.items()
            ),
        )


def _holder(key: str, idle: Iterable[str]) -> str | None:
    """Which of ``idle`` the asked ``key`` is, or is an option of."""
    return next((of for of in idle if key == of or key.startswith(f"{of}.")), None)


def _without(identity: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    tree = copied(identity)
    for key in keys:
        *parents, name = key.split(".")
        node: Any = tree
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(name, None)
    return tree  # type: ignore[no-any-return]
