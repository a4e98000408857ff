"""What an unfinished override may become: groups, options, keys, values, lists of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from orchestrator.plan.compose import NOT_CHOSEN, Composer
from orchestrator.plan.messages import translated
from orchestrator.plan.repository import TypedLoader, search_path


def complete_override(
    word: str,
    before: Sequence[str] = (),
    *,
    config_dirs: Sequence[Path | str] = (),
    config_name: str = "config",
) -> list[str]:
    """Whole words that ``word`` may become, in alphabetical order.

    Parameters
    ----------
    word : str
        As far as it is typed: ``quant=nf``, ``task.pro``, ``quant=bf16,n``.
    before : sequence of str
        The overrides already on the line; they decide which keys there are.

    Returns
    -------
    list of str
        A group or key that wants a value ends in ``=``, one with parts in ``.``.

    Raises
    ------
    ConfigError
        As :func:`orchestrator.plan.expand.build`, where the words before cannot be composed.
    """
    # Of a list of values only the last is unfinished.
    head, comma, tail = word.rpartition(",")
    if comma:
        key = head.partition("=")[0]
        chosen = set(head.partition("=")[2].split(","))
        options = complete_override(
            f"{key}={tail}", before, config_dirs=config_dirs, config_name=config_name
        )
        values = [option.partition("=")[2] for option in options]
        return [f"{head},{value}" for value in values if value not in chosen]
    query = DefaultCompletionPlugin(TypedLoader(search_path(config_dirs)))
    with translated("completion"):
        # Hydra composes the words before; as a multirun, for one with several values is an axis.
        found = query._query(config_name, " ".join(["--multirun", *before, word]))
    composer = Composer(config_dirs, config_name)
    kept = [item for item in found if _can_be_chosen(item, composer)]
    # Options in folders of a group: model=known/gpt2.
    group, equals, begun = word.partition("=")
    if equals and composer.is_group(group.lstrip("+")):
        options = composer.every_option(group.lstrip("+"))
        kept += [f"{group}={option}" for option in options if option.startswith(begun)]
    # Not in the root file: a sweep is added.
    return sorted({re.sub(r"^sweep[=.]$", "+sweep=", item) for item in kept})


def _can_be_chosen(item: str, composer: Composer) -> bool:
    key = item.lstrip("+~").partition("=")[0]
    root, folder, _ = key.partition("/")
    # A folder of a group is part of the option's name.
    return re.split(r"[./]", key)[0] not in NOT_CHOSEN and not (
        folder and root in composer.default_groups
    )
