"""The driver in virtual time: window, order, retries, nodes that die, stopping."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
from collections import Counter
from typing import Any

import pytest

from orchestrator.attempt import Outcome, PlannedAttempt, Resources, Trial
from orchestrator.errors import ClusterError
from orchestrator.plan.schema import VerdictConfig
from orchestrator.schedule.decide import decide, submissions
from orchestrator.schedule.driver import run_sweep
from orchestrator.schedule.events import NodesSeen, Started
from orchestrator.schedule.order import interleave
from orchestrator.schedule.placement import Node
from orchestrator.schedule.policy import Limits, retry_policy
from orchestrator.schedule.state import SweepState
from testing.simulated_cluster import Fate, SimulatedCluster


def nodes(count: int, cpus: int = 2) -> list[Node]:
    return [Node(f"n{i}", f"host{i}", cpus) for i in range(count)]


def steady(attempt: PlannedAttempt, node: Node) -> Fate:
    return Fate(10.0)


class Script:
    """Ends the n-th attempt of every trial as the n-th outcome says, the rest ok."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = outcomes
        self.made: Counter[str] = Counter()
        self.nodes: list[str] = []

    def __call__(self, attempt: PlannedAttempt, node: Node) -> Fate:
        number = self.made[attempt.trial.hash]
        self.made[attempt.trial.hash] += 1
        self.nodes.append(node.node_id)
        over = number >= len(self.outcomes)
        return Fate(10.0, Outcome.OK if over else self.outcomes[number])


def test_every_attempt_runs_once(kit: Any) -> None:
    trials = [kit.trial(i) for i in range(20)]
    run = kit.sweep(trials, SimulatedCluster(nodes(2), steady), repeats=3)
    assert run.result.outcomes == {"ok": 60}
    assert {h: sorted(r.number for r in rs) for h, rs in run.recorded.by_hash.items()} == {
        trial.hash: [1, 2, 3] for trial in trials
    }
    assert len({attempt.attempt_id for attempt in run.recorded.begun}) == 60
    assert not run.result.interrupted
    assert run.result.unmade == 0
    assert run.result.busy_s == pytest.approx(600)


def test_order_is_seeded_and_in_rounds(kit: Any) -> None:
    attempts = [PlannedAttempt(kit.trial(i), n) for i in range(30) for n in (1, 2)]
    first, same, other = (interleave(attempts, seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other
    assert first != attempts
    assert {a.number for a in first[:30]} == {1}
    assert sorted(map(id, first)) == sorted(map(id, attempts))


def test_the_last_round_runs_the_longest_first() -> None:
    def trial(value: int) -> Trial:
        return Trial(hash=f"{value:064x}", identity={})

    lasting = [PlannedAttempt(trial(i), n, expected_s=1.5**i) for i in range(20) for n in (1, 2)]
    unknown = PlannedAttempt(trial(99), 1)
    ordered = interleave([*lasting, PlannedAttempt(trial(99), 0), unknown], 1, slots=2)
    first, last = ordered[:21], ordered[21:]
    assert last[0] is unknown
    assert [a.expected_s for a in last[1:]] == sorted((1.5**i for i in range(20)), reverse=True)
    assert [a.expected_s for a in first[1:]] != [a.expected_s for a in last[1:]]
    # One slot: no order is shorter than another, and drift is to hit all alike.
    alone = interleave([a for a in lasting if a.number == 1], 1)
    assert [a.expected_s for a in alone] != [a.expected_s for a in last[1:]]
    # About equal durations stay in random order.
    equal = [PlannedAttempt(trial(i), 1, expected_s=60.0 + i / 100) for i in range(20)]
    assert interleave(equal, 1, slots=2) == interleave(equal, 1) != equal


def test_known_durations_fill_the_slots_to_the_end(kit: Any) -> None:
    generator = random.Random(0)
    lasts = {t.hash: 60 * generator.lognormvariate(0, 0.6) for t in map(kit.trial, range(400))}

    def makespan_s(known: bool) -> float:
        cluster = SimulatedCluster(
            nodes(8), lambda attempt, node: Fate(lasts[attempt.trial.hash]), dispatch_s=0.0
        )
        todo = [
            PlannedAttempt(trial, 1, expected_s=lasts[trial.hash] if known else None)
            for trial in map(kit.trial, range(400))
        ]
        result = run_sweep(
            kit.plan(), todo, recording=kit.Recorded(), view=kit.Seen(), seed=3,
            stop=threading.Event(), cluster=cluster,
        )  # fmt: skip
        assert result.outcomes == {"ok": 400}
        return cluster.now()

    bound_s = max(max(lasts.values()), sum(lasts.values()) / 16)
    assert makespan_s(known=True) <= bound_s / 0.97
    assert makespan_s(known=True) < makespan_s(known=False)


def test_order_reaches_the_cluster(kit: Any) -> None:
    trials = [kit.trial(i) for i in range(30)]
    orders = []
    for seed in (7, 7, 8):
        cluster = SimulatedCluster(nodes(2), steady)
        kit.sweep(trials, cluster, seed=seed)
        orders.append(cluster.submitted)
    assert orders[0] == orders[1] != orders[2]


def test_window_is_bounded(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(4), steady)
    kit.sweep([kit.trial(i) for i in range(200)], cluster)
    # 8 slots: half as many again wait in the cluster, and one.
    assert cluster.most_queued <= 13


def test_a_retry_does_not_queue_behind_what_has_time(kit: Any) -> None:
    generator = random.Random(0)
    unlucky = kit.trial(77).hash
    made: Counter[str] = Counter()

    def fate(attempt: PlannedAttempt, node: Node) -> Fate:
        made[attempt.trial.hash] += 1
        if attempt.trial.hash == unlucky and made[unlucky] == 1:
            return Fate(200.0, Outcome.CRASHED)
        return Fate(generator.uniform(100.0, 300.0))

    run = kit.sweep([kit.trial(i) for i in range(400)], SimulatedCluster(nodes(16), fate))
    first, second = (r for r in run.recorded.reports if r.config_hash == unlucky)
    # 32 slots: one is free every 6 s, and 16 attempts wait for them before anything has ended.
    assert second.started_at - first.ended_at < 30


def test_slots_never_wait_for_the_driver(kit: Any) -> None:
    generator = random.Random(0)
    cluster = SimulatedCluster(nodes(4), lambda s, n: Fate(generator.lognormvariate(2, 0.5)))
    run = kit.sweep([kit.trial(i) for i in range(400)], cluster)
    assert run.result.busy_s / (cluster.now() * 8) > 0.97


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.OOM_HOST, Outcome.CRASHED])
def test_a_failure_worth_retrying(kit: Any, outcome: Outcome) -> None:
    script = Script(outcome)
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(2), script))
    assert [r.outcome for r in run.recorded.reports] == [outcome, Outcome.OK]
    assert [r.number for r in run.recorded.reports] == [1, 2]
    assert [a.retried for a in run.result.attempts] == [True, False]
    assert run.result.final == {kit.trial(0).hash: "ok"}


