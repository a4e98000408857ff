"""Whether a joined cluster still answers; calls that may never return."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from ray import exceptions

from orchestrator.errors import ClusterError
from orchestrator.schedule.cluster.ray.call_thread import CallThread
from orchestrator.schedule.cluster.ray.cluster import RayCluster
from orchestrator.schedule.cluster.ray.connection import RayConnection
from orchestrator.schedule.cluster.ray.head import (
    METHOD,
    RAYS_VARIABLE,
    Head,
    HeadWatch,
    patience_s,
)


class FakeHead:
    """A gRPC server that says who it is."""

    def __init__(self) -> None:
        self.cluster = b"first"
        self.refuses: grpc.StatusCode | None = None
        self.asked = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        service, method = METHOD.strip("/").split("/")
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self._server.start()

    def _answer(self, request: bytes, context: Any) -> bytes:
        self.asked += 1
        if self.refuses is not None:
            context.abort(self.refuses, "no")
        return self.cluster

    def wait_until_asked(self, times: int) -> None:
        wanted = self.asked + times
        deadline = time.monotonic() + 30
        while self.asked < wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def head() -> Iterator[FakeHead]:
    made = FakeHead()
    yield made
    made.stop()


class Clock:
    """The watch's clock: goes on by ``step_s`` with every look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step_s = 0.0

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("orchestrator.schedule.cluster.ray.head.time", made)
    return made


@pytest.fixture
def watch(head: FakeHead, clock: Clock) -> Iterator[Callable[..., HeadWatch]]:
    made: list[HeadWatch] = []

    def start(raylet: tuple[str, int] | None = None) -> HeadWatch:
        where = Head(f"127.0.0.1:{head.port}")
        made.append(HeadWatch(where, raylet, silence_s=30.0, every_s=0.02))
        return made[-1]

    yield start
    for one in made:
        one.close()


def reason(watch: HeadWatch) -> str:
    """Why there is no cluster any more, once the watch has seen it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            watch.check()
        except ClusterError as error:
            return str(error)
        time.sleep(0.01)
    raise AssertionError("nothing was seen")


@pytest.mark.parametrize("refuses", [None, grpc.StatusCode.UNAUTHENTICATED])
def test_a_head_that_answers_is_there(
    head: FakeHead, watch: Callable[..., HeadWatch], clock: Clock, refuses: grpc.StatusCode | None
) -> None:
    clock.step_s = 4.0
    head.refuses = refuses  # a no is an answer, too
    looking = watch()
    head.wait_until_asked(15)
    looking.check()


def test_a_silent_head_is_gone_after_a_while(
    head: FakeHead, watch: Callable[..., HeadWatch], clock: Clock
) -> None:
    looking = watch()
    head.wait_until_asked(2)
    head.refuses = grpc.StatusCode.UNAVAILABLE
    head.wait_until_asked(5)
    looking.check()
    clock.step_s = 1.0
    said = reason(looking)
    assert said.startswith(f"cluster.address=127.0.0.1:{head.port}: the head has not answered")
    assert "the same command goes on" in said


def test_a_head_that_nobody_hears_is_gone(
    head: FakeHead, watch: Callable[..., HeadWatch], clock: Clock
) -> None:
    looking = watch()
    head.wait_until_asked(2)
    head.stop()
    clock.step_s = 1.0
    assert "the head has not answered for 30 s" in reason(looking)


def test_a_pause_of_our_own_is_no_silence_of_the_heads(
    head: FakeHead, watch: Callable[..., HeadWatch], clock: Clock
) -> None:
    """A driver that was stopped for an hour finds its connection broken, and the head there."""
    looking = watch()
    head.wait_until_asked(2)
    clock.now += 3600
    head.refuses = grpc.StatusCode.UNAVAILABLE
    head.wait_until_asked(5)
    looking.check()


def test_another_cluster_at_the_same_address(
    head: FakeHead, watch: Callable[..., HeadWatch]
) -> None:
    looking = watch()
    head.wait_until_asked(3)
    looking.check()
    head.cluster = b"second"
    assert "the head is that of another cluster now" in reason(looking)


def test_a_dead_raylet_of_our_own(head: FakeHead, watch: Callable[..., HeadWatch]) -> None:
    with socket.socket() as raylet:
        raylet.bind(("127.0.0.1", 0))
        raylet.listen()
        looking = watch(raylet.getsockname())
        head.wait_until_asked(3)
        looking.check()
    assert "the raylet of this host died" in reason(looking)


def test_half_of_rays_patience_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAYS_VARIABLE, raising=False)
    assert patience_s() == 30.0
    monkeypatch.setenv(RAYS_VARIABLE, "600")
    assert patience_s() == 300.0
    monkeypatch.setenv(RAYS_VARIABLE, "long")
    assert patience_s() == 30.0


def test_a_call_that_hangs_is_left_behind() -> None:
    calls, never, given_up = CallThread(), threading.Event(), threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise ClusterError("gone")

    assert calls.call(lambda: 1, check) == 1
    threading.Timer(0.3, given_up.set).start()
    with pytest.raises(ClusterError, match="gone"):
        calls.call(never.wait, check)
    given_up.clear()
    assert calls.call(lambda: 2, check) == 2, "another thread took over"
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda: 1 // 0, check)
    never.set()
    calls.close()


def test_a_head_that_is_slow_to_name_its_nodes_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.schedule.cluster.ray.cluster.HEAD_TIMEOUT_S", 0.01)
    answers: list[futures.Future[Any]] = []

    def ask(question: Callable[[], Any]) -> futures.Future[Any]:
        answers.append(futures.Future())
        return answers[-1]

    connected = SimpleNamespace(check=lambda: None, questions=SimpleNamespace(begin=ask))
    cluster = RayCluster(cast(RayConnection, connected))

    def seen() -> list[str]:
        return [node.node_id for node in cluster.nodes()]

    def node(node_id: str) -> dict[str, Any]:
        resources = {"CPU": 2.0, "memory": 1.0}
        return {
            "Alive": True,
            "NodeID": node_id,
            "NodeManagerHostname": "host",
            "Resources": resources,
        }

    threading.Timer(0.1, lambda: answers[0].set_result([node("a")])).start()
    assert seen() == ["a"], "the first time it is waited for"
    assert seen() == ["a"]
    assert seen() == ["a"]
    assert len(answers) == 2, "one question at a time"
    answers[1].set_result([node("b")])
    assert seen() == ["b"]
    assert seen() == ["b"]
    answers[2].set_exception(exceptions.RaySystemError("the head is away"))
    assert seen() == ["b"]
