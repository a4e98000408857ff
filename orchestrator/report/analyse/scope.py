"""Conditions on a trial's configuration: which trials a rule is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Condition:
    """What a configuration value must be: one of ``values``, or a number within bounds."""

    values: tuple[Any, ...] | None = None
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether ``value`` meets the condition; a value that is no number meets no bound."""
        if self.values is not None:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


#: Dotted path in the identity (``task.new_tokens``) to what must hold there.
When: TypeAlias = Mapping[str, Condition]


def applies(when: When, config: Mapping[str, Any] | None) -> bool | None:
    """Whether every condition holds; None where there are some and the configuration is unknown."""
    if not when:
        return True
    if config is None:
        return None
    return all(condition.holds(value_at(config, path)) for path, condition in when.items())


def value_at(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    node: Any = config
    for part in path.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def all_but(config: Mapping[str, Any], path: str) -> str:
    """The configuration without the value at ``path``, as a key for trials that differ there."""
    copy: Any = json.loads(json.dumps(config))
    *parents, last = path.split(".")
    node = copy
    for part in parents:
        node = node.get(part, {})
    node.pop(last, None)
    return json.dumps(copy, sort_keys=True)
