"""One composed configuration, from which the trials that share its groups are made cheaply."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task
from orchestrator.plan.axes import COMMAND_LINE, Fixed
from orchestrator.plan.compose import check_task
from orchestrator.plan.identity import check_fields, copied
from orchestrator.plan.messages import translated
from orchestrator.plan.schema import (
    IDENTITY_KEYS,
    SCHEMA_VERSION,
    SETTING_KEYS,
    ClusterConfig,
    RootConfig,
    Settings,
    field_problems,
)
from orchestrator.plan.values import assign

DeviceKind = Callable[[ClusterConfig], str]
Tree = dict[str, Any]


class Composition:
    """A composed configuration with its fixed values in place.

    Value axes are put in one value at a time, typed by the schema once for each; a trial is then a
    copy of plain data. Configurations with interpolations cannot be treated so, because one value
    may decide another: those are resolved trial by trial.

    Parameters
    ----------
    config : DictConfig
        As composed from groups; taken over.
    fixed : sequence of Fixed
        Applied in order.
    axes : sequence of str
        Keys of the value axes.
    """

    def __init__(self, config: DictConfig, fixed: Sequence[Fixed], axes: Sequence[str]) -> None:
        for item in fixed:
            assign(config, item)
        check_task(config)
        self._config = config
        self._axes = tuple(axes)
        self._typed: dict[tuple[int, int], Any] = {}
        self.task = find_task(config.task.name)
        raw = OmegaConf.to_container(config, resolve=False)
        assert isinstance(raw, dict)
        kept = {str(k): v for k, v in raw.items() if k in (*IDENTITY_KEYS, *SETTING_KEYS)}
        self._plain = not any(_interpolated(leaf) for _, leaf in _leaves(kept))
        self._plain = self._plain and not _overlapping(self._axes)
        if self._plain:
            _require_all(kept, given=self._axes)
        self._base = copied(kept)
        self._settings_tree = self._settings_of(config)
        self._checked = False

    @property
    def settings_tree(self) -> Tree:
        """Plain settings, for comparing compositions with each other."""
        return self._settings_tree

    def settings(self) -> Settings:
        """Settings as typed objects."""
        node = OmegaConf.structured(Settings)
        with translated():
            typed = OmegaConf.to_object(OmegaConf.merge(node, self._settings_tree))
        assert isinstance(typed, Settings)
        return typed

    def _settings_of(self, config: DictConfig) -> Tree:
        with translated():
            tree = {key: _resolved(config, key) for key in SETTING_KEYS}
        for key, problem in field_problems(RootConfig, tree, ""):
            raise ConfigError(problem, where=key)
        _check_settings(tree)
        return tree

    def identity(
        self, values: Sequence[tuple[int, Any]], prefixes: Sequence[str], device_kind: DeviceKind
    ) -> tuple[Tree, list[Any]]:
        """The identity of one trial, and its values on the axes as typed.

        Parameters
        ----------
        values : sequence of (int, value)
            For each value axis, the position of the value on it and the value as written.
        prefixes : sequence of str
            ``+`` where an axis adds its key.
        """
        if self._plain and not any(prefixes):
            tree = {"schema": SCHEMA_VERSION, **copied({k: self._base[k] for k in IDENTITY_KEYS})}
            typed = []
            for number, (position, value) in enumerate(values):
                fitted = self._fitted(number, position, value)
                typed.append(fitted)
                _put(tree, self._axes[number], copied(fitted))
            if not self._checked:
                check_fields(tree, self.task.config)
                self._checked = True
        else:
            config = copy.deepcopy(self._config)
            for key, prefix, (_, value) in zip(self._axes, prefixes, values, strict=True):
                assign(config, Fixed(key, value, prefix))
            if str(OmegaConf.select(config, "device.kind")) == "auto":
                config.device.kind = self._device_kind(device_kind)
            with translated():
                typed = [_resolved(config, key) for key in self._axes]
                tree = {"schema": SCHEMA_VERSION}
                tree.update({key: copied(_resolved(config, key)) for key in IDENTITY_KEYS})
            check_fields(tree, self.task.config)
        self._settle(tree, device_kind)
        return tree, typed

    def _fitted(self, number: int, position: int, value: Any) -> Any:
        """A value of an axis as its field's type; assigned and checked once."""
        seen = (number, position)
        if seen not in self._typed:
            key = self._axes[number]
            # A mapping merges into what is there: later values must not see earlier ones.
            config = copy.deepcopy(self._config) if isinstance(value, dict) else self._config
            assign(config, Fixed(key, value, where=COMMAND_LINE))
            with translated(key):
                fitted = _resolved(config, key)
            probe = copied(self._base)
            _put(probe, key, fitted)
            for other, leaf in _leaves({key: fitted}):
                if leaf == "???" or _interpolated(leaf):
                    raise ConfigError("has no plain value", where=other)
            root = key.split(".")[0]
            kind = self.task.config if root == "task" else OmegaConf.get_type(config, root)
            if isinstance(probe[root], Mapping) and isinstance(kind, type):
                problems = field_problems(kind, probe[root], root)
            else:
                problems = field_problems(RootConfig, {root: probe[root]}, "")
            for where, problem in problems:
                if where == key or where.startswith(f"{key}."):
                    raise ConfigError(problem, where=where)
            self._typed[seen] = fitted
        return self._typed[seen]

    def _device_kind(self, device_kind: DeviceKind) -> str:
        kind = device_kind(self.settings().cluster)
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"device=auto came out as {kind!r}", where="device.kind")
        return kind

    def _settle(self, tree: Tree, device_kind: DeviceKind) -> None:
        """Replace what depends on where a person stands: ``auto``, and relative paths."""
        if tree["device"]["kind"] == "auto":
            tree["device"]["kind"] = self._device_kind(device_kind)
        if tree["model"]["path"]:
            tree["model"]["path"] = os.path.abspath(os.path.expanduser(tree["model"]["path"]))


def _check_settings(tree: Tree) -> None:
    """Refuse settings that make no sense together."""
    tracking, cluster = tree["tracking"], tree["cluster"]
    if tracking["kind"] == "server" and not tracking["uri"]:
        raise _must_be_given("tracking.uri")
    if tracking["kind"] == "embedded" and tracking["uri"]:
        raise ConfigError(
            "has no effect on tracking=embedded", where="tracking.uri", fix="Say tracking=server"
        )
    if cluster["kind"] == "ray" and not cluster["address"]:
        raise _must_be_given("cluster.address")
    if cluster["kind"] == "local" and cluster["address"]:
        raise ConfigError(
            "has no effect on cluster=local", where="cluster.address", fix="Say cluster=ray"
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


def _require_all(tree: Tree, given: Sequence[str]) -> None:
    for key, leaf in _leaves(tree):
        if leaf == "???" and key not in given:
            raise _must_be_given(key)


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


def _overlapping(keys: Sequence[str]) -> bool:
    return any(a != b and b.startswith(f"{a}.") for a in keys for b in keys)


def _put(tree: Tree, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[name] = value
