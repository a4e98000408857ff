"""What a number is true of beside its configuration: the machine, the software, the content.

A config hash says what was asked; conditions say of what the answer is true. Attempts of different
conditions are never pooled, and one counts as done only for a run that could meet its conditions.

========  =========================================================================================
machine   CPU and its instruction sets; GPUs; cores and memory of the slot; simulated or real
software  Python, the packages of engine and evaluation, the driver, variables that change kernels
content   digests of what the loader reads: weights, configuration, tokenizer, code, texts
========  =========================================================================================

Heat, other load, swapping and stolen time are disturbances: the verdict's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GROUPS = ("machine", "software", "content")
#: The identifier of a group of which something could not be found out: equal to nothing.
UNKNOWN = "unknown"
#: The cores of a slot where the configuration itself asks for as many threads.
AS_THREADS = "as threads"
_ID_CHARS = 12
_MOST_TOLD = 3


@dataclass(frozen=True)
class Conditions:
    """Facts of the three groups, by name; a value of None is one that could not be found out.

    Attributes
    ----------
    machine, software, content : mapping of str to JSON value
    """

    machine: Mapping[str, Any] = field(default_factory=dict)
    software: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> dict[str, str]:
        """A digest of each group, 12 hex digits; :data:`UNKNOWN` where a fact is None."""
        return {group: _id(getattr(self, group)) for group in GROUPS}

    @property
    def id(self) -> str:
        """``c:`` and a digest of all three: never to be mistaken for a config hash."""
        return joint_id(self.ids)


def joint_id(ids: Mapping[str, str]) -> str:
    """``c:`` and a digest of the groups' identifiers."""
    return f"c:{_id(dict(ids))}"


def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two :attr:`Conditions.ids` are of one class: what is unknown equals nothing."""
    return UNKNOWN not in one.values() and dict(one) == dict(other)


def difference(before: Conditions | None, now: Conditions) -> str:
    """What is not as it was, in one line: ``cores 1 → 2``."""
    if before is None:
        return "recorded before conditions were"
    told = _differences(before, now)
    more = f" and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
    return ", ".join(told[:_MOST_TOLD]) + more


def software_difference(before: Conditions, now: Conditions) -> tuple[str, ...]:
    """What software two trials do not share: ``transformers 5.20.2 → 5.23.0``.

    A package that only one of them depends on is its configuration's doing; a variable that is set
    for one of them is not.
    """
    sides = [before.software, now.software]
    kept = [
        {name: v for name, v in side.items() if name.isupper() or all(name in s for s in sides)}
        for side in sides
    ]
    return tuple(_differences(Conditions(software=kept[0]), Conditions(software=kept[1])))


def _differences(before: Conditions, now: Conditions) -> list[str]:
    return [
        _told(group, name, getattr(before, group).get(name), getattr(now, group).get(name))
        for group in GROUPS
        for name in {**getattr(before, group), **getattr(now, group)}
        if getattr(before, group).get(name) != getattr(now, group).get(name)
        or getattr(now, group).get(name, "") is None
    ]


def _told(group: str, name: str, before: Any, now: Any) -> str:
    if group == "content":
        return f"{name}: changed" if now is not None else f"{name}: not checked"
    if before is None and now is None:
        return f"{name}: not known"
    if before is None or now is None:
        shown = ["none" if value is None else value for value in (before, now)]
        return f"{name} {shown[0]} → {shown[1]}"
    if name == "instructions":
        return "other CPU instructions"
    return f"{name} {before} → {now}"


def _id(facts: Mapping[str, Any]) -> str:
    if any(value is None for value in facts.values()):
        return UNKNOWN
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_CHARS]
