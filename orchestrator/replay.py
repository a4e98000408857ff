"""A recorded sweep as a plan again, so that its report can be made from the store alone."""

from __future__ import annotations

from typing import Any

from orchestrator.attempt import AttemptReport, Resources
from orchestrator.errors import UsageError
from orchestrator.plan import Plan, Settings, Trial
from orchestrator.record import AttemptSummary, Store, SweepRun


def replayed_plan(store: Store, sweep: str) -> tuple[Plan, dict[str, list[AttemptReport]]]:
    """What the newest run of ``sweep`` planned, and every attempt of these trials.

    Parameters
    ----------
    sweep : str
        A sweep's name, or the beginning (8 or more characters) of one of its runs' ids.

    Raises
    ------
    UsageError
        No such sweep is recorded.
    """
    data = store.plan(_run(store, sweep).run_id)
    summaries = store.attempts(trial["hash"] for trial in data["trials"])
    attempts: dict[str, list[AttemptReport]] = {}
    trials = []
    for entry in data["trials"]:
        finished = [a for a in summaries.get(entry["hash"], ()) if a.outcome]
        if not finished:
            continue  # planned and never made: there is no configuration to show
        attempts[entry["hash"]] = [store.load(attempt.run_id) for attempt in finished]
        trials.append(_trial(store, entry, finished))
    plan = Plan(
        sweep=data["sweep"],
        description=data["description"],
        trials=tuple(trials),
        settings=Settings(),
        baseline=data["baseline"],
        axes={key: tuple(values) for key, values in data["axes"].items()},
    )
    return plan, attempts


def _trial(store: Store, entry: dict[str, Any], finished: list[AttemptSummary]) -> Trial:
    return Trial(
        hash=entry["hash"],
        identity=store.identity(finished[-1].run_id),
        axes=entry["axes"],
        resources=Resources(**entry["resources"]),
        infeasible=entry["infeasible"],
    )


def _run(store: Store, word: str) -> SweepRun:
    runs = store.sweep_runs(word)
    if not runs and len(word) >= 8:
        runs = [run for run in store.sweep_runs() if run.run_id.startswith(word)]
    if not runs:
        names = ", ".join(sorted({run.sweep for run in store.sweep_runs()}))
        fix = f"Known sweeps: {names}" if names else "Nothing is recorded yet"
        raise UsageError(f"no sweep {word!r} is recorded", where=store.where, fix=fix)
    return runs[0]