@pytest.mark.parametrize("outcome", [Outcome.OOM_DEVICE, Outcome.ERROR, Outcome.TIMEOUT])
def test_a_failure_that_is_a_result(kit: Any, outcome: Outcome) -> None:
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(2), Script(outcome)))
    assert [r.outcome for r in run.recorded.reports] == [outcome]


def test_lost_goes_elsewhere_then_gives_up(kit: Any) -> None:
    script = Script(*[Outcome.LOST] * 9)
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(6), script))
    assert run.recorded.outcomes == {"lost": 5}
    assert len(set(script.nodes)) == 5


def test_lost_on_the_only_node_tries_it_again(kit: Any) -> None:
    script = Script(Outcome.LOST)
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(1), script))
    assert run.recorded.outcomes == {"lost": 1, "ok": 1}


def test_invalid_waits_for_its_cooldown(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(1), Script(*[Outcome.INVALID] * 9))
    run = kit.sweep([kit.trial(0)], cluster, verdict=VerdictConfig(retries=2, cooldown_s=45.0))
    starts = [r.started_at for r in run.recorded.reports]
    assert run.recorded.outcomes == {"invalid": 3}
    assert all(later - earlier >= 55.0 for earlier, later in itertools.pairwise(starts))


def test_retry_numbers_follow_the_repeats(kit: Any) -> None:
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(1), Script(Outcome.CRASHED)), repeats=3)
    numbers = sorted(r.number for r in run.recorded.reports)
    assert numbers == [1, 2, 3, 4]
    assert run.recorded.outcomes == {"crashed": 1, "ok": 3}


def test_infeasible_found_in_a_run_ends_its_repeats(kit: Any) -> None:
    script = Script(Outcome.INFEASIBLE)
    run = kit.sweep([kit.trial(0)], SimulatedCluster(nodes(1, 1), script), repeats=9)
    # One more may already have been in flight.
    assert run.recorded.outcomes["infeasible"] == 1
    assert len(run.recorded.reports) <= 3


def test_infeasible_known_before_needs_no_cluster(kit: Any) -> None:
    run = kit.sweep([kit.trial(0, infeasible="prompt longer than the context")], None)
    (report,) = run.recorded.reports
    assert (report.outcome, report.reason) == (
        Outcome.INFEASIBLE,
        "prompt longer than the context",
    )
    assert run.recorded.begun == []


