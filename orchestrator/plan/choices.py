"""Which words choose options of config groups and which set values, and whether they exist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.plan.axes import COMMAND_LINE, Axis, Fixed, parse, text
from orchestrator.plan.compose import Composer

#: Short spellings: an option of a group, and the choices it stands for.
SHORT = {("task", "llamacpp"): {"task": "inference", "engine": "llamacpp"}}


def split(fixed: Sequence[Fixed], composer: Composer) -> tuple[dict[str, str], list[Fixed]]:
    """Choices of groups (``+group`` where the root file has none) apart from values.

    Raises
    ------
    ConfigError
        A group, option or key that does not exist.
    """
    groups: dict[str, str] = {}
    written: dict[str, str] = {}
    values: list[Fixed] = []
    for item in fixed:
        if not composer.is_group(item.key) or isinstance(item.value, dict):
            _require_root(item.key, item.where, composer)
            values.append(item)
            continue
        if item.prefix == "~":
            raise ConfigError(
                f"~{item.key}: a group cannot be left out",
                where=item.where,
                fix=f"Choose one of {', '.join(composer.options(item.key))}",
            )
        chosen = choice_of(item.key, item.value, item.prefix, item.where, composer)
        # What is written out counts, before or after a short spelling that stands for it too.
        written.update([chosen])
        groups.update(SHORT.get(chosen, dict([chosen])))
    return {
        **groups,
        **{key: name for key, name in written.items() if (key, name) not in SHORT},
    }, values


def check_axis(axis: Axis, is_group: bool, composer: Composer) -> None:
    """Raise :class:`ConfigError` for an axis that cannot be one, before anything is composed."""
    if axis.key in ("task.name", "engine.name"):
        group = axis.key.partition(".")[0]
        raise ConfigError("is chosen by its group", where=axis.key, fix=f"Write {group}=a,b")
    if axis.prefix == "~":
        raise ConfigError(f"~{axis.key}: a deletion cannot be swept", where=axis.where)
    if not is_group:
        _require_root(axis.key, axis.where, composer)


def _require_root(key: str, where: str, composer: Composer) -> None:
    """Say `did you mean quant` for `quantt`, before a configuration is composed for it."""
    root = key.split(".")[0].split("/")[0]
    if key == "environment.file":
        raise ConfigError("is where the group's own file lies", where=key, fix="Leave it out")
    if root not in composer.root_keys:
        raise ConfigError(
            f"no group or key {key or repr(key)}",
            where=where,
            fix=nearest(root, {*composer.root_keys, *composer.groups()}),
        )


def choice_of(
    key: str, option: Any, prefix: str, where: str, composer: Composer
) -> tuple[str, str]:
    """The entry of a choice of groups, its option checked.

    Raises
    ------
    ConfigError
        No such option; or no default to replace, and no ``+`` to add one.
    """
    group = key.split("@")[0]
    if option is None or option == "" or isinstance(option, (list, dict)):
        raise ConfigError(
            f"{key}={text(option)} chooses nothing",
            where=where,
            fix=f"Known: {', '.join(composer.options(group))}",
        )
    name = text(option)
    if not composer.has_option(group, name):
        raise ConfigError(
            f"no {group} {name!r}",
            where=where,
            fix=nearest(name, composer.every_option(group)),
        )
    if key in composer.default_groups:
        return key, name
    parent, _, inner = key.rpartition("/")
    if parent in composer.default_groups:
        raise ConfigError(
            f"{inner} is a folder of {parent}", where=where, fix=f"Write {parent}={inner}/{name}"
        )
    if not prefix:
        raise ConfigError(
            f"group {key} is not in the defaults", where=where, fix=f"Write +{key}={name}"
        )
    return f"+{key}", name


def without_hydra(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides without Hydra's own, and the directories of ``hydra.searchpath``.

    Raises
    ------
    ConfigError
        Anything else of Hydra's own configuration.
    """
    words: list[str] = []
    searched: list[str] = []
    for word in overrides:
        name = word.lstrip("+~").split("=")[0]
        if name == "hydra.searchpath":
            found = parse(word, lambda key: None, COMMAND_LINE)
            value = found.value if isinstance(found, Fixed) else None
            if not isinstance(value, list):
                raise ConfigError("is a list", where=name, fix="hydra.searchpath=[DIRECTORY]")
            searched.extend(str(item) for item in value)
        elif name == "hydra" or name.startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"{word}: Hydra's own launcher, sweeper and output are not used here",
                where=COMMAND_LINE,
                fix="Leave it out; results go to tracking.root",
            )
        else:
            words.append(word)
    return words, searched
