"""Runs as their tags tell them: an attempt, and an invocation of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orchestrator.attempt import Outcome
from orchestrator.record.backend import RunRow
from orchestrator.record.runrecord import (
    ATTEMPT_TAG,
    CELLS_TAG,
    CONDITION_TAGS,
    NUMBER_TAG,
    PARENT_TAG,
    SEARCH_TAG,
    SWEEP_TAG,
    RunRecord,
    outcome_of,
    verdict_of,
)

# Of a measurement that telemetry let pass and a person did not.
MARKED = "its verdict was set to invalid in MLflow"

# The tags an AttemptSummary is made of.
SUMMARY_TAGS = (
    "config_hash",
    ATTEMPT_TAG,
    "outcome",
    "verdict",
    "attempt",
    "sweep",
    "host",
    "gpu_uuids",
    "reason",
    "driver_id",
    "simulated",
    "hardware_fingerprint",
    *CONDITION_TAGS.values(),
    PARENT_TAG,
)


@dataclass(frozen=True)
class AttemptSummary:
    """An attempt as its run's tags tell it; enough to decide what is still to do.

    Attributes
    ----------
    run_id, attempt_id : str
        MLflow's name of it, and this program's own.
    config_hash, sweep : str
        The trial, and the sweep it was made for.
    number : int
        Which attempt of its trial it is, from 1.
    outcome, verdict : str or None
        None while it runs.
    reason : str or None
        Why it is not ``ok``.
    host, driver_id : str
        Where it ran, and which driver asked for it.
    simulated : bool
        Whether its GPUs were a scenario's.
    hardware_fingerprint : str or None
        Of what it ran on: two that differ are not compared unless asked for.
    status : str
        MLflow's run status.
    started_at, ended_at : float, float or None
        Unix seconds.
    devices : tuple of str
        GPU UUIDs.
    conditions : mapping of str to str
        Identifiers of its conditions by group (:attr:`Conditions.ids`); empty where it has none.
    parent_run_id : str
        The sweep's run it was made under; empty while it is in the spool.
    """

    run_id: str
    config_hash: str
    outcome: str | None
    verdict: str | None
    number: int
    status: str
    started_at: float
    ended_at: float | None
    sweep: str
    host: str | None
    devices: tuple[str, ...] = ()
    attempt_id: str = ""
    reason: str | None = None
    driver_id: str = ""
    simulated: bool = False
    hardware_fingerprint: str | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)
    parent_run_id: str = ""


@dataclass(frozen=True)
class SweepRun:
    """A parent run: one invocation of a sweep; of a pure one, it holds the table of its cells.

    Attributes
    ----------
    run_id, sweep, status : str
        MLflow's run, the sweep's name, MLflow's run status.
    started_at, ended_at : float, float or None
        Unix seconds.
    driver_id, sweep_id : str
        Which driver ran it, and which definition of the sweep it was (a digest of its hashes).
    has_cells : bool
        Whether it is a pure sweep's, with a table instead of attempts.
    search_id : str
        The search that it is a step of; empty for none.
    number : int
        Which run of the sweep it is, from 1: by what was recorded before, no clock is asked. 0 of
        one that an older version recorded.
    """

    run_id: str
    sweep: str
    status: str
    started_at: float
    ended_at: float | None
    driver_id: str = ""
    sweep_id: str = ""
    has_cells: bool = False
    search_id: str = ""
    number: int = 0


def summary_of(run: RunRow) -> AttemptSummary:
    """An attempt's summary from its run's columns and tags."""
    tags = run.tags
    number = tags.get("attempt", "1")
    outcome, verdict = outcome_of(run.run_id, tags), verdict_of(run.run_id, tags)
    reason = tags.get("reason") or None
    if outcome == Outcome.OK:
        # A driver that was taken for dead and lived leaves the reason that was written for it.
        reason = None
        if verdict == "invalid":
            outcome, reason = Outcome.INVALID.value, MARKED
    return AttemptSummary(
        run_id=run.run_id,
        config_hash=tags["config_hash"],
        outcome=outcome,
        verdict=verdict,
        number=int(number) if number.isdigit() else 1,
        status=run.status,
        started_at=run.start_ms / 1000,
        ended_at=run.end_ms / 1000 if run.end_ms else None,
        sweep=tags.get("sweep", ""),
        host=tags.get("host") or None,
        devices=tuple(filter(None, tags.get("gpu_uuids", "").split(","))),
        attempt_id=tags.get(ATTEMPT_TAG, ""),
        reason=reason,
        driver_id=tags.get("driver_id", ""),
        simulated=tags.get("simulated") == "true",
        hardware_fingerprint=tags.get("hardware_fingerprint") or None,
        conditions={g: tags[tag] for g, tag in CONDITION_TAGS.items() if tag in tags},
        parent_run_id=tags.get(PARENT_TAG, ""),
    )


def summary_of_record(run_id: str, record: RunRecord) -> AttemptSummary:
    """The same, of an attempt still in the spool."""
    return summary_of(
        RunRow(run_id, record.status, record.start_ms, record.end_ms, "", "", record.tags)
    )


def each_once(summaries: Iterable[AttemptSummary]) -> dict[str, AttemptSummary]:
    """Every attempt by its id. Of two that tell of one, that which says how it ended is right.

    There are two while a record is on its way from the spool to the store, and for good where a
    slow server made a run twice. "Lost" is what somebody else has guessed.
    """

    def told(summary: AttemptSummary) -> int:
        return 0 if summary.outcome is None else 1 if summary.outcome == Outcome.LOST else 2

    found: dict[str, AttemptSummary] = {}
    for summary in summaries:
        key = summary.attempt_id or summary.run_id
        if key not in found or told(summary) > told(found[key]):
            found[key] = summary
    return found


def sweep_of(run: RunRow) -> SweepRun:
    return SweepRun(
        run_id=run.run_id,
        sweep=run.tags.get("sweep", ""),
        status=run.status,
        started_at=run.start_ms / 1000,
        ended_at=run.end_ms / 1000 if run.end_ms else None,
        driver_id=run.tags.get("driver_id", ""),
        sweep_id=run.tags.get(SWEEP_TAG, ""),
        has_cells=CELLS_TAG in run.tags,
        search_id=run.tags.get(SEARCH_TAG, ""),
        number=int(number) if (number := run.tags.get(NUMBER_TAG, "")).isdigit() else 0,
    )
