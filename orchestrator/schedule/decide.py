"""What to do next, as a pure function: ``decide(state, event) -> actions``. Nothing here acts.

::

    ticket --Submit--> flight --Begin--> running --Finish--> ended
      ^                  |                  |
      `-----Requeue---- Delay <-------------'  by retry policy
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.schedule import actions, events
from orchestrator.schedule.flight import Flight, Ticket
from orchestrator.schedule.placement import Node, slots
from orchestrator.schedule.state import SweepState

Actions = Iterator[actions.Action]


def decide(state: SweepState, event: events.Event) -> list[actions.Action]:
    """The actions that ``event`` calls for; commit and perform each, in order.

    Events of attempts that are no longer in flight (an answer after a forced end) call for nothing.
    """
    if isinstance(event, events.ClusterEvent) and event.attempt_id not in state.flights:
        return []
    return list(_DECISIONS[type(event)](state, event))


def submissions(state: SweepState) -> list[actions.Submit | actions.Skip]:
    """What may be given to the cluster now: each lane's queue up to its window."""
    if state.stopping:
        return []
    return [
        actions.Skip(ticket) if ticket.trial.hash in state.dropped else actions.Submit(ticket)
        for lane in state.lanes.values()
        if lane.ready and lane.room
        for ticket in islice(lane.ready, lane.room)
    ]


def avoidable(state: SweepState, ticket: Ticket) -> frozenset[str]:
    """The nodes to keep ``ticket`` away from: none, where nothing else could hold it."""
    if not ticket.avoid:
        return ticket.avoid
    others = [node for node in state.nodes if node.node_id not in ticket.avoid]
    return ticket.avoid if slots(others, ticket.demand) else frozenset()


def _started(state: SweepState, event: events.Started) -> Actions:
    yield actions.Begin(event.attempt_id, event.slot)


def _phase(state: SweepState, event: events.PhaseBegan) -> Actions:
    yield actions.ShowPhase(event.attempt_id, event.name)


def _waiting(state: SweepState, event: events.Waiting) -> Actions:
    yield actions.Say(event.text)


def _claimed(state: SweepState, event: events.Claimed) -> Actions:
    if state.stopping:
        yield actions.Forget(event.attempt_id)
        return
    ticket = state.flights[event.attempt_id].ticket
    again_at = state.now + state.limits.claimed_wait_s
    yield actions.PutOff(event.attempt_id, replace(ticket, not_before=again_at))


def _made_elsewhere(state: SweepState, event: events.MadeElsewhere) -> Actions:
    yield actions.Adopt(event.attempt_id)


def _ended(state: SweepState, event: events.Ended) -> Actions:
    yield from _finish(state, state.flights[event.attempt_id], event.report)


def _vanished(state: SweepState, event: events.Vanished) -> Actions:
    flight = state.flights[event.attempt_id]
    outcome = event.outcome
    if state.stopping and flight.cancelled:
        outcome = Outcome.CANCELLED
    elif outcome is Outcome.CANCELLED:
        # Nobody asked for a stop: we gave up on its supervisor, or something else killed it.
        outcome = Outcome.LOST
    if flight.started_at is None and (state.stopping or flight.cancelled):
        yield actions.Forget(flight.attempt_id)
        return
    yield from _finish(
        state, flight, report_without_supervisor(state, flight, outcome, event.reason)
    )


def report_without_supervisor(
    state: SweepState, flight: Flight, outcome: Outcome, reason: str
) -> AttemptReport:
    """The report of an attempt whose supervisor cannot write one. Times are the driver's."""
    began = flight.started_at if flight.started_at is not None else state.now
    return AttemptReport(
        attempt_id=flight.attempt_id,
        config_hash=flight.ticket.trial.hash,
        outcome=outcome,
        reason=reason,
        number=flight.ticket.number,
        sweep=state.sweep,
        started_at=state.epoch_s + began,
        ended_at=state.epoch_s + state.now,
        duration_s=state.now - began,
        slot=flight.slot,
    )


def _finish(state: SweepState, flight: Flight, report: AttemptReport) -> Actions:
    ticket = flight.ticket
    retry = None if state.stopping else _retry(state, flight, report.outcome)
    yield actions.Finish(flight.attempt_id, report, retried=retry is not None)
    if retry is not None:
        yield actions.Delay(retry)
    elif report.outcome is Outcome.INFEASIBLE and ticket.trial.hash not in state.dropped:
        yield actions.DropRepeats(ticket.trial.hash)