def test_refused_demand_runs_nothing(kit: Any) -> None:
    trials = [kit.trial(0, infeasible="no"), kit.trial(1, resources=Resources(gpus=4))]
    cluster = SimulatedCluster(nodes(3), steady)
    recorded = kit.Recorded()
    with pytest.raises(ClusterError, match="no node has 4 GPUs"):
        kit.sweep(trials, cluster, seen=recorded and kit.Seen())
    assert cluster.submitted == []


def test_lanes_do_not_block_each_other(kit: Any) -> None:
    """Trials that must wait for the one GPU do not keep the CPU nodes idle."""
    gpu = Node("g", "gpu", 1, 1)
    cluster = SimulatedCluster([gpu, *nodes(4)], steady)
    trials = [kit.trial(i, resources=Resources(gpus=1, cpus=1)) for i in range(20)]
    trials += [kit.trial(100 + i, resources=Resources(cpus=2)) for i in range(80)]
    run = kit.sweep(trials, cluster)
    assert run.result.outcomes == {"ok": 100}
    # 20 GPU trials one after another take 200 s, the others on four nodes as long.
    assert cluster.now() < 215


def test_a_dead_node_loses_nothing(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(4), steady)
    cluster.at(15.0, lambda: cluster.kill_node("n1"))
    cluster.at(35.0, lambda: cluster.kill_node("n2"))
    run = kit.sweep([kit.trial(i) for i in range(60)], cluster)
    assert run.recorded.outcomes["ok"] == 60
    assert run.recorded.outcomes["lost"] == 4
    assert set(run.result.final.values()) == {"ok"}
    reasons = {r.reason for r in run.recorded.reports if r.outcome is Outcome.LOST}
    assert reasons == {"node host1 died", "node host2 died"}


def test_a_node_that_joins_is_used(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(1), steady)
    cluster.at(20.0, lambda: cluster.add_node(Node("late", "late", 2)))
    run = kit.sweep([kit.trial(i) for i in range(40)], cluster)
    used = {r.slot.host for r in run.recorded.reports}
    assert used == {"host0", "late"}
    assert cluster.now() < 130


def test_nothing_left_to_run_on_ends_the_sweep(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(1), steady)
    cluster.at(15.0, lambda: cluster.kill_node("n0"))
    run = kit.sweep([kit.trial(i) for i in range(10)], cluster, limits=Limits(node_wait_s=60.0))
    assert run.recorded.outcomes == {"ok": 2, "lost": 2}
    assert run.result.unmade == 8
    assert any("no node has it" in text for text in run.seen.messages)


def test_a_node_that_comes_back_in_time_is_waited_for(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(1), steady)
    cluster.at(15.0, lambda: cluster.kill_node("n0"))
    cluster.at(60.0, lambda: cluster.add_node(Node("n9", "host9", 2)))
    run = kit.sweep([kit.trial(i) for i in range(10)], cluster)
    assert run.recorded.outcomes == {"ok": 10, "lost": 2}


def test_a_supervisor_that_never_answers_is_given_up(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(2), lambda s, n: Fate(1e9 if s.number == 1 else 1.0))
    run = kit.sweep([kit.trial(0)], cluster)
    assert [r.outcome for r in run.recorded.reports] == [Outcome.LOST, Outcome.OK]
    assert cluster.now() < 400


def test_stop_cancels_what_runs_and_forgets_what_waits(kit: Any) -> None:
    stop = threading.Event()
    cluster = SimulatedCluster(nodes(2), steady)
    cluster.at(25.0, stop.set)
    run = kit.sweep([kit.trial(i) for i in range(50)], cluster, stop=stop)
    assert run.result.interrupted
    assert run.recorded.outcomes == {"ok": 8, "cancelled": 4}
    assert run.result.unmade == 50 - 12
    assert cluster.now() < 27


def test_stop_does_not_wait_for_the_stubborn(kit: Any) -> None:
    class Stubborn(SimulatedCluster):
        def cancel(self, attempt_id: str, *, force: bool) -> None:
            if force:
                super().cancel(attempt_id, force=True)

    stop = threading.Event()
    cluster = Stubborn(nodes(1), steady)
    cluster.at(5.0, stop.set)
    run = kit.sweep([kit.trial(i) for i in range(4)], cluster, stop=stop)
    assert run.recorded.outcomes == {"cancelled": 2}
    assert cluster.now() < 9


