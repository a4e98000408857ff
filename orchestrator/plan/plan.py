"""A plan: every trial of a sweep, known before anything runs, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from orchestrator.plan.schema import Settings
from orchestrator.plan.trial import Trial


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
    """

    sweep: str
    description: str
    trials: tuple[Trial, ...]
    settings: Settings
    baseline: dict[str, str] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    duplicates: int = 0


@dataclass(frozen=True)
class TrialState:
    """What is known of a trial before a run: ``new``, ``cached``, ``failed`` or ``infeasible``."""

    state: str = "new"
    reason: str | None = None
    predicted: dict[str, Any] | None = None


class KnownState(Protocol):
    """Anything that says how a trial stands; ``predicted`` is taken too where it is there."""

    @property
    def state(self) -> str: ...

    @property
    def reason(self) -> str | None: ...


def plan_json(plan: Plan, states: Mapping[str, KnownState]) -> dict[str, Any]:
    """``plan --json``.

    Parameters
    ----------
    states : mapping of config hash to KnownState
        :class:`TrialState` or the like. A hash that is not in it is ``infeasible`` where the plan
        says so, ``new`` otherwise.
    """
    return {
        "sweep": plan.sweep,
        "trials": [_trial_json(trial, states.get(trial.hash)) for trial in plan.trials],
    }


def _trial_json(trial: Trial, known: KnownState | None) -> dict[str, Any]:
    if known is None:
        known = TrialState("infeasible", trial.infeasible) if trial.infeasible else TrialState()
    return {
        "hash": trial.hash,
        "axes": dict(trial.axes),
        "state": known.state,
        "reason": known.reason,
        "resources": asdict(trial.resources),
        "predicted": getattr(known, "predicted", None),
        "config": trial.identity,
    }
