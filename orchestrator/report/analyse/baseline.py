"""Which trial of a sweep the others are held against, and which are held against which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.measure.wording import plain

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.plan.plan import Plan


def baseline_axes(plan: Plan, axes: Sequence[str]) -> dict[str, str]:
    """Axis values that make a trial a baseline: the sweep's own, else its first axis' first."""
    named = {axis: str(value) for axis, value in plan.baseline.items() if axis in axes}
    if named or not axes:
        return named
    return {axes[0]: str(plan.axes[axes[0]][0])}


def ladder_foot(plan: Plan, axes: Sequence[str], base_axes: Mapping[str, str]) -> Trial | None:
    """The one baseline of a sweep whose axes change together, so that its group is itself alone.

    Every other trial is then held against it: none of them has a baseline of its own.
    """
    feet = [trial for trial in plan.trials if is_baseline(trial, base_axes)]
    if len(feet) != 1:
        return None
    group = group_of(feet[0], axes, base_axes)
    others = [trial for trial in plan.trials if trial is not feet[0]]
    alone = all(group_of(trial, axes, base_axes) != group for trial in others)
    return feet[0] if others and alone else None


def is_baseline(trial: Trial, base_axes: Mapping[str, str]) -> bool:
    """Whether a trial has the values that make a baseline."""
    return bool(base_axes) and all(
        plain(trial.axes.get(axis)) == value for axis, value in base_axes.items()
    )


def group_of(
    trial: Trial, axes: Sequence[str], base_axes: Mapping[str, str]
) -> tuple[tuple[str, Any], ...]:
    """The axis values that a trial shares with the baseline it is held against."""
    return tuple((axis, trial.axes.get(axis)) for axis in axes if axis not in base_axes)
