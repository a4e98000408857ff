"""The driver in front of claims: what others have is theirs, and nothing is lost by asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.attempt import Outcome, PlannedAttempt
from orchestrator.conditions import Conditions
from orchestrator.schedule.driver import run_sweep
from orchestrator.schedule.kinds import Kind
from orchestrator.schedule.placement import Node
from orchestrator.schedule.policy import Limits
from orchestrator.schedule.todo import Reuse
from testing.simulated_cluster import Fate, SimulatedCluster


@dataclass
class Standing:
    attempts: Any = ()
    own: int = 0


@dataclass
class Claims:
    """Claims by rule: ``rule(config_hash)`` is a Standing, or None while another driver has it."""

    rule: Callable[[str], Standing | None] = lambda config_hash: Standing()
    asked: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    patience_s: float = 10.0

    def ask(self, wishes: Mapping[str, str]) -> dict[str, Standing | None]:
        self.asked.extend(wishes)
        return {attempt_id: self.rule(config_hash) for attempt_id, config_hash in wishes.items()}

    def drop(self, attempt_id: str) -> None:
        self.dropped.append(attempt_id)

    def tend(self) -> None:
        pass


class View:
    def __init__(self) -> None:
        self.withdrawals: list[bool] = []

    def withdrawn(self, spec: Any, *, made: bool) -> None:
        self.withdrawals.append(made)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def attempt(number: int = 1, outcome: str = "ok") -> Any:
    return SimpleNamespace(
        outcome=outcome, number=number, attempt_id=f"other-{number}", started_at=0.0, ended_at=1.0
    )


@pytest.fixture
def run(kit: Any) -> Callable[..., Any]:
    def run(
        claims: Claims,
        trials: int = 6,
        repeats: int = 1,
        stop: threading.Event | None = None,
        reuse: Reuse | None = None,
    ) -> Any:
        recorded, view = kit.Recorded(), View()
        cluster = SimulatedCluster([Node("n", "host", 2)], lambda spec, node: Fate(1.0))
        result = run_sweep(
            kit.plan(repeats=repeats),
            [
                PlannedAttempt(kit.trial(value), number)
                for value in range(trials)
                for number in range(1, repeats + 1)
            ],
            recording=recorded,
            view=view,  # type: ignore[arg-type]
            seed=0,
            stop=stop or threading.Event(),
            cluster=cluster,
            claims=claims,
            reuse=reuse,
            limits=Limits(claimed_wait_s=0.05),
        )
        return SimpleNamespace(result=result, recorded=recorded, view=view)

    return run


def test_everything_granted_is_run(run: Callable[..., Any]) -> None:
    claims = Claims()
    done = run(claims, repeats=2)
    assert done.result.outcomes == {"ok": 12}
    assert sorted(claims.asked) == sorted(r.attempt_id for r in done.recorded.reports)
    assert claims.dropped == []


def test_what_another_driver_has_is_waited_for_and_its_result_taken(
    run: Callable[..., Any], kit: Any
) -> None:
    theirs, times = kit.trial(3).hash, [0]

    def rule(config_hash: str) -> Standing | None:
        if config_hash != theirs:
            return Standing()
        times[0] += 1
        return None if times[0] < 4 else Standing([attempt()])

    claims = Claims(rule)
    done = run(claims)
    assert done.result.outcomes == {"ok": 5}
    assert (done.result.adopted, done.result.unmade) == (1, 0)
    assert theirs not in {r.config_hash for r in done.recorded.reports}
    assert done.view.withdrawals == [False] * 3 + [True]
    assert len(claims.dropped) == 4


CLASSES = [Conditions({"CPU": name}) for name in ("slow", "fast")]


def reuse_on(conditions: Conditions, kit: Any, **more: Any) -> Reuse:
    """Of six trials, on a node of these conditions."""
    trials = [kit.trial(value) for value in range(6)]
    kind = Kind((Node("n", "host", 2),), {trial.hash: [conditions] for trial in trials})
    return Reuse({trial.hash: [kind] for trial in trials}, lambda _: None, **more)


def test_a_trial_is_claimed_on_one_kind_of_machine(kit: Any) -> None:
    slow, fast = (reuse_on(one, kit) for one in CLASSES)
    one, other = (PlannedAttempt(kit.trial(0), attempt_id=f"{name}-1") for name in "ab")
    assert slow.claim(one) == f"{kit.trial(0).hash}/{CLASSES[0].id}"
    assert slow.claim(one) == slow.claim(other)
    assert slow.claim(one) != fast.claim(other)
    # What is unknown counts for nobody else; where hashes alone count, the machine is no matter.
    blind = reuse_on(Conditions({"CPU": "slow"}, {}, {"commit": None}), kit)
    assert blind.claim(one) != blind.claim(other)
    assert reuse_on(CLASSES[0], kit, exact=False).claim(one) == kit.trial(0).hash
    # On a mixed cluster it is the kind where the attempt goes.
    kinds = [
        Kind((Node(str(at), "h", 1),), {kit.trial(0).hash: [one]}) for at, one in enumerate(CLASSES)
    ]
    mixed = Reuse({kit.trial(0).hash: kinds}, lambda _: None)
    placed = replace(one, places=(frozenset({"1"}),))
    assert mixed.claim(placed) == fast.claim(one)


def test_a_driver_on_another_kind_of_machine_waits_for_nobody(
    run: Callable[..., Any], kit: Any
) -> None:
    """Another driver holds every trial on slow machines, and never lets go."""

    def rule(claim: str) -> Standing | None:
        return Standing([slow_attempt]) if claim.endswith(CLASSES[1].id) else None

    slow_attempt = attempt()
    slow_attempt.conditions = CLASSES[0].ids
    done = run(Claims(rule), reuse=reuse_on(CLASSES[1], kit))
    assert done.result.outcomes == {"ok": 6}, "and what they measured does not count here"
    assert done.view.withdrawals == []


def test_what_a_dead_driver_had_is_taken_over(run: Callable[..., Any], kit: Any) -> None:
    theirs, times = kit.trial(3).hash, [0]

    def rule(config_hash: str) -> Standing | None:
        if config_hash != theirs:
            return Standing()
        times[0] += 1
        return None if times[0] < 4 else Standing([attempt(outcome="lost")])

    done = run(Claims(rule))
    assert done.result.outcomes == {"ok": 6}
    (mine,) = (r for r in done.recorded.reports if r.config_hash == theirs)
    assert mine.number == 2, "after the lost one"
    begun = [a for a in done.recorded.begun if a.trial.hash == theirs]
    assert [(a.attempt_id, a.number) for a in begun] == [(mine.attempt_id, 2)]


def test_numbers_are_apart_also_of_attempts_that_come_after_anothers(
    run: Callable[..., Any],
) -> None:
    done = run(Claims(lambda _: Standing([attempt(1, "lost")])), trials=1, repeats=2)
    assert done.result.outcomes == {"ok": 2}
    assert sorted(r.number for r in done.recorded.reports) == [2, 3]
    assert sorted(a.number for a in done.recorded.begun) == [2, 3]


def test_repeats_are_counted_over_drivers(run: Callable[..., Any]) -> None:
    """Three are wanted, another driver has made two meanwhile: one of ours is needed."""
    granted: dict[str, int] = {}

    def rule(config_hash: str) -> Standing:
        own = granted.get(config_hash, 0)
        granted[config_hash] = own + 1
        if own == 0:
            return Standing([attempt(1), attempt(2)])
        return Standing([attempt(1), attempt(2), attempt(3)])

    done = run(Claims(rule), trials=2, repeats=3)
    assert done.result.outcomes == {"ok": 2}
    assert done.result.adopted == 4


def test_claims_that_fail_do_not_stop_a_sweep(run: Callable[..., Any]) -> None:
    class Broken(Claims):
        def ask(self, wishes: Mapping[str, str]) -> dict[str, Standing | None]:
            raise ZeroDivisionError

    assert run(Broken()).result.outcomes == {"ok": 6}


def test_a_store_that_does_not_answer_is_not_waited_for(
    run: Callable[..., Any],
) -> None:
    answer = threading.Event()

    class Slow(Claims):
        def ask(self, wishes: Mapping[str, str]) -> dict[str, Standing | None]:
            answer.wait(10)
            return super().ask(wishes)

    claims = Slow(lambda config_hash: None, patience_s=0.05)
    try:
        done = run(claims)
    finally:
        answer.set()
    assert done.result.outcomes == {"ok": 6}, "answers that come late change nothing"
    assert claims.dropped == []


def test_a_stop_while_asking_leaves_no_claim(run: Callable[..., Any]) -> None:
    stop = threading.Event()
    entered = threading.Event()

    class Slow(Claims):
        def ask(self, wishes: Mapping[str, str]) -> dict[str, Standing | None]:
            entered.set()
            time.sleep(0.3)
            return super().ask(wishes)

    claims = Slow()
    threading.Thread(target=lambda: (entered.wait(10), stop.set())).start()
    done = run(claims, stop=stop)
    assert done.result.interrupted
    assert done.recorded.reports == []
    assert done.result.unmade == 6
    deadline = time.monotonic() + 10
    while set(claims.asked) - set(claims.dropped):
        assert time.monotonic() < deadline, "what was claimed after the stop is given up again"
        time.sleep(0.02)


def test_a_trial_that_failed_elsewhere_is_not_measured_again(run: Callable[..., Any]) -> None:
    done = run(Claims(lambda config_hash: Standing([attempt(outcome=Outcome.ERROR.value)])))
    assert done.result.adopted == 6
    assert done.recorded.reports == []
