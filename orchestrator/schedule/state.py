"""Where a sweep stands: queues, flights and counts. Changed by :meth:`SweepState.commit` alone."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from orchestrator.schedule import actions
from orchestrator.schedule.flight import Flight, Ticket
from orchestrator.schedule.placement import Demand, Node, slots
from orchestrator.schedule.policy import Limits, RetryPolicy


class EndedAttempt(NamedTuple):
    """What is kept of an attempt after it was recorded: enough to count and to name it."""

    config_hash: str
    attempt_id: str
    number: int
    outcome: str
    retried: bool


class Lane:
    """Everything with one demand: what waits, how much may be in flight, how much is."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.ready: deque[Ticket] = deque()
        self.window = 0
        self.in_flight = 0
        self.idle_slots = 0
        self.landed = 0
        self.unplaceable_since: float | None = None
        self._landed_before = 0

    @property
    def room(self) -> int:
        """How many more attempts may be submitted now."""
        return max(0, self.window - self.in_flight)

    def open_window(self, slots: int, limits: Limits, since_start_s: float, since_s: float) -> None:
        """Set how much may be in flight, by what has landed since the start and the last look."""
        most = math.ceil(slots * limits.window_factor)
        wanted = most
        if self.landed and since_s > 0:
            # What begins together ends together: at no time less than on average.
            now, average = self.landed - self._landed_before, self.landed / since_start_s
            wanted = slots + math.ceil(max(now / since_s, average) * limits.window_cover_s)
        self._landed_before = self.landed
        self.window = min(wanted, most) + limits.window_extra if slots else 0


