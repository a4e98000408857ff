"""Whole reports of recorded attempts, each read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.record.store import AttemptSummary, Store


def reports_of(
    store: Store,
    attempts: Mapping[str, Sequence[AttemptSummary]],
    loaded: dict[str, AttemptReport] | None = None,
) -> dict[str, list[AttemptReport]]:
    """Whole reports of every finished attempt, by config hash.

    ``loaded`` holds those that were read before, by run id, and then these too: a tracking server
    takes a tenth of a second for one.
    """
    loaded = {} if loaded is None else loaded
    ended = {c: [a.run_id for a in found if a.outcome] for c, found in attempts.items()}
    missing = [run_id for runs in ended.values() for run_id in runs if run_id not in loaded]
    loaded |= store.load_all(missing)
    return {config: [loaded[run_id] for run_id in runs] for config, runs in ended.items()}
