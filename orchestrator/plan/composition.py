"""One composed configuration, from which the trials that share its groups are made cheaply."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from orchestrator.engines.registry import ENGINES
from orchestrator.environments.lock import locked
from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task
from orchestrator.plan.axes import Axis, Fixed
from orchestrator.plan.compose import check_plugged_in
from orchestrator.plan.identity import check_values, copied, without_added
from orchestrator.plan.messages import translated
from orchestrator.plan.schema import (
    DEFAULT_ENGINE,
    IDENTITY_KEYS,
    MISSING,
    SCHEMA_VERSION,
    SETTING_KEYS,
    LoadConfig,
    RootConfig,
    Settings,
    field_problems,
)
from orchestrator.plan.values import assign

Tree = dict[str, Any]


class Composition:
    """A composed configuration with its fixed values in place.

    Parameters
    ----------
    config : DictConfig
        As composed from groups; taken over.
    fixed : sequence of Fixed
        Applied in order.
    axes : sequence of Axis
        The value axes.

    Attributes
    ----------
    plain : bool
        No interpolations, and no axis inside another: values on the axes are independent.
    base : dict
        Plain values of everything, those on the axes included as far as they are there.
    """

    def __init__(self, config: DictConfig, fixed: Sequence[Fixed], axes: Sequence[Axis]) -> None:
        for item in fixed:
            assign(config, item)
        check_plugged_in(config)
        self._config = config
        self.axes = tuple(axes)
        self._keys = [axis.key for axis in axes]
        self._typed: dict[tuple[int, int], Any] = {}
        raw = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
        assert isinstance(raw, dict)
        self.base: Tree = copied({k: raw[k] for k in (*IDENTITY_KEYS, *SETTING_KEYS)})
        leaves = dict(_leaves(self.base))
        self.plain = not (
            any(_interpolated(leaf) for leaf in leaves.values())
            or any(axis.prefix for axis in axes)
            or any(a != b and b.startswith(f"{a}.") for a in self._keys for b in self._keys)
        )
        for key, leaf in leaves.items():
            if leaf == MISSING and key not in self._keys:
                raise _must_be_given(key)
        if self.plain:
            check_values(self.base, skip=self._keys)
        with translated():
            self.settings_tree: Tree = {key: _resolved(config, key) for key in SETTING_KEYS}
        for key, problem in field_problems(RootConfig, self.settings_tree, ""):
            raise ConfigError(problem, where=key)
        _check_settings(self.settings_tree)

    def settings(self) -> Settings:
        """Settings as typed objects."""
        kinds = get_type_hints(Settings)
        return Settings(
            **{
                name: kinds[name](**value) if isinstance(value, dict) else value
                for name, value in copied(self.settings_tree).items()
            }
        )

    def fitted(self, number: int, position: int, value: Any) -> Any:
        """The value at ``position`` of axis ``number`` as its field's type; worked out once."""
        seen = (number, position)
        if seen not in self._typed:
            key = self._keys[number]
            # A mapping merges into what is there: later values must not see earlier ones.
            config = copy.deepcopy(self._config) if isinstance(value, dict) else self._config
            assign(config, Fixed(key, value, where=self.axes[number].where))
            with translated(key):
                fitted = _resolved(config, key)
            probe = copied(self.base)
            put(probe, key, fitted)
            check_values(probe, only=key)
            self._typed[seen] = fitted
        return self._typed[seen]

    def resolved(self, values: Sequence[Any], auto: Callable[[], str]) -> tuple[Tree, list[Any]]:
        """Identity and typed values of one trial, interpolations resolved: slow, always right."""
        config = copy.deepcopy(self._config)
        for axis, value in zip(self.axes, values, strict=True):
            assign(config, Fixed(axis.key, value, axis.prefix, axis.where))
        check_plugged_in(config)
        with translated():
            if _resolved(config, "device.kind") == "auto":
                config.device.kind = auto()
            typed = [_resolved(config, key) for key in self._keys]
            tree: Tree = {key: copied(_resolved(config, key)) for key in IDENTITY_KEYS}
        check_values(tree)
        return tree, typed


