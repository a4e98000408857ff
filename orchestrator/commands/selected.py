"""What commands about recorded attempts share: the store, names of trials, files to write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.measure.wording import counted
from orchestrator.plan.expand import settings_of
from orchestrator.record import AttemptSummary, Store, open_store
from orchestrator.record.selection import Selection
from orchestrator.report.analyse.labels import (
    NOTHING,
    SEPARATOR,
    axis_names,
    axis_value,
    plain_label,
)


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", where=flag) from error


def refuse_the_same(a: Selection, b: Selection) -> None:
    """Refuse to set attempts against themselves: these would be equal."""
    if shared := a.run_ids.keys() & b.run_ids.keys():
        same = len(shared) == len(a.run_ids) == len(b.run_ids)
        what = "are the same attempts" if same else f"share {counted(len(shared), 'attempt')}"
        raise UsageError(
            f"{a.word} and {b.word} {what}",
            fix="Of a sweep's runs, NAME@-1 is the last and NAME@-2 the one before",
        )


def store_of(overrides: Sequence[str]) -> Store:
    """Where what is recorded is read; raises ``UsageError`` for an override that says more."""
    of = "what is recorded, only where that is: tracking.root=… or tracking.uri=…"
    return open_store(settings_of(overrides, of=of, reads=("tracking",)).tracking)


def finished(store: Store, prefix: str) -> tuple[str, list[AttemptSummary]]:
    """The config hash that begins so, and its attempts that ended: at least one."""
    config_hash = store.resolve(prefix)
    found = [summary for summary in store.attempts([config_hash])[config_hash] if summary.outcome]
    if not found:
        raise UsageError(f"no finished attempt of {prefix} is recorded", where=store.where)
    return config_hash, found


def labels_of_configs(*selections: Selection) -> dict[str, str]:
    """Names of all trials in play, with the options that tell them apart."""
    configs = {h: config for selection in selections for h, config in selection.configs.items()}
    options = {h: dict(_options(config)) for h, config in configs.items()}
    values: dict[str, set[str]] = {}
    for own in options.values():
        for key, value in own.items():
            values.setdefault(key, set()).add(axis_value(value, key))
    names = axis_names([key for key in values if len(values[key]) > 1])
    return {
        h: SEPARATOR.join(
            [
                plain_label(config),
                *(
                    f"{names[key]} {axis_value(value, key)}"
                    for key, value in options[h].items()
                    if key in names and axis_value(value, key) != NOTHING
                ),
            ]
        )
        for h, config in configs.items()
    }


# What a plain label says, what differences of software say, and what no one asked for.
_TOLD = ("task.name", "engine.name", "model.id", "model.path", "model.source", "schema")
_TOLD_GROUPS = ("quant", "environment")


def _options(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every option by its whole name, without those that are told anyway."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if name not in _TOLD_GROUPS:
                yield from _options(value, f"{name}.")
        elif name not in (*_TOLD, *_TOLD_GROUPS):
            yield name, value
