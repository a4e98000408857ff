"""What the driver decides to do: a closed family of values, committed first and then performed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, PlannedAttempt, Resources, Slot

if TYPE_CHECKING:
    from orchestrator.schedule.placement import Node


#: What waits together: everything with one demand that may run in the same places.
LaneKey = tuple[Resources, tuple[frozenset[str], ...]]


@dataclass(frozen=True)
class Action:
    """Something to be done: committed to the state, then performed."""


@dataclass(frozen=True)
class RunningAction(Action):
    """Something to be done about an attempt that was submitted."""

    attempt_id: str


@dataclass(frozen=True)
class PlannedAction(Action):
    """Something to be done about an attempt that waits to be submitted."""

    attempt: PlannedAttempt


class Submit(PlannedAction):
    """Give the head of a queue to the cluster."""


class Skip(PlannedAction):
    """Leave out the head of a queue: its trial was found infeasible meanwhile."""


class Delay(PlannedAction):
    """Make it another time, not before its time."""


class Requeue(PlannedAction):
    """A delayed attempt's time has come."""


@dataclass(frozen=True)
class Begin(RunningAction):
    """Record and show that an attempt started."""

    slot: Slot


@dataclass(frozen=True)
class Renumber(RunningAction):
    """Give an attempt, which has not begun, another number among those of its trial."""

    number: int


@dataclass(frozen=True)
class ShowPhase(RunningAction):
    """Show a phase."""

    name: str


@dataclass(frozen=True)
class Finish(RunningAction):
    """Record and show how an attempt ended."""

    report: AttemptReport
    retried: bool = False


class Forget(RunningAction):
    """Drop an attempt that never started: it leaves no trace and is to be made another time."""


@dataclass(frozen=True)
class Withdraw(RunningAction):
    """Take back an attempt that another driver makes, or has ``made``."""

    made: bool


@dataclass(frozen=True)
class Cancel(RunningAction):
    """End an attempt."""

    force: bool = False


@dataclass(frozen=True)
class DropRepeats(Action):
    """Make no further attempts of a trial: it was found infeasible."""

    config_hash: str


@dataclass(frozen=True)
class Abandon(Action):
    """Give up what waits for a node that no longer exists."""

    lane: LaneKey


@dataclass(frozen=True)
class LearnNodes(Action):
    """Remember the cluster's nodes."""

    nodes: tuple[Node, ...]


class StopSubmitting(Action):
    """Submit nothing from now on."""


@dataclass(frozen=True)
class Say(Action):
    """Tell the person."""

    text: str