class SweepState:
    """The whole state of a running sweep; decisions read it, ``commit`` changes it.

    Parameters
    ----------
    tickets : sequence of Ticket
        In the order they are to run.
    policy : RetryPolicy
        What is tried again.
    limits : Limits
        The driver's own time limits and window.
    driver_id : str
        Prefix of every attempt id; unique to this driver.
    sweep : str
        Name of the sweep, for reports.
    now, epoch_s : float
        The cluster's clock at the start, and what to add to it to get Unix time (s).
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        policy: RetryPolicy,
        limits: Limits,
        driver_id: str,
        *,
        sweep: str = "adhoc",
        now: float = 0.0,
        epoch_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.limits = limits
        self.driver_id = driver_id
        self.sweep = sweep
        self.now = now
        self.epoch_s = epoch_s
        self.nodes: tuple[Node, ...] = ()
        self.gone_since: dict[str, float] = {}
        self.review_at = now
        self.stopping_since: float | None = None
        self.lanes: dict[Demand, Lane] = {}
        self.flights: dict[str, Flight] = {}
        self.delayed: list[tuple[float, int, Ticket]] = []
        self.dropped: set[str] = set()
        self.next_number: dict[str, int] = {}
        self.ended: list[EndedAttempt] = []
        self.busy_s = 0.0
        self.unmade = 0
        self.adopted = 0
        self._submitted = 0
        self._began_at = self._looked_at = now
        self._sequence = itertools.count()
        for ticket in tickets:
            self._lane(ticket.demand).ready.append(ticket)
            config_hash = ticket.trial.hash
            after = max(self.next_number.get(config_hash, 1), ticket.number + 1)
            self.next_number[config_hash] = after

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self.stopping_since is not None

    @property
    def done(self) -> bool:
        """Nothing runs, and nothing is going to."""
        if self.flights:
            return False
        return self.stopping or not (
            self.delayed or any(lane.ready for lane in self.lanes.values())
        )

    @property
    def next_attempt_id(self) -> str:
        """The id the next submitted attempt will have."""
        return f"{self.driver_id}-{self._submitted + 1}"

    def idle_slots(self, demand: Demand, nodes: Sequence[Node]) -> int:
        """How many attempts with ``demand`` could run on ``nodes`` beside what does."""
        there = {node.node_id for node in nodes}
        running = sum(
            flight.slot is not None and flight.slot.node_id in there
            for flight in self.flights.values()
        )
        return max(0, slots(nodes, demand) - running)

    def due(self) -> Iterator[Ticket]:
        """Delayed tickets whose time has come, earliest first."""
        if self.delayed and self.delayed[0][0] <= self.now:
            for not_before, _, ticket in sorted(self.delayed, key=lambda entry: entry[:2]):
                if not_before > self.now:
                    return
                yield ticket

    def commit(self, action: actions.Action) -> None:
        """Apply one decision. Actions that only speak to the world change nothing here."""
        apply = _COMMITS.get(type(action))
        if apply is not None:
            apply(self, action)

    # -- one method an action ---------------------------------------------------------------

    def _submit(self, action: actions.Submit) -> None:
        lane = self._lane(action.ticket.demand)
        head = lane.ready.popleft()
        assert head is action.ticket, "tickets are submitted in the order they wait"
        flight = Flight(self.next_attempt_id, head, self.now)
        self._submitted += 1
        lane.in_flight += 1
        self.flights[flight.attempt_id] = flight

    def _skip(self, action: actions.Skip) -> None:
        head = self._lane(action.ticket.demand).ready.popleft()
        assert head is action.ticket, "tickets are skipped in the order they wait"

    def _begin(self, action: actions.Begin) -> None:
        flight = self.flights[action.attempt_id]
        flight.started_at = self.now
        flight.slot = action.slot
        flight.overdue_at = self.now + flight.ticket.trial.timeout_s + self.limits.overdue_grace_s

    def _finish(self, action: actions.Finish) -> None:
        flight = self._land(action.attempt_id)
        self.ended.append(
            EndedAttempt(
                flight.ticket.trial.hash,
                flight.attempt_id,
                flight.ticket.number,
                action.report.outcome.value,
                action.retried,
            )
        )
        if flight.started_at is not None:
            self.busy_s += self.now - flight.started_at

    def _forget(self, action: actions.Forget) -> None:
        self._land(action.attempt_id)
        self.unmade += 1

    def _put_off(self, action: actions.PutOff) -> None:
        self._land(action.attempt_id)
        ticket = action.ticket
        heapq.heappush(self.delayed, (ticket.not_before, next(self._sequence), ticket))

    def _adopt(self, action: actions.Adopt) -> None:
        self._land(action.attempt_id)
        self.adopted += 1

    def _delay(self, action: actions.Delay) -> None:
        ticket = action.ticket
        heapq.heappush(self.delayed, (ticket.not_before, next(self._sequence), ticket))
        self.next_number[ticket.trial.hash] = ticket.number + 1

    def _requeue(self, action: actions.Requeue) -> None:
        _, _, ticket = heapq.heappop(self.delayed)
        assert ticket is action.ticket, "delayed tickets come back in the order of their times"
        # In front: a retry that waits for the whole sweep again would be its tail.
        self._lane(ticket.demand).ready.appendleft(ticket)

    def _cancel(self, action: actions.Cancel) -> None:
        flight = self.flights[action.attempt_id]
        flight.cancelled = True
        if action.force:
            flight.forced_at = self.now

    def _drop(self, action: actions.DropRepeats) -> None:
        self.dropped.add(action.config_hash)

    def _abandon(self, action: actions.Abandon) -> None:
        lane = self._lane(action.demand)
        self.unmade += len(lane.ready)
        lane.ready.clear()

    def _learn(self, action: actions.LearnNodes) -> None:
        for node_id in {node.node_id for node in self.nodes} - {n.node_id for n in action.nodes}:
            self.gone_since[node_id] = self.now
        self.nodes = action.nodes
        elapsed_s = self.now - self._looked_at
        self._looked_at = self.now
        self.review_at = self.now + self.limits.nodes_every_s
        for lane in self.lanes.values():
            number = slots(self.nodes, lane.demand)
            lane.idle_slots = self.idle_slots(lane.demand, self.nodes)
            lane.open_window(number, self.limits, self.now - self._began_at, elapsed_s)
            if number:
                lane.unplaceable_since = None
            elif lane.unplaceable_since is None:
                lane.unplaceable_since = self.now

    def _stop(self, action: actions.StopSubmitting) -> None:
        self.stopping_since = self.now
        waiting = sum(len(lane.ready) for lane in self.lanes.values()) + len(self.delayed)
        self.unmade += waiting

    def _land(self, attempt_id: str) -> Flight:
        flight = self.flights.pop(attempt_id)
        lane = self._lane(flight.ticket.demand)
        lane.in_flight -= 1
        lane.landed += 1
        return flight

    def _lane(self, demand: Demand) -> Lane:
        lane = self.lanes.get(demand)
        if lane is None:
            lane = self.lanes[demand] = Lane(demand)
        return lane


_COMMITS: dict[type, Callable[[SweepState, Any], None]] = {
    actions.Submit: SweepState._submit,
    actions.Skip: SweepState._skip,
    actions.Begin: SweepState._begin,
    actions.Finish: SweepState._finish,
    actions.Forget: SweepState._forget,
    actions.PutOff: SweepState._put_off,
    actions.Adopt: SweepState._adopt,
    actions.Delay: SweepState._delay,
    actions.Requeue: SweepState._requeue,
    actions.Cancel: SweepState._cancel,
    actions.DropRepeats: SweepState._drop,
    actions.Abandon: SweepState._abandon,
    actions.LearnNodes: SweepState._learn,
    actions.StopSubmitting: SweepState._stop,
}
