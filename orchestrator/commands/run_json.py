"""What ``run --json`` prints, of sweeps that measure and of those that only compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from orchestrator.schedule.state import EndedAttempt

#: Of a trial its config hash, how it ended, and its MLflow run; None while that is in the spool.
Ending: TypeAlias = "tuple[str, str, str | None]"


def endings(attempts: Iterable[EndedAttempt], run_ids: Mapping[str, str]) -> list[Ending]:
    """Of the attempts of a run, in the order they ended; one that was tried again is no ending.

    Parameters
    ----------
    run_ids : mapping of str to str
        MLflow run by attempt id.
    """
    return [
        (ended.config_hash, ended.outcome, run_ids.get(ended.attempt_id))
        for ended in attempts
        if not ended.retried
    ]


def run_json(
    endings: Iterable[Ending],
    *,
    sweep: str,
    run_id: str,
    cached: int,
    stale: int = 0,
    wall_s: float,
) -> dict[str, Any]:
    """Plain JSON of one run.

    Parameters
    ----------
    run_id : str
        The sweep's MLflow run.
    stale : int
        Trials that were measured before, under other conditions.
    """
    trials = [{"hash": h, "outcome": outcome, "run_id": run} for h, outcome, run in endings]
    return {
        "sweep": sweep,
        "run_id": run_id,
        "outcomes": dict(Counter(trial["outcome"] for trial in trials)),
        "cached": cached,
        "stale": stale,
        "wall_s": wall_s,
        "trials": trials,
    }
