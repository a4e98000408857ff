"""The pacer: stops at once, runs its edges on its own thread, survives what hangs or fails."""

from __future__ import annotations

import threading

from orchestrator.telemetry.pacer import Pacer


def test_edges_and_rounds_run_on_one_thread_of_their_own() -> None:
    calls: list[tuple[str, int]] = []
    enough = threading.Event()

    def tick() -> None:
        calls.append(("tick", threading.get_ident()))
        if len(calls) > 4:
            enough.set()

    def edge() -> None:
        calls.append(("edge", threading.get_ident()))

    pacer = Pacer("p", tick, lambda: 0.001, at_edges=edge)
    pacer.start()
    assert enough.wait(20)
    assert pacer.stop()
    kinds = [kind for kind, _ in calls]
    assert kinds[0] == kinds[-1] == "edge"
    assert set(kinds[1:-1]) == {"tick"}
    assert {thread for _, thread in calls} != {threading.get_ident()}
    assert len({thread for _, thread in calls}) == 1


def test_stopping_does_not_wait_for_a_long_period() -> None:
    pacer = Pacer("p", lambda: None, lambda: 3600.0)
    pacer.start()
    assert pacer.stop(timeout_s=20)


def test_round_that_hangs_is_left_alone() -> None:
    release = threading.Event()
    began = threading.Event()

    def hang() -> None:
        began.set()
        release.wait(60)

    pacer = Pacer("p", hang, lambda: 0.001)
    pacer.start()
    assert began.wait(20)
    assert not pacer.stop(timeout_s=0.05)
    release.set()
    assert pacer.stop(timeout_s=20)


def test_round_that_fails_ends_the_pacing_and_is_told() -> None:
    began = threading.Event()

    def fail() -> None:
        began.set()
        raise ValueError("no such counter")

    pacer = Pacer("p", fail, lambda: 0.001)
    pacer.start()
    assert began.wait(20)
    assert pacer.stop(timeout_s=20)
    assert isinstance(pacer.failure, ValueError)


def test_stopping_one_that_never_started() -> None:
    assert Pacer("p", lambda: None, lambda: 1.0).stop()