class Mixture:
    """Compositions that differ in one independent group each, read as one configuration.

    Values are put on the axes as plain data, typed by the schema once for each; a trial is a copy.
    Configurations with interpolations cannot be treated so, because one value may decide another:
    those are resolved trial by trial.

    Parameters
    ----------
    first : Composition
        Has everything that no other one owns.
    owners : mapping of str to Composition
        Who has the node of that name. All of them are plain.
    """

    def __init__(self, first: Composition, owners: Mapping[str, Composition]) -> None:
        self.first = first
        self._owners = {key: owners.get(key, first) for key in IDENTITY_KEYS}
        self._base = {key: owner.base[key] for key, owner in self._owners.items()}

    def identity(
        self, values: Sequence[tuple[int, Any]], auto: Callable[[], str]
    ) -> tuple[Tree, list[Any]]:
        """The identity of one trial, and its values on the value axes as typed.

        Parameters
        ----------
        values : sequence of (int, value)
            For each value axis, the position of the value on it and the value as written.
        auto : callable
            What ``device=auto`` is.
        """
        first = self.first
        if first.plain:
            tree, typed = copied(self._base), []
            for number, (position, value) in enumerate(values):
                key = first.axes[number].key
                owner = self._owners[key.split(".")[0]]
                typed.append(owner.fitted(number, position, value))
                put(tree, key, copied(typed[-1]))
        else:
            tree, typed = first.resolved([value for _, value in values], auto)
        # What depends on where a person stands is settled here: `auto`, and relative paths.
        if tree["device"]["kind"] == "auto":
            tree["device"]["kind"] = auto()
        if tree["model"]["path"]:
            tree["model"]["path"] = os.path.abspath(os.path.expanduser(tree["model"]["path"]))
        tree |= _used_groups(tree)
        # Not what was asked for, but what it came out as.
        tree["environment"] = locked(tree["environment"])
        return without_added({"schema": SCHEMA_VERSION, **tree}), typed


def _used_groups(tree: Tree) -> dict[str, Tree | None]:
    """What is chosen of the engine and of the load; None where the task has no use for it."""
    task = find_task(tree["task"]["name"])
    found: dict[str, Tree | None] = {}
    for group, used, config in (
        ("engine", task.on_engine, ENGINES.find(DEFAULT_ENGINE).config),
        ("load", task.under_load, LoadConfig),
    ):
        chosen = tree[group]
        found[group] = dict(chosen) if used else None
        # A choice that would change nothing is no part of the identity, and not taken in silence.
        usual = _defaults(config)
        changed = [] if used else [key for key in chosen if chosen[key] != usual.get(key)]
        if changed:
            raise ConfigError(
                f"has no effect on task={task.name}",
                where=group if changed[0] in ("name", "kind") else f"{group}.{changed[0]}",
                fix="Leave it out",
            )
    return found


@lru_cache(maxsize=64)
def _defaults(config: type) -> dict[str, Any]:
    return asdict(config())


def _check_settings(tree: Tree) -> None:
    """Refuse settings that make no sense together."""
    for group, key, needed_by in (("tracking", "uri", "server"), ("cluster", "address", "ray")):
        kind, value = tree[group]["kind"], tree[group][key]
        if kind == needed_by and not value:
            raise _must_be_given(f"{group}.{key}")
        if kind != needed_by and value is not None:
            raise ConfigError(
                f"has no effect on {group}={kind}",
                where=f"{group}.{key}",
                fix=f"Say {group}={needed_by}",
            )


def _resolved(config: DictConfig, key: str) -> Any:
    node = OmegaConf.select(config, key)
    if node is None and _missing(config, key):
        raise _must_be_given(key)
    if OmegaConf.is_config(node):
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise _must_be_given(f"{key}.{missing[0]}")
        return OmegaConf.to_container(node, resolve=True, enum_to_str=True)
    return getattr(node, "name", node) if hasattr(type(node), "__members__") else node


def _missing(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _must_be_given(key: str) -> ConfigError:
    hints = {
        "cluster.address": "Write cluster.address=auto or cluster.address=HOST:PORT",
        "tracking.uri": "Write tracking.uri=http://HOST:PORT",
    }
    return ConfigError("must be given", where=key, fix=hints.get(key, f"Write {key}=VALUE"))


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{key}[{number}]")
    else:
        yield key, tree


def _interpolated(leaf: Any) -> bool:
    return isinstance(leaf, str) and "${" in leaf


def put(tree: Tree, key: str, value: Any) -> None:
    """Set a dotted key whose parents are there."""
    *parents, name = key.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[name] = value
