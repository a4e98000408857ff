"""One kind of node for all that is compared: the choice, and what becomes of it when nodes go."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.attempt import Outcome, PlannedAttempt, Resources, Trial
from orchestrator.conditions import Conditions
from orchestrator.plan.comparison import Comparison
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.schedule.kinds import Kind, places_of, preferred
from orchestrator.schedule.placement import Node
from orchestrator.schedule.possible import kinds_of
from orchestrator.schedule.todo import Reuse, compute_todo
from testing.simulated_cluster import Fate, SimulatedCluster

SLOW, FAST = Conditions({"CPU": "slow"}), Conditions({"CPU": "fast"})
NODES = [Node("s1", "slow-1", 2), Node("s2", "slow-2", 2), Node("f1", "fast-1", 2)]
CLASS = {"s1": SLOW, "s2": SLOW, "f1": FAST}
TRIALS = [Trial(f"{number:064x}", {}, resources=Resources(cpus=1)) for number in range(4)]


def kinds(trials: list[Trial] = TRIALS, nodes: list[Node] = NODES) -> list[Kind]:
    return kinds_of(
        {node: {trial.hash: [CLASS[node.node_id]] for trial in trials} for node in nodes}
    )


def made(conditions: Conditions, number: int = 1, outcome: str = "ok") -> Any:
    return SimpleNamespace(
        outcome=outcome,
        number=number,
        conditions=conditions.ids,
        started_at=float(number),
        ended_at=number + 1.0,
        host="h",
        attempt_id=f"a{number}",
    )


def hosts(chosen: tuple[Kind, ...]) -> list[str]:
    return [kind.nodes[0].host for kind in chosen]


def test_nodes_that_answer_the_same_are_one_kind() -> None:
    slow, fast = kinds()
    assert [node.node_id for node in slow.nodes] == ["s1", "s2"]
    assert [node.node_id for node in fast.nodes] == ["f1"]
    assert kinds_of({NODES[0]: {}}) == [], "nothing fits there"


def test_a_group_goes_where_most_of_it_was_measured_else_where_there_is_room() -> None:
    a, b, c, d = TRIALS
    recorded = {a.hash: [made(FAST, 1), made(FAST, 2)], b.hash: [made(SLOW)]}
    found = preferred([[a, b], [c, d]], kinds(), recorded)
    # What has no measurement goes where the rest of the sweep is, not to where there is most room.
    assert {tuple(hosts(chosen)) for chosen in found.values()} == {("fast-1", "slow-1")}
    assert hosts(preferred([[a, b]], kinds(), {})[a.hash]) == ["slow-1", "fast-1"]
    failed = {a.hash: [made(FAST, outcome="error")]}
    assert hosts(preferred([[a, b]], kinds(), failed)[b.hash]) == ["slow-1", "fast-1"]
    groups = preferred([[a, b], [c, d]], kinds(), {**recorded, c.hash: [made(SLOW)]})
    assert (hosts(groups[a.hash])[0], hosts(groups[d.hash])[0]) == ("fast-1", "slow-1")


def test_a_kind_that_holds_the_whole_group_comes_first() -> None:
    a, b = TRIALS[:2]
    small = Kind((NODES[0], NODES[1]), {a.hash: [SLOW]})
    large = Kind((NODES[2],), {a.hash: [FAST], b.hash: [FAST]})
    found = preferred([[a, b]], [small, large], {a.hash: [made(SLOW)]})
    assert hosts(found[a.hash]) == ["fast-1", "slow-1"]
    assert hosts(found[b.hash]) == ["fast-1"]
    # Where none holds all of it, each trial still runs.
    found = preferred([[a, b]], [small, Kind((NODES[2],), {b.hash: [FAST]})], {})
    assert (hosts(found[a.hash]), hosts(found[b.hash])) == (["slow-1"], ["fast-1"])


@given(
    holds=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=4),
    measured=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9),
)
def test_trials_of_a_group_never_part_where_one_kind_holds_both(
    holds: list[set[int]], measured: list[tuple[int, int]]
) -> None:
    of_kind = [Conditions({"CPU": str(at)}) for at in range(4)]
    there = [
        Kind((Node(str(at), str(at), 1),), {TRIALS[i].hash: [of_kind[at]] for i in held})
        for at, held in enumerate(holds)
    ]
    recorded: dict[str, list[Any]] = {}
    for trial, at in measured:
        recorded.setdefault(TRIALS[trial].hash, []).append(made(of_kind[at]))
    found = preferred([TRIALS], there, recorded)
    most = max(holds, key=len)
    assert {i for i in range(4) if found[TRIALS[i].hash]} == set().union(*holds)
    if len(most) == 4:
        assert len({hosts(found[trial.hash])[0] for trial in TRIALS}) == 1


def test_kinds_that_make_no_difference_to_a_trial_are_one_place() -> None:
    a, b = TRIALS[:2]
    # Of `a` both have the same conditions; only the second holds `b`.
    one, two = Kind((NODES[0],), {a.hash: [SLOW]}), Kind((NODES[1],), {a.hash: [SLOW], b.hash: []})
    assert places_of(a.hash, (two, one)) == ()
    assert places_of(b.hash, (two,)) == ()
    slow, fast = kinds()
    assert places_of(a.hash, (fast, slow)) == (frozenset({"f1"}), frozenset({"s1", "s2"}))


def todo(recorded: dict[str, list[Any]], *, exact: bool = True, **settings: Any) -> Any:
    reuse = Reuse(preferred([TRIALS], kinds(), recorded), lambda _: SLOW, exact)
    return compute_todo(TRIALS, recorded, Settings(**settings), reuse=reuse)


def test_what_is_done_elsewhere_stays_done_and_the_rest_is_counted_where_it_will_be_made() -> None:
    a, b, c, _ = (trial.hash for trial in TRIALS)
    recorded = {
        a: [made(FAST, 1), made(FAST, 2)],
        b: [made(SLOW, 1), made(SLOW, 2)],
        c: [made(SLOW, 1), made(FAST, 2)],
    }
    found = todo(recorded, repeats=2)
    assert [state.state for state in found.states.values()] == ["cached", "cached", "new", "new"]
    (other,) = (one for one in found.attempts if one.trial.hash == c)
    assert other.number == 3
    # Three on each by now: the one with more slots.
    assert {one.places[0] for one in found.attempts} == {frozenset({"s1", "s2"})}
    assert todo(recorded, repeats=2, exact=False).attempts[0].places, "also where any counts"


def test_a_failure_on_another_kind_is_tried_where_the_group_is() -> None:
    a, b = (trial.hash for trial in TRIALS[:2])
    found = todo({a: [made(FAST)], b: [made(SLOW, outcome="oom_device")]})
    assert found.states[b].state == "stale"
    assert {one.places[0] for one in found.attempts} == {frozenset({"f1"})}


def test_groups_are_those_of_the_table(kit: Any) -> None:
    axes = {"quant": ("fp32", "int8"), "batch": ("1", "2")}
    trials = tuple(
        dataclasses.replace(kit.trial(at), axes={"quant": quant, "batch": batch})
        for at, (quant, batch) in enumerate((q, b) for q in axes["quant"] for b in (1, 2))
    )
    plan = Plan("s", "", trials, Settings(), axes=axes)
    groups = [Comparison.of(plan).group_of(trial) for trial in trials]
    assert groups == [(("batch", 1),), (("batch", 2),)] * 2
    flat = dataclasses.replace(plan, axes={})
    assert {Comparison.of(flat).group_of(trial) for trial in trials} == {()}


# -- in virtual time ------------------------------------------------------------------------------


def run(kit: Any, cluster: SimulatedCluster, places: tuple[frozenset[str], ...], count: int) -> Any:
    attempts = [PlannedAttempt(kit.trial(value), places=places) for value in range(count)]
    return kit.sweep([], cluster, attempts=attempts)


def used(done: Any) -> list[str]:
    return [report.slot.node_id for report in done.recorded.reports]


ON_FAST_FIRST = (frozenset({"f1"}), frozenset({"s1", "s2"}))


def test_attempts_stay_with_their_kind_and_others_do_not_wait_for_them(kit: Any) -> None:
    cluster = SimulatedCluster(NODES, lambda attempt, node: Fate(10.0))
    attempts = [
        PlannedAttempt(kit.trial(value), places=ON_FAST_FIRST[:: 1 if value < 8 else -1])
        for value in range(16)
    ]
    done = kit.sweep([], cluster, attempts=attempts)
    where = {report.config_hash: report.slot.node_id for report in done.recorded.reports}
    assert {where[kit.trial(value).hash] for value in range(8)} == {"f1"}
    assert done.result.outcomes == {"ok": 16}
    assert cluster.now() < 45, "the others ran beside them"
    (line,) = done.seen.messages
    assert line.startswith("several kinds of node: what is compared runs on nodes like ")
    assert {"fast-1", "slow-1"} == set(line.rpartition("like ")[2].split(", "))


def test_a_retry_elsewhere_stays_with_its_kind(kit: Any) -> None:
    ended: list[str] = []

    def fate(attempt: PlannedAttempt, node: Node) -> Fate:
        ended.append(node.node_id)
        return Fate(1.0, Outcome.OOM_HOST if len(ended) == 1 else Outcome.OK)

    slow = (frozenset({"s1", "s2"}), frozenset({"f1"}))
    done = run(kit, SimulatedCluster(NODES, fate), slow, 1)
    assert done.result.outcomes == {"oom_host": 1, "ok": 1}
    assert set(ended) == {"s1", "s2"}
    ended.clear()
    done = run(kit, SimulatedCluster(NODES, fate), ON_FAST_FIRST, 1)
    assert ended == ["f1", "f1"], "its kind has no other node"


def test_a_kind_that_is_gone_is_replaced_by_the_next_in_one_piece(kit: Any) -> None:
    cluster = SimulatedCluster(NODES, lambda attempt, node: Fate(10.0))
    cluster.at(25.0, lambda: cluster.kill_node("f1"))
    done = run(kit, cluster, ON_FAST_FIRST, 12)
    assert used(done)[:4] == ["f1"] * 4
    assert "f1" not in used(done)[6:]
    final = {report.config_hash: report.outcome.value for report in done.recorded.reports}
    assert set(final.values()) == {"ok"}
    assert len(final) == 12
    assert done.result.unmade == 0
    assert done.result.outcomes["lost"] == 2, "what ran there, and nothing that only waited"
    told = [line for line in done.seen.messages if "no node like fast-1 is left" in line]
    assert len(told) == 1
    assert "runs on nodes like slow-1" in told[0]


def test_a_kind_that_took_all_that_was_left_along_is_told_of(kit: Any) -> None:
    """Nothing waits or is in flight when the node is missed: all of it is to be tried again."""
    cluster = SimulatedCluster(NODES, lambda attempt, node: Fate(10.0))
    cluster.at(5.0, lambda: cluster.kill_node("f1"))
    done = run(kit, cluster, ON_FAST_FIRST, 2)
    assert done.result.outcomes == {"lost": 2, "ok": 2}
    assert set(used(done)[-2:]) <= {"s1", "s2"}
    assert len([line for line in done.seen.messages if "no node like fast-1 is left" in line]) == 1


def test_a_kind_that_went_before_the_sweep_began_is_told_of(kit: Any) -> None:
    cluster = SimulatedCluster(NODES[:2], lambda attempt, node: Fate(10.0))
    done = run(kit, cluster, ON_FAST_FIRST, 4)
    assert done.result.outcomes == {"ok": 4}
    assert any("no node like those it was planned for is left" in m for m in done.seen.messages)


def test_where_no_kind_is_left_a_node_that_joins_takes_over(kit: Any) -> None:
    cluster = SimulatedCluster(NODES[2:], lambda attempt, node: Fate(10.0))
    cluster.at(15.0, lambda: cluster.kill_node("f1"))
    cluster.at(60.0, lambda: cluster.add_node(Node("n", "new", 2)))
    done = run(kit, cluster, ON_FAST_FIRST, 6)
    assert set(used(done)[-4:]) == {"n"}
    assert {report.config_hash for report in done.recorded.reports if report.outcome == "ok"} == {
        kit.trial(value).hash for value in range(6)
    }