def _retry(state: SweepState, flight: Flight, outcome: Outcome) -> Ticket | None:
    ticket = flight.ticket
    rule = state.policy[outcome]
    retries_made = ticket.tries.count(outcome)
    if retries_made >= rule.times:
        return None
    avoid = ticket.avoid
    if rule.elsewhere and flight.slot is not None:
        avoid = avoid | {flight.slot.node_id}
    return replace(
        ticket,
        number=state.next_number[ticket.trial.hash],
        tries=(*ticket.tries, outcome),
        avoid=avoid,
        not_before=state.now + rule.delay_before(retries_made + 1),
    )


def _nodes_seen(state: SweepState, event: events.NodesSeen) -> Actions:
    yield actions.LearnNodes(event.nodes)
    if not state.stopping:
        yield from _left_on_silent_nodes(state, event.nodes)


def _left_on_silent_nodes(state: SweepState, nodes: Sequence[Node]) -> Actions:
    """What a node took along that was cut off: no connection breaks, so Ray does not say for long.

    What a node held that died is reported by Ray itself, well within the grace.
    """
    silent = {
        node_id
        for node_id, since in state.gone_since.items()
        if state.now - since >= state.limits.gone_grace_s
    }
    if not silent:
        return
    flights = state.flights.values()
    lost = [f for f in flights if f.slot is not None and f.slot.node_id in silent]
    # Attempts may wait in its queue, too; Ray does not say which. Where slots were idle at two
    # looks, what was submitted before it went does not wait for a slot.
    before = max(state.gone_since[node_id] for node_id in silent)
    for lane in state.lanes.values():
        waiting = (
            f
            for f in flights
            if f.slot is None and f.ticket.demand == lane.demand and f.submitted_at <= before
        )
        idle = min(lane.idle_slots, state.idle_slots(lane.demand, nodes))
        lost.extend(islice(waiting, idle))
    # One of a trial at a time: the number of its next attempt counts this one.
    for flight in {flight.ticket.trial.hash: flight for flight in lost}.values():
        yield actions.Cancel(flight.attempt_id, force=True)
        reason = "its node does not answer any more"
        yield from _vanished(state, events.Vanished(flight.attempt_id, Outcome.LOST, reason))


def _stop_requested(state: SweepState, event: events.StopRequested) -> Actions:
    if state.stopping:
        return
    yield actions.StopSubmitting()
    for attempt_id in state.flights:
        yield actions.Cancel(attempt_id)


def _cluster_gone(state: SweepState, event: events.ClusterGone) -> Actions:
    if not state.stopping:
        yield actions.StopSubmitting()
    for flight in state.flights.values():
        if flight.started_at is None:
            yield actions.Forget(flight.attempt_id)
        else:
            report = report_without_supervisor(state, flight, Outcome.LOST, event.reason)
            yield actions.Finish(flight.attempt_id, report)


def _tick(state: SweepState, event: events.Tick) -> Actions:
    if state.stopping_since is not None:
        if state.now - state.stopping_since >= state.limits.stop_grace_s:
            for flight in state.flights.values():
                yield from _force(state, flight, "did not stop in time")
        return
    for ticket in state.due():
        yield actions.Requeue(ticket)
    if state.now < state.review_at:
        return
    for flight in state.flights.values():
        if flight.overdue_at is not None and state.now >= flight.overdue_at:
            yield from _force(state, flight, "its supervisor stopped answering")
    for lane in state.lanes.values():
        if lane.unplaceable_since is None or not (lane.ready or lane.in_flight):
            continue
        if state.now - lane.unplaceable_since >= state.limits.node_wait_s:
            yield actions.Say(
                f"giving up on trials that need {lane.demand}: no node has it any more"
            )
            yield actions.Abandon(lane.demand)
            for flight in state.flights.values():
                if flight.ticket.demand == lane.demand and flight.started_at is None:
                    yield from _force(state, flight, "no node can hold it any more")


def _force(state: SweepState, flight: Flight, reason: str) -> Actions:
    if flight.forced_at is None:
        yield actions.Cancel(flight.attempt_id, force=True)
    elif state.now - flight.forced_at >= state.limits.forced_grace_s:
        # Not even Ray answers (its head may be gone): close the book ourselves.
        yield from _vanished(state, events.Vanished(flight.attempt_id, Outcome.CANCELLED, reason))


_DECISIONS: dict[type, Callable[[SweepState, Any], Actions]] = {
    events.Started: _started,
    events.PhaseBegan: _phase,
    events.Waiting: _waiting,
    events.Claimed: _claimed,
    events.MadeElsewhere: _made_elsewhere,
    events.Ended: _ended,
    events.Vanished: _vanished,
    events.Tick: _tick,
    events.NodesSeen: _nodes_seen,
    events.StopRequested: _stop_requested,
    events.ClusterGone: _cluster_gone,
}
