"""A plan: every trial of a sweep, known before anything runs, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.attempt import Trial
from orchestrator.plan.schema import Settings


@dataclass(frozen=True)
class Plan:
    """What a command line means.

    Attributes
    ----------
    sweep : str
        Name of the sweep, ``adhoc`` for one that only the command line describes.
    description : str
        What the sweep's file says of it; empty for ``adhoc``.
    settings : Settings
        Everything that is no part of a trial's identity.
    trials : tuple of Trial
        Distinct by hash, in the order of the axes (the last one varies fastest).
    baseline : dict of str to str
        Axis values of the trials that others are compared with; empty where there is none.
    axes : dict of str to tuple of str
        Values of every axis, as text, in their order.
    duplicates : int
        Combinations that came out as a trial that was there already.
    notes : tuple of str
        Of options that have no effect in some of the trials, a line each.
    """

    sweep: str
    description: str
    trials: tuple[Trial, ...]
    settings: Settings
    baseline: dict[str, str] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    duplicates: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialState:
    """What a person is told of a trial before anything runs.

    Attributes
    ----------
    state : str
        ``new`` (something is to be run), ``stale`` (measured under other conditions only: to be run
        again), ``cached`` (measured as often as asked), ``failed`` (recorded as failed and not
        tried again), ``infeasible``.
    reason : str or None
        One line, where the state alone does not say it.
    predicted : dict or None
        Names that end in their unit (``memory_bytes``) to values.
    """

    state: str = "new"
    reason: str | None = None
    predicted: dict[str, Any] | None = None


def plan_json(plan: Plan, states: Mapping[str, TrialState]) -> dict[str, Any]:
    """``plan --json``.

    Parameters
    ----------
    states : mapping of config hash to TrialState
        A hash that is not in it is ``infeasible`` where the plan says so, ``new`` otherwise.
    """
    trials = [_trial_json(trial, states.get(trial.hash) or unrun(trial)) for trial in plan.trials]
    return {"sweep": plan.sweep, "trials": trials}


def unrun(trial: Trial) -> TrialState:
    """How a trial stands of which nothing is recorded."""
    return TrialState("infeasible" if trial.infeasible else "new", trial.infeasible)


def _trial_json(trial: Trial, known: TrialState) -> dict[str, Any]:
    return {
        "hash": trial.hash,
        "axes": dict(trial.axes),
        "state": known.state,
        "reason": known.reason,
        "resources": asdict(trial.resources),
        "predicted": known.predicted,
        "config": trial.identity,
    }
