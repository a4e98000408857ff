"""What commands about recorded attempts share: the store, names of trials, files to write."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.measure.wording import counted
from orchestrator.plan.expand import settings_of
from orchestrator.record import AttemptSummary, Store, open_store
from orchestrator.record.selection import Selection
from orchestrator.report.analyse.labels import SEPARATOR, axis_name, axis_value, plain_label


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
    tracking = settings_of(overrides).tracking
    for word in overrides:
        if re.split(r"[./=]", word.lstrip("+~"), maxsplit=1)[0] != "tracking":
            raise UsageError(
                f"{word} changes nothing of what is recorded",
                fix="Give only where that is: tracking.root=… or tracking.uri=…",
            )
    return open_store(tracking)


def finished(store: Store, prefix: str) -> tuple[str, list[AttemptSummary]]:
    """The config hash that begins so, and its attempts that ended: at least one."""
    config_hash = store.resolve(prefix)
    found = [summary for summary in store.attempts([config_hash])[config_hash] if summary.outcome]
    if not found:
        raise UsageError(f"no finished attempt of {prefix} is recorded", where=store.where)
    return config_hash, found


def labels_of_configs(*selections: Selection) -> dict[str, str]:
    """Names of all trials in play, with the task options that tell them apart."""
    configs = {h: config for selection in selections for h, config in selection.configs.items()}
    values: dict[str, set[str]] = {}
    for config in configs.values():
        for key, value in config["task"].items():
            values.setdefault(key, set()).add(axis_value(value))
    varying = [key for key in values if len(values[key]) > 1 and key != "name"]
    return {
        config_hash: SEPARATOR.join(
            [
                plain_label(config),
                *(
                    f"{axis_name(f'task.{key}')} {axis_value(config['task'][key])}"
                    for key in varying
                    if key in config["task"]
                ),
            ]
        )
        for config_hash, config in configs.items()
    }
