"""Where a sweep stands: queues, what runs, counts. Changed by :meth:`SweepState.commit` alone."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from orchestrator.attempt import PlannedAttempt, Resources, RunningAttempt
from orchestrator.schedule import actions
from orchestrator.schedule.placement import Node, first_place, slots
from orchestrator.schedule.policy import Limits, RetryPolicy


class EndedAttempt(NamedTuple):
    """What is kept of an attempt after it was recorded: enough to count and to name it."""

    config_hash: str
    attempt_id: str
    number: int
    outcome: str
    retried: bool


class Lane:
    """Everything with one demand and place: what waits, how much is and may be in flight."""

    def __init__(self, key: actions.LaneKey) -> None:
        self.key = key
        self.demand, self.places = key
        self.nodes: Sequence[Node] = ()  # where it may run as things are
        self.ready: deque[PlannedAttempt] = deque()
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
    attempts : sequence of PlannedAttempt
        In the order they are to run.
    policy : RetryPolicy
        What is tried again.
    limits : Limits
        The driver's own time limits and window.
    driver_id : str
        Prefix of every attempt id; unique to this driver.
    now, epoch_s : float
        The cluster's clock at the start, and what to add to it to get Unix time (s).
    """

    def __init__(
        self,
        attempts: Sequence[PlannedAttempt],
        policy: RetryPolicy,
        limits: Limits,
        driver_id: str,
        *,
        now: float = 0.0,
        epoch_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.limits = limits
        self.driver_id = driver_id
        self.now = now
        self.epoch_s = epoch_s
        self.nodes: tuple[Node, ...] = ()
        self.gone_since: dict[str, float] = {}
        self.review_at = now
        self.stopping_since: float | None = None
        self.lanes: dict[actions.LaneKey, Lane] = {}
        self.running: dict[str, RunningAttempt] = {}
        self.delayed: list[tuple[float, int, PlannedAttempt]] = []
        self.dropped: set[str] = set()
        self.next_number: dict[str, int] = {}
        self.ended: list[EndedAttempt] = []
        self.busy_s = 0.0
        self.unmade = 0
        self.adopted = 0
        self._submitted = 0
        self._began_at = self._looked_at = now
        self._sequence = itertools.count()
        for attempt in attempts:
            self.lane_of(attempt).ready.append(attempt)
            self._count(attempt)

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self.stopping_since is not None

    @property
    def done(self) -> bool:
        """Nothing runs, and nothing is going to."""
        waiting = self.delayed or any(lane.ready for lane in self.lanes.values())
        return not self.running and (self.stopping or not waiting)

    @property
    def next_attempt_id(self) -> str:
        """The id the next submitted attempt will have."""
        return f"{self.driver_id}-{self._submitted + 1}"

    def idle_slots(self, demand: Resources, nodes: Sequence[Node]) -> int:
        """How many attempts with ``demand`` could run on ``nodes`` beside what does."""
        there = {node.node_id for node in nodes}
        running = sum(
            attempt.slot is not None and attempt.slot.node_id in there
            for attempt in self.running.values()
        )
        return max(0, slots(nodes, demand) - running)

    def due(self) -> Iterator[PlannedAttempt]:
        """Delayed attempts whose time has come, earliest first."""
        if self.delayed and self.delayed[0][0] <= self.now:
            for not_before, _, attempt in sorted(self.delayed, key=lambda entry: entry[:2]):
                if not_before > self.now:
                    return
                yield attempt

    def commit(self, action: actions.Action) -> None:
        """Apply one decision. Actions that only speak to the world change nothing here."""
        match action:
            case actions.Submit(attempt):
                self._take(attempt)
                submitted = replace(attempt, attempt_id=self.next_attempt_id)
                self._submitted += 1
                self.lane_of(attempt).in_flight += 1
                self.running[submitted.attempt_id] = RunningAttempt(submitted, self.now)
            case actions.Skip(attempt):
                self._take(attempt)
            case actions.Delay(attempt):
                entry = (attempt.not_before, next(self._sequence), attempt)
                heapq.heappush(self.delayed, entry)
                self._count(attempt)
            case actions.Requeue(attempt):
                _, _, first = heapq.heappop(self.delayed)
                assert first is attempt, "delayed attempts come back in the order of their times"
                # In front: a retry that waits for the whole sweep again would be its tail.
                self.lane_of(attempt).ready.appendleft(attempt)
            case actions.Renumber(attempt_id, number):
                running = self.running[attempt_id]
                running.planned = replace(running.planned, number=number)
                self._count(running.planned)
            case actions.Begin(attempt_id, slot):
                running = self.running[attempt_id]
                running.started_at, running.slot = self.now, slot
                timeout_s = running.planned.trial.timeout_s
                running.overdue_at = self.now + timeout_s + self.limits.overdue_grace_s
            case actions.Finish(attempt_id, report, retried):
                ended = self._land(attempt_id)
                planned, outcome = ended.planned, report.outcome.value
                self.ended.append(
                    EndedAttempt(planned.trial.hash, attempt_id, planned.number, outcome, retried)
                )
                if ended.started_at is not None:
                    self.busy_s += self.now - ended.started_at
            case actions.Forget(attempt_id):
                self._land(attempt_id)
                self.unmade += 1
            case actions.Withdraw(attempt_id, made):
                self._land(attempt_id)
                self.adopted += made
            case actions.Cancel(attempt_id, force):
                self.running[attempt_id].cancelled = True
                if force:
                    self.running[attempt_id].forced_at = self.now
            case actions.DropRepeats(config_hash):
                self.dropped.add(config_hash)
            case actions.Abandon(key):
                self.unmade += len(self.lanes[key].ready)
                self.lanes[key].ready.clear()
            case actions.LearnNodes(nodes):
                self._learn(nodes)
            case actions.StopSubmitting():
                self.stopping_since = self.now
                waiting = sum(len(lane.ready) for lane in self.lanes.values())
                self.unmade += waiting + len(self.delayed)

    def _learn(self, nodes: tuple[Node, ...]) -> None:
        for node_id in {node.node_id for node in self.nodes} - {node.node_id for node in nodes}:
            self.gone_since[node_id] = self.now
        self.nodes = nodes
        elapsed_s = self.now - self._looked_at
        self._looked_at = self.now
        self.review_at = self.now + self.limits.nodes_every_s
        for lane in self.lanes.values():
            lane.nodes = first_place(nodes, *lane.key)
            number = slots(lane.nodes, lane.demand)
            lane.idle_slots = self.idle_slots(lane.demand, lane.nodes)
            lane.open_window(number, self.limits, self.now - self._began_at, elapsed_s)
            if number:
                lane.unplaceable_since = None
            elif lane.unplaceable_since is None:
                lane.unplaceable_since = self.now

    def _take(self, attempt: PlannedAttempt) -> None:
        head = self.lane_of(attempt).ready.popleft()
        assert head is attempt, "attempts leave their queue in the order they wait"

    def _land(self, attempt_id: str) -> RunningAttempt:
        running = self.running.pop(attempt_id)
        lane = self.lane_of(running.planned)
        lane.in_flight -= 1
        lane.landed += 1
        return running

    def _count(self, attempt: PlannedAttempt) -> None:
        known = self.next_number.get(attempt.trial.hash, 1)
        self.next_number[attempt.trial.hash] = max(known, attempt.number + 1)

    def lane_of(self, attempt: PlannedAttempt) -> Lane:
        """Where it waits, or has waited."""
        key = attempt.trial.resources, attempt.places
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane
