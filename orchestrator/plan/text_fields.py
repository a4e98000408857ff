"""Which keys hold text: what is written there is kept as it is, whatever number it looks like.

``tracking.root=2024_01`` is a directory and no 202401, ``model.path=1e-4`` no 0.0001. The typed
schema says which; of ``task.…`` all tasks that have such a field must agree.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from orchestrator.plan.plugged_in import PLUGGED_IN
from orchestrator.plan.schema import RootConfig

# Of a sweep file: mappings of keys to values, and a list of such mappings.
_KEYED = ("set", "axes", "baseline")
_KEYED_LISTS = ("exclude",)


@lru_cache(maxsize=4096)
def is_text(key: str) -> bool:
    """Whether the dotted ``key`` is a field of text in the typed schema."""
    path = key.split(".")
    if path[0] not in PLUGGED_IN:
        return _kind(RootConfig, path) is str
    kinds = {_kind(config, path[1:]) for config in _configs(path[0])} - {None}
    return kinds == {str}


def _configs(group: str) -> Iterator[type]:
    for name in PLUGGED_IN[group].names():
        try:
            config = PLUGGED_IN[group].find(name).config
        except ImportError:
            continue  # choosing it says so
        if isinstance(config, type) and is_dataclass(config):
            yield config


def _kind(config: Any, path: list[str]) -> Any:
    """Type of the field at ``path``, without ``None``; None where there is no such field."""
    for name in path:
        if typing.get_origin(config) is dict:
            config = typing.get_args(config)[1]
            continue
        if not (isinstance(config, type) and is_dataclass(config)):
            return None
        config = typing.get_type_hints(config).get(name)
        kinds = [kind for kind in typing.get_args(config) if kind is not type(None)]
        if len(kinds) == 1 and type(None) in typing.get_args(config):
            config = kinds[0]
    return config


def keep_text(config: DictConfig, package: str, file: Path) -> None:
    """Put back, in place, what YAML read as a number or a truth where the schema says text.

    Parameters
    ----------
    config : DictConfig
        As read from ``file``, without a type yet.
    package : str
        Where in the configuration it belongs, dotted; empty for the root.
    """
    places = list(_misread(config, package))
    if not places:
        return
    with open(file, encoding="utf-8") as stream:
        written = yaml.load(stream, Loader=yaml.BaseLoader)
    for path in places:
        node: Any = config
        said: Any = written
        for name in path[:-1]:
            node, said = node[name], said[name if isinstance(name, int) else str(name)]
        last = path[-1]
        node[last] = said[last if isinstance(last, int) else str(last)]


def _misread(config: Any, package: str) -> Iterator[tuple[str | int, ...]]:
    """Places of values that are no text where text belongs."""
    plain = OmegaConf.to_container(config, resolve=False)
    for path, value in leaves(plain):
        if isinstance(value, (bool, int, float)):
            key = _key_at(path, package)
            if key is not None and is_text(key):
                yield path


def _key_at(path: tuple[str | int, ...], package: str) -> str | None:
    """The key that a value in a file is for: its own place, or the one a sweep names."""
    whole = (*(package.split(".") if package else ()), *path)
    if whole[0] == "sweep" and len(whole) > 2:
        place = 2 if whole[1] in _KEYED else 3 if whole[1] in _KEYED_LISTS else len(whole)
        if place < len(whole):
            # Positions are of values on an axis.
            key, *inner = (str(name) for name in whole[place:] if not isinstance(name, int))
            return ".".join([key.lstrip("+"), *inner])
    if any(isinstance(name, int) for name in whole):
        return None
    return ".".join(map(str, whole))


def leaves(
    tree: Any, path: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value inside mappings and lists, with its place."""
    items: Any = ()
    if isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    else:
        yield path, tree
    for name, value in items:
        yield from leaves(value, (*path, name))
