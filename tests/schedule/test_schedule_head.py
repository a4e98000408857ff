"""Whether a joined cluster still answers; calls that may never return."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from orchestrator.errors import ClusterError
from orchestrator.schedule.hand import Hand
from orchestrator.schedule.head import METHOD, RAYS_VARIABLE, Head, Watch, patience_s


class FakeHead:
    """A gRPC server that says who it is."""

    def __init__(self) -> None:
        self.cluster = b"first"
        self.refuses = False
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
        if self.refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
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


@pytest.fixture
def watch(head: FakeHead) -> Iterator[Callable[..., Watch]]:
    made: list[Watch] = []

    def start(raylet: tuple[str, int] | None = None, silence_s: float = 2.0) -> Watch:
        where = Head(f"127.0.0.1:{head.port}")
        made.append(Watch(where, raylet, silence_s=silence_s, every_s=0.05))
        return made[-1]

    yield start
    for one in made:
        one.close()


def reason(watch: Watch) -> str:
    """Why there is no cluster any more, once the watch has seen it."""
    deadline = time.monotonic() + 30
    while not watch.gone:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ClusterError) as caught:
        watch.check()
    return str(caught.value)


def test_a_head_that_answers_is_there(head: FakeHead, watch: Callable[..., Watch]) -> None:
    looking = watch(silence_s=0.5)
    head.wait_until_asked(3)
    head.refuses = True  # an answer, too
    head.wait_until_asked(15)
    looking.check()


def test_a_silent_head_is_gone_after_a_while(head: FakeHead, watch: Callable[..., Watch]) -> None:
    looking = watch()
    head.wait_until_asked(2)
    head.stop()
    said = reason(looking)
    assert said.startswith(f"cluster.address=127.0.0.1:{head.port}: the head has not answered")
    assert "the same command goes on" in said


def test_another_cluster_at_the_same_address(head: FakeHead, watch: Callable[..., Watch]) -> None:
    looking = watch()
    head.wait_until_asked(3)
    looking.check()
    head.cluster = b"second"
    assert "the head is that of another cluster now" in reason(looking)


def test_a_dead_raylet_of_our_own(head: FakeHead, watch: Callable[..., Watch]) -> None:
    with socket.socket() as raylet:
        raylet.bind(("127.0.0.1", 0))
        raylet.listen()
        looking = watch(raylet.getsockname(), 60.0)
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
    hand, never, given_up = Hand(), threading.Event(), threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise ClusterError("gone")

    assert hand.call(lambda: 1, check) == 1
    threading.Timer(0.3, given_up.set).start()
    with pytest.raises(ClusterError, match="gone"):
        hand.call(never.wait, check)
    given_up.clear()
    assert hand.call(lambda: 2, check) == 2, "another thread took over"
    with pytest.raises(ZeroDivisionError):
        hand.call(lambda: 1 // 0, check)
    never.set()
    hand.close()
