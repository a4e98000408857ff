"""What to do next, as a pure function: ``decide(state, event) -> actions``. Nothing here acts.

::

    planned --Submit--> running --Begin--> in its slot --Finish--> ended
      ^                    |                    |
      `-----Requeue----- Delay <----------------'  by retry policy
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, RunningAttempt
from orchestrator.schedule import actions, events
from orchestrator.schedule.placement import Node, first_place, slots
from orchestrator.schedule.state import Lane, SweepState

Actions = Iterator[actions.Action]


def decide(state: SweepState, event: events.Event) -> list[actions.Action]:
    """The actions that ``event`` calls for; commit and perform each, in order.

    Events of attempts that no longer run (an answer after a forced end) call for nothing.
    """
    if isinstance(event, events.ClusterEvent) and event.attempt_id not in state.running:
        return []
    return _numbered_apart(state, _decisions(state, event))


def _numbered_apart(state: SweepState, decided: Actions) -> list[actions.Action]:
    """The decisions, the retries of a trial among them with a number each.

    All are made before the first is committed: every retry would be the trial's next attempt.
    """
    following = dict(state.next_number)
    made: list[actions.Action] = []
    for action in decided:
        if isinstance(action, actions.Delay):
            attempt, config_hash = action.attempt, action.attempt.trial.hash
            # A lower number is that of an attempt that only waits on: it has been counted.
            if attempt.number >= state.next_number[config_hash]:
                action = actions.Delay(replace(attempt, number=following[config_hash]))
                following[config_hash] += 1
        made.append(action)
    return made


def submissions(state: SweepState) -> list[actions.Submit | actions.Skip]:
    """What may be given to the cluster now: each lane's queue up to its window."""
    if state.stopping:
        return []
    return [
        actions.Skip(attempt) if attempt.trial.hash in state.dropped else actions.Submit(attempt)
        for lane in state.lanes.values()
        if lane.ready and lane.room
        for attempt in islice(lane.ready, lane.room)
    ]


def placed(state: SweepState, attempt: PlannedAttempt) -> PlannedAttempt:
    """``attempt`` for the cluster: with the one place where it is to run, if that matters.

    It avoids no node where nothing else there could hold it.
    """
    lane = state.lane_of(attempt)
    if attempt.avoid:
        others = [node for node in lane.nodes if node.node_id not in attempt.avoid]
        if not slots(others, attempt.trial.resources):
            attempt = replace(attempt, avoid=frozenset())
    there = {node.node_id for node in lane.nodes} if attempt.places else set()
    return replace(attempt, places=tuple(p for p in attempt.places if p & there)[:1])


def _decisions(state: SweepState, event: events.Event) -> Actions:
    match event:
        case events.Started(attempt_id, slot):
            yield actions.Begin(attempt_id, slot)
        case events.PhaseBegan(attempt_id, name):
            yield actions.ShowPhase(attempt_id, name)
        case events.Waiting(_, text):
            yield actions.Say(text)
        case events.Claimed(attempt_id) if state.stopping:
            yield actions.Forget(attempt_id)
        case events.Claimed(attempt_id):
            yield actions.Withdraw(attempt_id, made=False)
            again_at = state.now + state.limits.claimed_wait_s
            planned = state.running[attempt_id].planned
            yield actions.Delay(replace(planned, not_before=again_at))
        case events.MadeElsewhere(attempt_id):
            yield actions.Withdraw(attempt_id, made=True)
        case events.Renumbered(attempt_id, number):
            yield actions.Renumber(attempt_id, number)
        case events.Ended(attempt_id, report):
            yield from _finish(state, state.running[attempt_id], report)
        case events.Vanished(attempt_id, outcome, reason):
            yield from _vanished(state, state.running[attempt_id], outcome, reason)
        case events.NodesSeen(nodes):
            yield actions.LearnNodes(nodes)
            if not state.stopping:
                delayed = {id(state.lane_of(attempt)) for _, _, attempt in state.delayed}
                moving = [
                    lane
                    for lane in state.lanes.values()
                    if lane.places
                    and (lane.ready or lane.in_flight or id(lane) in delayed)
                    and _moves(lane, nodes)
                ]
                yield from _move(state, moving, nodes)
                yield from _left_on_silent_nodes(state, nodes, moving)
        case events.StopRequested() if not state.stopping:
            yield actions.StopSubmitting()
            for attempt_id in state.running:
                yield actions.Cancel(attempt_id)
        case events.ClusterGone(reason, stopped):
            outcome = Outcome.CANCELLED if stopped else Outcome.LOST
            if not state.stopping:
                yield actions.StopSubmitting()
            for attempt_id, running in state.running.items():
                if running.started_at is None:
                    yield actions.Forget(attempt_id)
                else:
                    report = report_without_supervisor(state, running, outcome, reason)
                    yield actions.Finish(attempt_id, report)
        case events.Tick():
            yield from _tick(state)


def _vanished(state: SweepState, running: RunningAttempt, outcome: Outcome, reason: str) -> Actions:
    if state.stopping and running.cancelled:
        outcome = Outcome.CANCELLED
    elif outcome is Outcome.CANCELLED:
        # Nobody asked for a stop: we gave up on its supervisor, or something else killed it.
        outcome = Outcome.LOST
    if running.started_at is None and (state.stopping or running.cancelled):
        yield actions.Forget(running.planned.attempt_id)
        return
    report = report_without_supervisor(state, running, outcome, reason)
    yield from _finish(state, running, report)


