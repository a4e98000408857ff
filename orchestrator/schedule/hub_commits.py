"""The commit of each hub model, found out once by the driver, for all nodes to fetch and record.

A branch that moves in the middle of a sweep, or a node that cannot ask, changes nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from orchestrator.attempt import Trial
from orchestrator.engines.content import hub_commit
from orchestrator.engines.source import directory_problem


def with_commits(trials: Iterable[Trial], say: Callable[[str], None]) -> tuple[Trial, ...]:
    """``trials`` with the commit that their hub model's revision is now.

    Where the hub does not say, the cached one if its snapshot is complete, else None: the measured
    process reports what is wrong, and nothing recorded then counts as done.
    """
    found: dict[tuple[str, str | None], str | None] = {}
    return tuple(_with_commit(trial, found, say) for trial in trials)


def _with_commit(
    trial: Trial, found: dict[tuple[str, str | None], str | None], say: Callable[[str], None]
) -> Trial:
    model = trial.identity.get("model") or {}
    if model.get("source") != "hub" or trial.infeasible is not None:
        return trial
    repository, revision = str(model["id"]), model["revision"]
    if (repository, revision) not in found:
        commit, snapshot = hub_commit(repository, revision)
        if snapshot is not None and (problem := directory_problem(snapshot)):
            what = f"its cache is incomplete: {problem.what} ({problem.where})"
            say(f"{repository}: not checked with the hub, and {what}")
            commit = None
        elif snapshot is not None:
            say(f"{repository}: not checked with the hub; cached commit {commit} is measured")
        found[repository, revision] = commit
    return replace(trial, commit=found[repository, revision])
