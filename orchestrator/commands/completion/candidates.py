"""Words that an unfinished command line may go on with: commands, flags, overrides, what is stored.

click knows the commands and their flags, Hydra the overrides, the store the rest.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from typing import TYPE_CHECKING

import click
from click.shell_completion import ShellComplete

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from orchestrator.record import Store

_PROGRAM = re.compile(r"\s*(?:\S*python[\d.]*\s+-m\s+orchestrator|\S+)(?=\s|$)")
_HASH_SHOWN = 12


def candidates(line: str, commands: click.Group) -> list[str]:
    """Whole words that the last word of ``line`` may become; ``line`` ends at the cursor.

    Never raises for what a person has typed: where nothing is known, nothing is offered.
    """
    words, word = _split(line)
    known = commands.list_commands(click.Context(commands))
    found = [] if words or word.startswith("-") else known
    if not words or words[0] not in known:
        words = ["run", *words]
    # Files and directories are left to the shell, which knows them better.
    with contextlib.suppress(OrchestratorError, click.ClickException, OSError):
        items = ShellComplete(commands, {}, "", "").get_completions(words, word)
        found = [*found, *(item.value for item in items if item.type == "plain")]
    return list(dict.fromkeys(item for item in found if item.startswith(word)))


def _split(line: str) -> tuple[list[str], str]:
    """Finished words after the program, and the one at the cursor (empty after a blank)."""
    line = _PROGRAM.sub("", line, count=1)
    finished, word = re.fullmatch(r"(?s)(.*?\s|)(\S*)", line.lstrip() or "").groups()  # type: ignore[union-attr]
    try:
        return shlex.split(finished), word
    except ValueError:  # an open quote: the words before it are still words
        return finished.split(), word


def overrides(context: click.Context, word: str) -> list[str]:
    """Overrides, as the configuration of the ones before them has groups and keys."""
    from orchestrator.plan.complete import complete_override
    from orchestrator.plan.hydra_cli import parse_run_args

    try:
        before = parse_run_args(context.params.get("overrides") or ())
    except OrchestratorError:
        return []
    return complete_override(
        word, before.overrides, config_dirs=before.config_dirs, config_name=before.config_name
    )


def tracking(context: click.Context, word: str) -> list[str]:
    """Overrides that say which store is meant."""
    return [offered for offered in overrides(context, word) if "tracking" in offered]


def hashes(context: click.Context, word: str) -> list[str]:
    """Recorded config hashes, as short as they are shown."""
    return _hashes(_store(context))


def sweeps(context: click.Context, word: str) -> list[str]:
    """Recorded sweeps."""
    return _sweeps(_store(context))


def selections(context: click.Context, word: str) -> list[str]:
    """What ``compare`` and ``gate`` take: sweeps, their runs from the last, config hashes."""
    store = _store(context)
    names = _sweeps(store)
    runs = [f"{name}@-{back}" for name in names for back in (1, 2)]
    return [*names, *(runs if "@" in word else ()), *_hashes(store)]


def ends(context: click.Context, word: str) -> list[str]:
    """What ``bisect`` takes for an end: environments, config hashes."""
    from orchestrator.plan.compose import Composer

    named = [name for name in Composer().options("environment") if name != "none"]
    return [*named, *_hashes(_store(context))]


def running(context: click.Context, word: str) -> list[str]:
    """Sweeps that run now."""
    from orchestrator.record.drivers import drivers_directory, read_drivers

    states = read_drivers(drivers_directory(_store(context).spool_root))
    return sorted({state.sweep for state in states if state.alive is not False})


def rules(context: click.Context, word: str) -> list[str]:
    """Gate rules in ``conf/gate``; a path is completed by the shell."""
    from orchestrator.plan.places import conf_directory

    return sorted(file.stem for file in (conf_directory() / "gate").glob("*.yaml"))


def _given(context: click.Context) -> list[str]:
    """The overrides typed so far, whatever the command calls its words."""
    words = [*(context.params.get("overrides") or ()), *(context.params.get("words") or ())]
    return [word for word in words if "=" in word]


def _store(context: click.Context) -> Store:
    from orchestrator.plan.expand import settings_of
    from orchestrator.record import open_store

    return open_store(settings_of(_given(context)).tracking)


def _hashes(store: Store) -> list[str]:
    return sorted(config_hash[:_HASH_SHOWN] for config_hash in store.attempts())


def _sweeps(store: Store) -> list[str]:
    return sorted({run.sweep for run in store.sweep_runs() if run.sweep})
