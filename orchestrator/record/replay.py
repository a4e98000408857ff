"""A recorded sweep as a plan again, so that its report can be made from the store alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.attempt import AttemptReport, Resources, Trial
from orchestrator.errors import UsageError
from orchestrator.measure.series import PARQUET_ARTIFACT
from orchestrator.plan.plan import Plan
from orchestrator.plan.predictions import with_predictions
from orchestrator.plan.schema import Settings, SloConfig
from orchestrator.record import AttemptSummary, Store, SweepRun
from orchestrator.record.selection import known_sweeps


@dataclass(frozen=True)
class Replayed:
    """A recorded sweep: what its newest run planned, and every attempt of these trials.

    Attributes
    ----------
    attempts : dict of str to list of AttemptReport
        By config hash, with predictions beside what was measured.
    command : str or None
        What that run was started with.
    telemetry : callable
        An attempt's stored telemetry, by the attempt's id.
    """

    plan: Plan
    attempts: dict[str, list[AttemptReport]]
    command: str | None
    telemetry: Callable[[str], bytes | None]


def replay(store: Store, sweep: str) -> Replayed:
    """The newest run of ``sweep`` as a plan again, with what is recorded of its trials.

    Parameters
    ----------
    sweep : str
        A sweep's name, or the beginning (8 or more characters) of one of its runs' ids.

    Raises
    ------
    UsageError
        No such sweep is recorded, or it measured nothing.
    """
    run = _run(store, sweep)
    data = store.plan(run.run_id)
    summaries = store.attempts(trial["hash"] for trial in data["trials"])
    ended = {c: [a for a in found if a.outcome] for c, found in summaries.items()}
    reports = store.reports(summaries)
    attempts: dict[str, list[AttemptReport]] = {}
    trials = []
    for entry in data["trials"]:
        trial = _trial(store, entry, ended.get(entry["hash"]))
        trials.append(trial)
        if found := reports.get(trial.hash):
            attempts[trial.hash] = [with_predictions(report, trial.identity) for report in found]
    if not attempts and run.has_cells:
        raise UsageError(
            f"{data['sweep']} only computes: its table is cells.csv of run {run.run_id}",
            where=store.where,
            fix="show HASH shows one of its cells",
        )
    plan = Plan(
        sweep=data["sweep"],
        description=data["description"],
        trials=tuple(trials),
        settings=Settings(slo=SloConfig(**data.get("slo", {}))),
        baseline=data["baseline"],
        axes={key: tuple(values) for key, values in data["axes"].items()},
    )
    command = shlex.join(data["command"]) if data.get("command") else None
    telemetry = telemetry_of(store, (a for found in summaries.values() for a in found))
    return Replayed(plan, attempts, command, telemetry)


def telemetry_of(
    store: Store, summaries: Iterable[AttemptSummary]
) -> Callable[[str], bytes | None]:
    """Reads the stored telemetry of an attempt by its id; None where it has none."""
    run_ids = {summary.attempt_id: summary.run_id for summary in summaries}

    def read(attempt_id: str) -> bytes | None:
        try:
            return store.artifact(run_ids[attempt_id], PARQUET_ARTIFACT)
        except (KeyError, FileNotFoundError):
            return None

    return read


def _trial(store: Store, entry: dict[str, Any], finished: list[AttemptSummary] | None) -> Trial:
    # The configuration of one that was never made is nowhere, or it is lost; that it was planned
    # is told.
    return Trial(
        hash=entry["hash"],
        identity=store.identity_of(finished or ()) or {"task": {"name": "trial"}},
        axes=entry["axes"],
        resources=Resources(**entry["resources"]),
        infeasible=entry["infeasible"],
    )


def _run(store: Store, word: str) -> SweepRun:
    runs = store.sweep_runs(word)
    if not runs and len(word) >= 8:
        runs = [run for run in store.sweep_runs() if run.run_id.startswith(word)]
    if not runs:
        fix = known_sweeps(store)
        raise UsageError(f"no sweep {word!r} is recorded", where=store.where, fix=fix)
    return runs[0]
