"""What happens to the driver: by the cluster's word, or by its own clock and its user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, Outcome, Slot

if TYPE_CHECKING:
    from orchestrator.schedule.placement import Node


@dataclass(frozen=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True)
class ClusterEvent(Event):
    """Something that happened to one attempt."""

    attempt_id: str


@dataclass(frozen=True)
class Started(ClusterEvent):
    """The attempt has its slot."""

    slot: Slot


@dataclass(frozen=True)
class PhaseBegan(ClusterEvent):
    """The measured process entered a phase."""

    name: str


@dataclass(frozen=True)
class Waiting(ClusterEvent):
    """The attempt has a place, but something else still holds what it needs there."""

    text: str


class Claimed(ClusterEvent):
    """Another driver measures this trial now: the attempt was not made, and may not be needed."""


class MadeElsewhere(ClusterEvent):
    """Another driver has measured the trial meanwhile: the attempt is not needed any more."""


@dataclass(frozen=True)
class Renumbered(ClusterEvent):
    """Other drivers have made attempts of the trial meanwhile: this one comes after them."""

    number: int


@dataclass(frozen=True)
class Ended(ClusterEvent):
    """The attempt's report arrived."""

    report: AttemptReport


@dataclass(frozen=True)
class Vanished(ClusterEvent):
    """The attempt ended without a report: its worker or node died, or it was cancelled."""

    outcome: Outcome
    reason: str


# -- from the driver itself ------------------------------------------------------------------


class Tick(Event):
    """Time went by."""


@dataclass(frozen=True)
class NodesSeen(Event):
    """The cluster's nodes, looked up again."""

    nodes: tuple[Node, ...]


class StopRequested(Event):
    """A person or a signal asked to stop."""


@dataclass(frozen=True)
class ClusterGone(Event):
    """The whole cluster is lost, with everything on it; ``stopped``: somebody wanted to stop."""

    reason: str
    stopped: bool = False
