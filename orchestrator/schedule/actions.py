"""What the driver decides to do: a closed family of values, committed first and then performed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, Slot

if TYPE_CHECKING:
    from orchestrator.schedule.flight import Ticket
    from orchestrator.schedule.placement import Demand, Node


@dataclass(frozen=True)
class Action:
    """Something to be done: committed to the state, then performed."""


@dataclass(frozen=True)
class AttemptAction(Action):
    """Something to be done about one attempt."""

    attempt_id: str


@dataclass(frozen=True)
class TicketAction(Action):
    """Something to be done about an attempt that is not in flight."""

    ticket: Ticket


class Submit(TicketAction):
    """Give the head of a queue to the cluster."""


class Skip(TicketAction):
    """Leave out the head of a queue: its trial was found infeasible meanwhile."""


@dataclass(frozen=True)
class Begin(AttemptAction):
    """Record and show that an attempt started."""

    slot: Slot


@dataclass(frozen=True)
class ShowPhase(AttemptAction):
    """Show a phase."""

    name: str


@dataclass(frozen=True)
class Finish(AttemptAction):
    """Record and show how an attempt ended."""

    report: AttemptReport
    retried: bool = False


class Forget(AttemptAction):
    """Drop an attempt that never started: it leaves no trace and is to be made another time."""


@dataclass(frozen=True)
class PutOff(AttemptAction):
    """Take back an attempt that another driver's claim forbids; ask again later."""

    ticket: Ticket


class Adopt(AttemptAction):
    """Leave an attempt out: what another driver measured takes its place."""


class Delay(TicketAction):
    """Try again, not before its time."""


class Requeue(TicketAction):
    """A delayed ticket's time has come."""


@dataclass(frozen=True)
class Cancel(AttemptAction):
    """End an attempt."""

    force: bool = False


@dataclass(frozen=True)
class DropRepeats(Action):
    """Make no further attempts of a trial: it was found infeasible."""

    config_hash: str


@dataclass(frozen=True)
class Abandon(Action):
    """Give up what waits for a node that no longer exists."""

    demand: Demand


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
