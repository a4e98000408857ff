"""Puts one value into a composed configuration, typed and checked, or says what was meant."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from orchestrator.errors import ConfigError, nearest
from orchestrator.plan.axes import Fixed, text
from orchestrator.plan.messages import condensed, translated
from orchestrator.plan.schema import OPEN_MAPPINGS


def assign(config: DictConfig, item: Fixed) -> None:
    """Set ``item.key`` in place, as its field's type.

    A whole float fits an int field (``512.0`` is 512). Inside mappings that have no type of their
    own (``model.architecture``) a key must be there already, or be added with ``+``.

    Raises
    ------
    ConfigError
        Unknown key (with the nearest ones), wrong type, a deletion of a typed field, NaN.
    """
    path = item.key.split(".")
    parent = config
    for depth, name in enumerate(path[:-1]):
        parent = _child(config, parent, name, path[: depth + 1], item)
    name = path[-1]
    typed = _field_names(parent)
    if typed is not None and name not in typed:
        raise _unknown(config, item)
    if item.prefix == "~":
        _delete(config, parent, name, typed, item)
        return
    if typed is None and name not in parent and not _adds(item):
        raise _unknown(config, item, addable=True)
    if isinstance(item.value, float) and not math.isfinite(item.value):
        raise ConfigError(f"{item.value} is not a finite number", where=_shown(item))
    _update(config, parent, item)


def _adds(item: Fixed) -> bool:
    """Whether its key may be a new one."""
    return bool(item.prefix) or item.key.rpartition(".")[0] in OPEN_MAPPINGS


def _update(config: DictConfig, parent: DictConfig, item: Fixed) -> None:
    value = item.value
    if isinstance(value, str) and "${" in value:
        with translated(_shown(item)):
            OmegaConf.update(config, item.key, value, force_add=_adds(item))
        return
    name = item.key.rsplit(".", 1)[-1]
    # OmegaConf cannot merge a mapping into a field that is null, or not there yet.
    there = parent._get_node(name) if name in parent else None
    merge = not isinstance(value, dict) or (isinstance(there, DictConfig) and not there._is_none())
    typed = _field_names(parent) is not None and isinstance(there, DictConfig)
    if typed and not isinstance(value, dict) and value is not None:
        raise ConfigError(
            f"{text(value)} is no mapping",
            where=_shown(item),
            fix=f"Write {item.key}={{key:value}}",
        )
    adds = _adds(item) or item.key in OPEN_MAPPINGS
    try:
        OmegaConf.update(config, item.key, value, merge=merge, force_add=adds)
    except ValidationError as error:
        if isinstance(value, float) and value.is_integer() and "Integer" in str(error):
            OmegaConf.update(config, item.key, int(value), force_add=_adds(item))
            return
        raise ConfigError(
            f"{text(value)!r} is not {_expected(parent, name)}",
            where=f"{item.where}, {item.key}" if item.where else item.key,
        ) from error
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ConfigError(
            condensed(str(error)),
            where=_shown(item),
            fix="Write + before a key that is to be added",
        ) from error
    except (OmegaConfBaseException, AssertionError) as error:
        raise ConfigError(condensed(str(error)), where=_shown(item)) from error


def _child(
    config: DictConfig, parent: DictConfig, name: str, path: list[str], item: Fixed
) -> DictConfig:
    typed = _field_names(parent)
    if (typed is not None and name not in typed) or (typed is None and name not in parent):
        if typed is None and item.prefix in ("+", "++"):
            with open_dict(parent):
                parent[name] = {}
        else:
            raise _unknown(config, item)
    node = parent._get_node(name)
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{'.'.join(path)} is a single value, without fields", where=_shown(item))
    if not node._is_none():
        return node
    if item.prefix not in ("+", "++"):
        raise ConfigError(
            f"{'.'.join(path)} is empty in this configuration, so it has no {item.key}",
            where=_shown(item),
        )
    parent[name] = {}
    made: DictConfig = parent[name]
    return made


def _delete(
    config: DictConfig, parent: DictConfig, name: str, typed: set[str] | None, item: Fixed
) -> None:
    if typed is not None:
        raise ConfigError(
            f"~{item.key}: a typed field cannot be deleted",
            where=item.where,
            fix=f"Write {item.key}=null where it may be empty",
        )
    if name not in parent:
        raise _unknown(config, item)
    with open_dict(parent):
        del parent[name]


def _field_names(node: DictConfig) -> set[str] | None:
    kind = OmegaConf.get_type(node)
    if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
        return {f.name for f in fields(kind)}
    return None


def _expected(parent: DictConfig, name: str) -> str:
    kind = OmegaConf.get_type(parent)
    hint = typing.get_type_hints(kind).get(name) if isinstance(kind, type) else None
    if hint is None:
        return "of the right type"
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    names = [
        "null" if part is type(None) else getattr(part, "__name__", str(part)) for part in parts
    ]
    return f"{'an' if names[0][0] in 'aeiou' else 'a'} {' or '.join(names)}"


def _is_union(hint: Any) -> bool:
    union = getattr(types, "UnionType", None)
    return typing.get_origin(hint) in (typing.Union, union)


def _shown(item: Fixed) -> str:
    line = f"{item.prefix}{item.key}={text(item.value)}"
    return f"{item.where}, {line}" if item.where else line


def _unknown(config: DictConfig, item: Fixed, *, addable: bool = False) -> ConfigError:
    known = list(known_keys(config))
    parent = item.key.rpartition(".")[0]
    siblings = [key for key in known if key.startswith(f"{parent}.")] if parent else []
    add = f" (+{item.key} adds it)" if addable else ""
    return ConfigError(
        f"no key {item.key} in this configuration",
        where=item.where,
        fix=nearest(item.key, siblings or known) + add,
    )


def known_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of everything that can be set in ``config``, branches and leaves."""
    for name in config:
        key = f"{prefix}{name!s}"
        yield key
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from known_keys(node, f"{key}.")
