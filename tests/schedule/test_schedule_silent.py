"""A node that does not answer any more while nobody says what became of its attempts."""

from __future__ import annotations

from typing import Any

from orchestrator.attempt import Outcome, PlannedAttempt, Slot
from orchestrator.schedule.actions import Cancel, Finish
from orchestrator.schedule.decide import decide, report_without_supervisor, submissions
from orchestrator.schedule.events import Ended, Event, NodesSeen, Started, Tick
from orchestrator.schedule.placement import Node
from orchestrator.schedule.policy import Limits, retry_policy
from orchestrator.schedule.state import SweepState

THERE, CUT = Node("there", "a", 2), Node("cut", "b", 2)
GRACE_S = Limits().gone_grace_s


def handled(state: SweepState, event: Event) -> list[Any]:
    actions = decide(state, event)
    for action in actions:
        state.commit(action)
    return actions


def running(kit: Any, trials: list[Any]) -> SweepState:
    """Seven in flight: two on each node, three in queues."""
    planned = [PlannedAttempt(trial) for trial in trials]
    state = SweepState(planned, retry_policy(), Limits(), "d")
    handled(state, NodesSeen((THERE, CUT)))
    for submit in submissions(state):
        state.commit(submit)
    assert len(state.running) == 7
    for number, node in enumerate((THERE, THERE, CUT, CUT), start=1):
        handled(state, Started(f"d-{number}", Slot(node.node_id, node.host, (0,))))
    return state


def finished(actions: list[Any]) -> dict[str, Outcome]:
    return {a.attempt_id: a.report.outcome for a in actions if isinstance(a, Finish)}


def test_what_a_silent_node_held_is_lost_after_a_grace(kit: Any) -> None:
    state = running(kit, [kit.trial(i) for i in range(9)])
    state.now = 10.0
    assert finished(handled(state, NodesSeen((THERE,)))) == {}, "Ray may still say"
    state.now += GRACE_S - 1
    assert finished(handled(state, NodesSeen((THERE,)))) == {}
    state.now += 1
    actions = handled(state, NodesSeen((THERE,)))
    assert finished(actions) == {"d-3": Outcome.LOST, "d-4": Outcome.LOST}
    assert {a.attempt_id for a in actions if isinstance(a, Cancel) and a.force} == {"d-3", "d-4"}
    assert len(state.delayed) == 2, "to be made again"
    assert finished(handled(state, NodesSeen((THERE,)))) == {}, "once"


def ended(state: SweepState, attempt_id: str) -> None:
    report = report_without_supervisor(state, state.running[attempt_id], Outcome.OK, "")
    handled(state, Ended(attempt_id, report))


def test_what_waited_in_its_queue_is_submitted_again_where_slots_are_idle(kit: Any) -> None:
    state = running(kit, [kit.trial(i) for i in range(9)])
    ended(state, "d-1")  # two slots of the other node are idle, and nothing starts there
    ended(state, "d-2")
    handled(state, NodesSeen((THERE,)))
    state.now += GRACE_S
    lost = finished(handled(state, NodesSeen((THERE,))))
    assert set(lost) == {"d-3", "d-4", "d-5", "d-6"}, "as many as there are idle slots"
    for submit in submissions(state):
        state.commit(submit)
    assert set(state.running) == {"d-7", "d-8", "d-9"}
    state.now += GRACE_S
    lost = finished(handled(state, NodesSeen((THERE,))))
    assert set(lost) == {"d-7"}, "the others were submitted when it had gone"


def test_a_slot_that_has_just_become_idle_says_nothing(kit: Any) -> None:
    state = running(kit, [kit.trial(i) for i in range(9)])
    handled(state, NodesSeen((THERE,)))
    state.now += GRACE_S
    ended(state, "d-1")  # and what comes next is on its way
    assert set(finished(handled(state, NodesSeen((THERE,))))) == {"d-3", "d-4"}
    assert set(finished(handled(state, NodesSeen((THERE,))))) == {"d-5"}, "idle at two looks"


def test_attempts_of_one_trial_get_numbers_of_their_own(kit: Any) -> None:
    state = running(kit, [kit.trial(i) for i in (0, 1, 2, 2, 3, 4, 5)])
    handled(state, NodesSeen((THERE,)))
    state.now += GRACE_S
    lost = finished(handled(state, NodesSeen((THERE,))))
    lost |= finished(handled(state, NodesSeen((THERE,))))
    assert set(lost) == {"d-3", "d-4"}
    numbers = [ticket.number for _, _, ticket in state.delayed]
    assert len(set(numbers)) == 2


def test_retries_of_a_trial_that_end_together_have_numbers_of_their_own(kit: Any) -> None:
    trial = kit.trial(0)
    planned = [PlannedAttempt(trial, number) for number in range(1, 8)]
    state = SweepState(planned, retry_policy(), Limits(), "d")
    handled(state, NodesSeen((THERE, CUT)))
    for submit in submissions(state):
        state.commit(submit)
    for number, node in enumerate((THERE, THERE, CUT, CUT), start=1):
        handled(state, Started(f"d-{number}", Slot(node.node_id, node.host, (0,))))
    state.now = 10.0
    handled(state, NodesSeen((THERE,)))
    state.now += GRACE_S
    assert len(finished(handled(state, NodesSeen((THERE,))))) == 2, "both of the node's, at once"
    assert sorted(attempt.number for _, _, attempt in state.delayed) == [8, 9]
    assert state.next_number[trial.hash] == 10


def test_retries_of_one_tick_have_numbers_of_their_own(kit: Any) -> None:
    """Supervisors that stop answering are given up together."""
    trial = kit.trial(0)
    state = SweepState(
        [PlannedAttempt(trial, number) for number in (1, 2, 3)], retry_policy(), Limits(), "d"
    )
    handled(state, NodesSeen((THERE, CUT)))
    for submit in submissions(state):
        state.commit(submit)
    for number in (1, 2, 3):
        handled(state, Started(f"d-{number}", Slot("there", "a", (0,))))
    for _ in range(2):
        state.now += trial.timeout_s + Limits().overdue_grace_s + Limits().forced_grace_s + 1
        handled(state, Tick())
    assert sorted(attempt.number for _, _, attempt in state.delayed) == [4, 5, 6]
