"""An attempt in the driver's hands: a ticket until it is submitted, a flight until it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome, Slot

if TYPE_CHECKING:
    from orchestrator.plan.trial import Trial
    from orchestrator.schedule.placement import Demand


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
