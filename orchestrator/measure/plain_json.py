"""Dataclasses as plain JSON and back, by the types of their fields.

A class that sets ``_json_kind`` carries it as ``kind`` in its JSON, by which one of several in a
union is told from the others. Of the standard library alone: a measured process imports it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """``value`` with dataclasses as mappings, enums as their values, tuples as lists."""
    if is_dataclass(value):
        kind = {"kind": value._json_kind} if hasattr(value, "_json_kind") else {}
        return kind | {one.name: to_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Samples are many, and plain already.
        plain = bool(value) and isinstance(value[0], (float, int, str))
        return list(value) if plain else [to_json(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def from_json(kind: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` as :func:`to_json` gave it; raises what a wrong tree raises.

    Raises
    ------
    LookupError, TypeError, ValueError
        It is not the JSON of a ``kind``.
    """
    hints = _hints(kind)
    tag = "kind" if hasattr(kind, "_json_kind") else None
    return kind(**{name: _typed(hints[name], v) for name, v in data.items() if name != tag})


_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


def _typed(kind: Any, data: Any) -> Any:
    if kind is Any:
        return data
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        each = map(float, data) if inner[0] is float else (_typed(inner[0], one) for one in data)
        return origin(each)
    if origin is dict:
        return {key: _typed(inner[1], one) for key, one in data.items()}
    if origin is UnionType:
        known = [one for one in inner if one is not type(None)]
        if len(known) > 1 and isinstance(data, Mapping):
            known = [{one._json_kind: one for one in known}[data["kind"]]]
        return data if data is None or len(known) != 1 else _typed(known[0], data)
    if hasattr(kind, "__dataclass_fields__"):
        return from_json(kind, data)
    return kind(data) if isinstance(kind, type) else data