def report_without_supervisor(
    state: SweepState, running: RunningAttempt, outcome: Outcome, reason: str
) -> AttemptReport:
    """The report of an attempt whose supervisor cannot write one. Times are the driver's."""
    began = running.started_at if running.started_at is not None else state.now
    return running.planned.report(
        outcome,
        reason,
        started_at=state.epoch_s + began,
        ended_at=state.epoch_s + state.now,
        duration_s=state.now - began,
        slot=running.slot,
    )


def _finish(state: SweepState, running: RunningAttempt, report: AttemptReport) -> Actions:
    planned = running.planned
    retry = None if state.stopping else _retry(state, running, report.outcome)
    yield actions.Finish(planned.attempt_id, report, retried=retry is not None)
    if retry is not None:
        yield actions.Delay(retry)
    elif report.outcome is Outcome.INFEASIBLE and planned.trial.hash not in state.dropped:
        yield actions.DropRepeats(planned.trial.hash)


def _retry(state: SweepState, running: RunningAttempt, outcome: Outcome) -> PlannedAttempt | None:
    planned = running.planned
    rule = state.policy[outcome]
    retries_made = planned.tries.count(outcome)
    if retries_made >= rule.times:
        return None
    avoid = planned.avoid
    if rule.elsewhere and running.slot is not None:
        avoid = avoid | {running.slot.node_id}
    return replace(
        planned,
        number=state.next_number[planned.trial.hash],
        tries=(*planned.tries, outcome),
        avoid=avoid,
        not_before=state.now + rule.delay_before(retries_made + 1),
    )


def _moves(lane: Lane, nodes: Sequence[Node]) -> bool:
    """Whether the last node of the kind that a lane was to run on is gone."""
    known = {node.node_id for node in lane.nodes} or lane.places[0]
    return not any(node.node_id in known for node in first_place(nodes, *lane.key))


def _move(state: SweepState, lanes: Sequence[Lane], nodes: Sequence[Node]) -> Actions:
    """What waits for a kind of node of which none is left goes to the next kind, all of it."""
    moves = {
        (lane.nodes[0].host if lane.nodes else "those it was planned for", there[0].host): None
        for lane in lanes
        if (there := first_place(nodes, *lane.key))
    }
    for was, now in moves:
        yield actions.Say(
            f"no node like {was} is left: what is missing runs on nodes like {now}. Numbers of "
            "the two are not compared; the same command again measures the rest there, too"
        )
    for lane in lanes:
        for one in _unstarted(state, lane):
            # It waits for a node that never comes: Ray would not say so.
            yield actions.Cancel(one.planned.attempt_id, force=True)
            yield actions.Withdraw(one.planned.attempt_id, made=False)
            yield actions.Delay(replace(one.planned, not_before=state.now))


def _left_on_silent_nodes(
    state: SweepState, nodes: Sequence[Node], moving: Sequence[Lane]
) -> Actions:
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
    running = state.running.values()
    lost = [one for one in running if one.slot is not None and one.slot.node_id in silent]
    # Attempts may wait in its queue, too; Ray does not say which. Where slots were idle at two
    # looks, what was submitted before it went does not wait for a slot.
    before = max(state.gone_since[node_id] for node_id in silent)
    for lane in state.lanes.values():
        if lane in moving:
            continue
        waiting = (one for one in _unstarted(state, lane) if one.submitted_at <= before)
        there = first_place(nodes, *lane.key)
        idle = min(lane.idle_slots, state.idle_slots(lane.demand, there))
        lost.extend(islice(waiting, idle))
    for one in lost:
        yield actions.Cancel(one.planned.attempt_id, force=True)
        yield from _vanished(state, one, Outcome.LOST, "its node does not answer any more")


def _unstarted(state: SweepState, lane: Lane) -> list[RunningAttempt]:
    return [
        one
        for one in state.running.values()
        if one.slot is None and state.lane_of(one.planned) is lane
    ]


def _tick(state: SweepState) -> Actions:
    if state.stopping_since is not None:
        if state.now - state.stopping_since >= state.limits.stop_grace_s:
            for running in state.running.values():
                yield from _force(state, running, "did not stop in time")
        return
    for attempt in state.due():
        yield actions.Requeue(attempt)
    if state.now < state.review_at:
        return
    for running in state.running.values():
        if running.overdue_at is not None and state.now >= running.overdue_at:
            yield from _force(state, running, "its supervisor stopped answering")
    for lane in state.lanes.values():
        if lane.unplaceable_since is None or not (lane.ready or lane.in_flight):
            continue
        if state.now - lane.unplaceable_since >= state.limits.node_wait_s:
            yield actions.Say(
                f"giving up on trials that need {lane.demand}: no node has it any more"
            )
            yield actions.Abandon(lane.key)
            for running in _unstarted(state, lane):
                yield from _force(state, running, "no node can hold it any more")


def _force(state: SweepState, running: RunningAttempt, reason: str) -> Actions:
    if running.forced_at is None:
        yield actions.Cancel(running.planned.attempt_id, force=True)
    elif state.now - running.forced_at >= state.limits.forced_grace_s:
        # Not even Ray answers (its head may be gone): close the book ourselves.
        yield from _vanished(state, running, Outcome.CANCELLED, reason)
