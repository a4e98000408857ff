"""What happens to the driver, and what it decides to do about it: two closed families of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, Outcome, Slot

if TYPE_CHECKING:
    from orchestrator.plan.trial import Trial
    from orchestrator.schedule.placement import Demand, Node


@dataclass(frozen=True)
class Ticket:
    """One attempt to be made.

    Attributes
    ----------
    number : int
        The attempt's number among all of its trial.
    tries : tuple of Outcome
        How earlier attempts at this same repeat ended.
    avoid : frozenset of str
        Node ids that lost it before.
    """

    trial: Trial
    demand: Demand
    number: int
    tries: tuple[Outcome, ...] = ()
    avoid: frozenset[str] = frozenset()
    not_before: float = 0.0


@dataclass
class Flight:
    """An attempt that was submitted and has not ended."""

    attempt_id: str
    ticket: Ticket
    submitted_at: float
    started_at: float | None = None
    slot: Slot | None = None
    overdue_at: float | None = None
    cancelled: bool = False
    forced_at: float | None = None


# -- events from the cluster ------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The attempt has its slot."""

    attempt_id: str
    slot: Slot


@dataclass(frozen=True)
class PhaseBegan:
    """The measured process entered a phase."""

    attempt_id: str
    name: str


@dataclass(frozen=True)
class Waiting:
    """The attempt has a place, but something else still holds what it needs there."""

    attempt_id: str
    text: str


@dataclass(frozen=True)
class Claimed:
    """Another driver measures this trial now: the attempt was not made, and may not be needed."""

    attempt_id: str


@dataclass(frozen=True)
class MadeElsewhere:
    """Another driver has measured the trial meanwhile: the attempt is not needed any more."""

    attempt_id: str


@dataclass(frozen=True)
class Ended:
    """The attempt's report arrived."""

    attempt_id: str
    report: AttemptReport


@dataclass(frozen=True)
class Vanished:
    """The attempt ended without a report: its worker or node died, or it was cancelled."""

    attempt_id: str
    outcome: Outcome
    reason: str


ClusterEvent = Started | PhaseBegan | Waiting | Claimed | MadeElsewhere | Ended | Vanished


# -- events from the driver itself ------------------------------------------------------------


@dataclass(frozen=True)
class Tick:
    """Time went by."""


@dataclass(frozen=True)
class NodesSeen:
    """The cluster's nodes, looked up again."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class StopRequested:
    """A person or a signal asked to stop."""


@dataclass(frozen=True)
class ClusterGone:
    """The whole cluster is lost, with everything on it."""

    reason: str


Event = (
    Started
    | PhaseBegan
    | Waiting
    | Claimed
    | MadeElsewhere
    | Ended
    | Vanished
    | Tick
    | NodesSeen
    | StopRequested
    | ClusterGone
)


# -- actions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submit:
    """Give the head of a queue to the cluster."""

    ticket: Ticket


@dataclass(frozen=True)
class Skip:
    """Leave out the head of a queue: its trial was found infeasible meanwhile."""

    ticket: Ticket


@dataclass(frozen=True)
class Begin:
    """Record and show that an attempt started."""

    attempt_id: str
    slot: Slot


@dataclass(frozen=True)
class ShowPhase:
    """Show a phase."""

    attempt_id: str
    name: str


@dataclass(frozen=True)
class Finish:
    """Record and show how an attempt ended."""

    attempt_id: str
    report: AttemptReport
    retried: bool = False


@dataclass(frozen=True)
class Forget:
    """Drop an attempt that never started: it leaves no trace and is to be made another time."""

    attempt_id: str


@dataclass(frozen=True)
class PutOff:
    """Take back an attempt that another driver's claim forbids; ask again later."""

    attempt_id: str
    ticket: Ticket


@dataclass(frozen=True)
class Adopt:
    """Leave an attempt out: what another driver measured takes its place."""

    attempt_id: str


@dataclass(frozen=True)
class Delay:
    """Try again, not before its time."""

    ticket: Ticket


@dataclass(frozen=True)
class Requeue:
    """A delayed ticket's time has come."""

    ticket: Ticket


@dataclass(frozen=True)
class Cancel:
    """End an attempt."""

    attempt_id: str
    force: bool = False


@dataclass(frozen=True)
class DropRepeats:
    """Make no further attempts of a trial: it was found infeasible."""

    config_hash: str


@dataclass(frozen=True)
class Abandon:
    """Give up what waits for a node that no longer exists."""

    demand: Demand


@dataclass(frozen=True)
class LearnNodes:
    """Remember the cluster's nodes."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class StopSubmitting:
    """Submit nothing from now on."""


@dataclass(frozen=True)
class Say:
    """Tell the person."""

    text: str


Action = (
    Submit
    | Skip
    | Begin
    | ShowPhase
    | Finish
    | Forget
    | PutOff
    | Adopt
    | Delay
    | Requeue
    | Cancel
    | DropRepeats
    | Abandon
    | LearnNodes
    | StopSubmitting
    | Say
)


@dataclass(frozen=True)
class Limits:
    """The driver's own numbers, in seconds but for ``window_factor`` and ``window_extra``.

    What is handed to the cluster waits there for a slot, and a retry waits behind it: as much as
    slots take in ``window_cover_s``, ``window_extra`` more, at most ``window_factor`` times the
    slots in all, and that many until something has ended.
    """

    window_factor: float = 1.5
    window_extra: int = 1
    window_cover_s: float = 5.0
    nodes_every_s: float = 5.0
    node_wait_s: float = 300.0
    stop_grace_s: float = 2.0
    overdue_grace_s: float = 120.0
    forced_grace_s: float = 10.0
    claimed_wait_s: float = 1.0
    gone_grace_s: float = 30.0
