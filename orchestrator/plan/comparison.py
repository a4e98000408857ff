"""Which trials of a plan are compared with which: for ratios, and for one kind of node a group.

The baseline is the sweep's own, else its first axis' first value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.measure.wording import plain

if TYPE_CHECKING:
    from orchestrator.attempt import Trial
    from orchestrator.plan.plan import Plan

Group = tuple[tuple[str, Any], ...]


def varying_axes(plan: Plan) -> list[str]:
    """The axes that tell this plan's trials apart, in the order the sweep names them."""
    return [axis for axis, values in plan.axes.items() if len(values) > 1]


@dataclass(frozen=True)
class Comparison:
    """How the trials of a plan are compared.

    Attributes
    ----------
    axes : tuple of str
        Those that vary.
    base_axes : mapping of str to str
        Axis values that make a trial a baseline; empty where nothing varies.
    """

    axes: tuple[str, ...]
    base_axes: Mapping[str, str]

    @classmethod
    def of(cls, plan: Plan) -> Comparison:
        """The comparison that ``plan`` asks for."""
        axes = tuple(varying_axes(plan))
        named = {axis: str(value) for axis, value in plan.baseline.items() if axis in axes}
        if not named and axes:
            named = {axes[0]: str(plan.axes[axes[0]][0])}
        found = cls(axes, named)
        foot = found._ladder_foot(plan)
        if foot is not None:
            return cls(axes, {axis: plain(foot.axes.get(axis)) for axis in axes})
        return found

    def is_baseline(self, trial: Trial) -> bool:
        """Whether a trial has the values that make a baseline."""
        return bool(self.base_axes) and all(
            plain(trial.axes.get(axis)) == value for axis, value in self.base_axes.items()
        )

    def group_of(self, trial: Trial) -> Group:
        """The axis values that a trial shares with the baseline it is held against."""
        return tuple((a, trial.axes.get(a)) for a in self.axes if a not in self.base_axes)

    def _ladder_foot(self, plan: Plan) -> Trial | None:
        """The one baseline of a sweep whose axes change together, so that its group is it alone.

        Every other trial is then held against it: none of them has a baseline of its own.
        """
        feet = [trial for trial in plan.trials if self.is_baseline(trial)]
        if len(feet) != 1:
            return None
        group = self.group_of(feet[0])
        others = [trial for trial in plan.trials if trial is not feet[0]]
        alone = all(self.group_of(trial) != group for trial in others)
        return feet[0] if others and alone else None
