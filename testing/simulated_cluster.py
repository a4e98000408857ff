"""A cluster in virtual time: the driver's own code, without processes, as fast as it can decide.

Time moves only in :meth:`SimulatedCluster.wait`.
Every operation costs the same however many nodes and attempts there are.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.attempt import Outcome, PlannedAttempt, Resources, Slot
from orchestrator.schedule.events import ClusterEvent, Ended, Started, Vanished
from orchestrator.schedule.placement import Node, slots_on

#: A demand, and the one place for it if that matters.
Queue = tuple[Resources, tuple[frozenset[str], ...]]


@dataclass(frozen=True)
class Fate:
    """How a simulated attempt goes: how long it lasts and how it ends. LOST: without a report."""

    duration_s: float
    outcome: Outcome = Outcome.OK


@dataclass
class _Free:
    """What is left of a node."""

    node: Node
    cpus: int
    gpus: int
    running: set[str] = field(default_factory=set)


@dataclass
class _Running:
    attempt: PlannedAttempt
    place: _Free
    fate: Fate
    started_at: float
    slot: Slot


class SimulatedCluster:
    """A :class:`~orchestrator.schedule.ports.ClusterPort` whose clock is virtual.

    Parameters
    ----------
    nodes : iterable of Node
        Alive at the start.
    fate : callable
        ``fate(attempt, node)`` says how an attempt goes on a node.
    dispatch_s : float
        Time between a slot becoming free and the next attempt starting in it.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        fate: Callable[[PlannedAttempt, Node], Fate],
        *,
        dispatch_s: float = 0.01,
    ) -> None:
        self._fate = fate
        self._dispatch_s = dispatch_s
        self._now = 0.0
        self._places = {node.node_id: _Free(node, node.cpus, node.gpus) for node in nodes}
        self._queues: dict[Queue, deque[PlannedAttempt]] = {}
        # Per queue the nodes that may have room: looked at from the end, dropped when full, put
        # back when something on them ends. Finding a slot then never walks over all nodes. In two
        # tiers: like Ray, keep what needs no GPU away from nodes that have some.
        self._candidates: dict[Queue, tuple[dict[str, None], dict[str, None]]] = {}
        self._running: dict[str, _Running] = {}
        self._cancelled_queued: set[str] = set()
        self._agenda: list[tuple[float, int, Callable[[], ClusterEvent | None]]] = []
        self._sequence = itertools.count()
        self.submitted: list[str] = []
        self.most_queued = 0
        self._queued = 0
        self.keep_order = True

    # -- the port ---------------------------------------------------------------------------

    def now(self) -> float:
        return self._now

    def nodes(self) -> Sequence[Node]:
        return [place.node for place in self._places.values()]

    def submit(self, attempt: PlannedAttempt) -> None:
        if self.keep_order:
            self.submitted.append(attempt.trial.hash)
        queue = attempt.trial.resources, attempt.places[:1]
        if queue not in self._queues:
            self._queues[queue] = deque()
            self._candidates[queue] = ({}, {})
            for place in self._places.values():
                self._offer(queue, place.node)
        self._queues[queue].append(attempt)
        self._queued += 1
        self._dispatch(queue)
        self.most_queued = max(self.most_queued, self._queued)

    def wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        until = self._now + timeout_s
        events: list[ClusterEvent] = []
        while self._agenda and self._agenda[0][0] <= until:
            at = self._agenda[0][0]
            if events and at > self._now:
                break
            self._now = max(self._now, at)
            _, _, happen = heapq.heappop(self._agenda)
            event = happen()
            if event is not None:
                events.append(event)
        if not events:
            self._now = until
        return events

    def cancel(self, attempt_id: str, *, force: bool) -> None:
        if attempt_id not in self._running:
            self._cancelled_queued.add(attempt_id)
            self._at(0.0, lambda: Vanished(attempt_id, Outcome.CANCELLED, "cancelled"))
        elif force:
            self._at(0.0, lambda: self._vanish(attempt_id, Outcome.CANCELLED, "cancelled"))
        else:
            self._at(0.5, lambda: self._end(attempt_id, Outcome.CANCELLED))

    # -- what may happen to it --------------------------------------------------------------

    def at(self, time_s: float, happen: Callable[[], object]) -> None:
        """Call ``happen`` when the virtual clock reads ``time_s``."""

        def silently() -> None:
            happen()

        heapq.heappush(self._agenda, (time_s, next(self._sequence), silently))

    def kill_node(self, node_id: str) -> None:
        """A node dies with everything on it."""
        place = self._places.pop(node_id)
        for tiers in self._candidates.values():
            for tier in tiers:
                tier.pop(node_id, None)
        for attempt_id in sorted(place.running):
            self._at(
                0.0,
                lambda attempt_id=attempt_id: self._vanish(  # type: ignore[misc]
                    attempt_id, Outcome.LOST, f"node {place.node.host} died"
                ),
            )

    def add_node(self, node: Node) -> None:
        """A node joins."""
        self._places[node.node_id] = _Free(node, node.cpus, node.gpus)
        for queue in self._candidates:
            self._offer(queue, node)
            self._dispatch(queue)

    # -- inside -----------------------------------------------------------------------------

    def _at(self, delay_s: float, happen: Callable[[], ClusterEvent | None]) -> None:
        heapq.heappush(self._agenda, (self._now + delay_s, next(self._sequence), happen))

    def _dispatch(self, queue: Queue) -> None:
        waiting = self._queues[queue]
        while waiting:
            attempt = waiting[0]
            cancelled = attempt.attempt_id in self._cancelled_queued
            place = None if cancelled else self._find(queue, attempt.avoid)
            if place is None and not cancelled:
                return
            waiting.popleft()
            self._queued -= 1
            if place is not None:
                self._start(attempt, place)

    def _offer(self, queue: Queue, node: Node) -> None:
        demand, places = queue
        if places and node.node_id not in places[0]:
            return
        preferred, other = self._candidates[queue]
        tier = other if node.gpus and not demand.gpus else preferred
        tier[node.node_id] = None

    def _find(self, queue: Queue, avoid: frozenset[str]) -> _Free | None:
        for tier in self._candidates[queue]:
            place = self._find_in(tier, queue[0], avoid)
            if place is not None:
                return place
        return None

    def _find_in(
        self, candidates: dict[str, None], demand: Resources, avoid: frozenset[str]
    ) -> _Free | None:
        passed_over = []
        found = None
        while candidates:
            node_id, _ = candidates.popitem()
            place = self._places[node_id]
            if place.cpus < (demand.cpus or 1) or place.gpus < demand.gpus:
                continue
            if not slots_on(place.node, demand):
                continue
            passed_over.append(node_id)
            if node_id not in avoid:
                found = place
                break
        candidates.update(dict.fromkeys(passed_over))
        return found

    def _start(self, attempt: PlannedAttempt, place: _Free) -> None:
        demand, attempt_id = attempt.trial.resources, attempt.attempt_id
        cpus = demand.cpus or 1
        place.cpus -= cpus
        place.gpus -= demand.gpus
        place.running.add(attempt_id)
        slot = Slot(place.node.node_id, place.node.host, tuple(range(cpus)))
        fate = self._fate(attempt, place.node)
        started_at = self._now + self._dispatch_s
        self._running[attempt_id] = _Running(attempt, place, fate, started_at, slot)
        self._at(self._dispatch_s, lambda: self._begin(attempt_id, slot))
        self._at(self._dispatch_s + fate.duration_s, lambda: self._by_fate(attempt_id))

    def _begin(self, attempt_id: str, slot: Slot) -> ClusterEvent | None:
        return Started(attempt_id, slot) if attempt_id in self._running else None

    def _by_fate(self, attempt_id: str) -> ClusterEvent | None:
        running = self._running.get(attempt_id)
        if running is None:
            return None
        if running.fate.outcome is Outcome.LOST:
            return self._vanish(attempt_id, Outcome.LOST, "its worker died")
        return self._end(attempt_id, running.fate.outcome)

    def _end(self, attempt_id: str, outcome: Outcome) -> ClusterEvent | None:
        running = self._release(attempt_id)
        if running is None:
            return None
        report = running.attempt.report(
            outcome,
            started_at=running.started_at,
            ended_at=self._now,
            duration_s=self._now - running.started_at,
            slot=running.slot,
            provenance={"simulated": True},
        )
        return Ended(attempt_id, report)

    def _vanish(self, attempt_id: str, outcome: Outcome, reason: str) -> ClusterEvent | None:
        if self._release(attempt_id) is None:
            return None
        return Vanished(attempt_id, outcome, reason)

    def _release(self, attempt_id: str) -> _Running | None:
        running = self._running.pop(attempt_id, None)
        if running is None:
            return None
        place = running.place
        place.running.discard(attempt_id)
        demand = running.attempt.trial.resources
        place.cpus += demand.cpus or 1
        place.gpus += demand.gpus
        if self._places.get(place.node.node_id) is place:
            for queue in self._candidates:
                self._offer(queue, place.node)
                self._dispatch(queue)
        return running