def test_stop_with_a_dead_cluster_still_returns(kit: Any) -> None:
    class Deaf(SimulatedCluster):
        def cancel(self, attempt_id: str, *, force: bool) -> None:
            return None

    stop = threading.Event()
    cluster = Deaf(nodes(1), lambda s, n: Fate(1e9))
    cluster.at(5.0, stop.set)
    run = kit.sweep([kit.trial(i) for i in range(3)], cluster, stop=stop)
    assert run.recorded.outcomes == {"cancelled": 2}
    assert cluster.now() < 30


def test_a_cluster_that_is_gone_closes_the_books(kit: Any) -> None:
    class Falling(SimulatedCluster):
        def wait(self, timeout_s: float) -> Any:
            if self.now() > 25.0:
                raise ClusterError("Ray's raylet died")
            return super().wait(timeout_s)

    recorded = kit.Recorded()
    with pytest.raises(ClusterError, match="raylet died"):
        run_sweep(
            kit.plan(),
            [PlannedAttempt(kit.trial(i), 1) for i in range(50)],
            recording=recorded,
            view=kit.Seen(),
            seed=0,
            stop=threading.Event(),
            cluster=Falling(nodes(2), steady),
        )
    assert recorded.outcomes == {"ok": 8, "lost": 4}
    assert {r.reason for r in recorded.reports} == {None, "Ray's raylet died"}


def test_a_cluster_that_goes_while_we_stop_is_no_error(kit: Any) -> None:
    """As where a signal goes to all our processes."""
    stop = threading.Event()

    class Stopped(SimulatedCluster):
        def wait(self, timeout_s: float) -> Any:
            if self.now() > 25.0:
                stop.set()
                raise ClusterError("Ray's raylet died")
            return super().wait(timeout_s)

    run = kit.sweep([kit.trial(i) for i in range(50)], Stopped(nodes(2), steady), stop=stop)
    assert run.recorded.outcomes == {"ok": 8, "cancelled": 4}
    assert run.result.interrupted


def test_a_recording_that_fails_leaves_nothing_running(kit: Any) -> None:
    cluster = SimulatedCluster(nodes(2), steady)
    cancelled = []
    cluster.cancel = lambda attempt_id, *, force: cancelled.append((attempt_id, force))  # type: ignore[method-assign]

    class Full(type(kit.Recorded())):  # type: ignore[misc]
        def finish(self, report: Any, trial: Any) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_sweep(
            kit.plan(),
            [PlannedAttempt(kit.trial(i), 1) for i in range(20)],
            recording=Full(),
            view=kit.Seen(),
            seed=0,
            stop=threading.Event(),
            cluster=cluster,
        )
    assert len(cancelled) >= 4
    assert all(force for _, force in cancelled)


def test_decide_is_pure(kit: Any) -> None:
    planned = [PlannedAttempt(kit.trial(i)) for i in range(5)]
    state = SweepState(planned, retry_policy(), Limits(), "d")
    for action in decide(state, NodesSeen(tuple(nodes(1)))):
        state.commit(action)
    before = dataclasses.asdict(dataclasses.replace(planned[0], trial=None))  # type: ignore[type-var]
    assert submissions(state) == submissions(state)
    for submit in submissions(state):
        state.commit(submit)
    (running, *_) = state.running.values()
    slot = type("S", (), {"node_id": "n0"})()
    event = Started(running.planned.attempt_id, slot)  # type: ignore[arg-type]
    assert decide(state, event) == decide(state, event)
    assert running.started_at is None, "deciding must not act"
    assert dataclasses.asdict(dataclasses.replace(planned[0], trial=None)) == before  # type: ignore[type-var]


def test_answers_of_the_dead_are_ignored(kit: Any) -> None:
    state = SweepState([], retry_policy(), Limits(), "d")
    assert decide(state, Started("gone", None)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands_of_trials_with_failures(kit: Any, count: int) -> None:
    generator = random.Random(3)
    endings = [Outcome.OK] * 90 + [Outcome.LOST] * 4 + [Outcome.CRASHED] * 3 + [Outcome.ERROR] * 3

    def fate(attempt: PlannedAttempt, node: Node) -> Fate:
        return Fate(generator.lognormvariate(3, 1), generator.choice(endings))

    cluster = SimulatedCluster(nodes(50, 8), fate)
    trials = [kit.trial(i) for i in range(count)]
    run = kit.sweep(trials, cluster)
    assert len(run.result.final) == count
    assert run.result.unmade == 0
    # Every report was recorded once, under a number of its own.
    assert len({r.attempt_id for r in run.recorded.reports}) == len(run.recorded.reports)
    for reports in run.recorded.by_hash.values():
        assert sorted(r.number for r in reports) == list(range(1, len(reports) + 1))
    final = Counter(run.result.final.values())
    assert final["ok"] + final["error"] + final["crashed"] + final["lost"] == count
    assert final["lost"] == 0
