"""A server that answers by schedule: OpenAI's completions, without a model.

``python -m testing.null_server FIRST_S BETWEEN_S SLOTS [CORE]`` prints its port. ``GET /v1/seen``
gives its own record, ``GET /metrics`` the number of requests in it, as Prometheus reads it. A
request may say in ``does`` what goes wrong with it::

    429, 500       its status                    stale    its connection is closed, if used before
    die            the process ends              rubbish  no HTTP comes
    stand still    nothing is answered for 0.3 s
    late           its connection is closed after 1.2 s, if used before
    after two tokens: hang (silence), half (of a chunk), close (of the connection), garbage (no
    JSON), error
    open           its answer is done, and has no end

It speaks just enough HTTP, and is quick: what it adds itself is small beside any client.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.tasks.serving.loop import run_precisely, take_precedence

#: For so long everything stands still.
STILL_S = 0.3
#: So much later a server is not one that had closed a connection before.
LATE_S = 1.2
_FAULTY_AFTER = 2
_KIND = {"id": "0", "object": "text_completion", "created": 0, "model": "schedule"}
_TOKEN = {**_KIND, "choices": [{"index": 0, "text": " a", "finish_reason": None}]}
_MODELS = {"data": [{"id": "schedule", "max_model_len": 4096}]}
_METRICS = """# TYPE seen counter
seen_total{model="schedule"} %d
# TYPE unanswered gauge
unanswered{model="schedule"} %d
"""
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)

_NO_MORE = b"0\r\n\r\n"


def _chunk(said: str) -> bytes:
    return b"%x\r\n%s\r\n" % (len(said), said.encode())


_TOKEN_CHUNK = _chunk(f"data: {json.dumps(_TOKEN)}\n\n")
_SAID = {
    "half": _TOKEN_CHUNK[:20],
    "garbage": _chunk("data: {oh\n\n"),
    "error": _chunk('data: {"error": {"message": "oh"}}\n\n'),
}


class Seen(NamedTuple):
    """One request as the server saw it, nanoseconds on CLOCK_MONOTONIC.

    Attributes
    ----------
    user : str or None
        As the request says.
    came_ns : int
        When it was read from the socket.
    first_ns : int or None
        Before its first token was written.
    unanswered : int
        Others, when it came.
    """

    user: str | None
    came_ns: int
    first_ns: int | None
    unanswered: int


class _Server:
    """Seconds to the first token and between tokens, requests taken at once; and what it saw.

    ``fault``: what goes wrong with every stream after so many, that do not say it themselves.
    """

    def __init__(self, first_s: float, between_s: float, slots: int) -> None:
        self.first_s, self.between_s, self.slots = first_s, between_s, slots
        self.seen: list[list[Any]] = []
        self.fault: tuple[str | None, int] = (None, 0)
        self.unanswered = 0
        self.taken = 0
        self.queue: deque[_Connection] = deque()

    def release(self) -> None:
        """Somebody's slot is free: who has waited longest takes it."""
        self.taken -= 1
        while self.queue and self.taken < self.slots:
            self.queue.popleft().take(asyncio.get_running_loop().time())


class _Connection(asyncio.Protocol):
    """One client's connection: a request at a time."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._data = b""
        self._used = False
        self._timer: asyncio.TimerHandle | None = None
        self._in_slot = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._server.unanswered -= 1
        if self in self._server.queue:
            self._server.queue.remove(self)
            self._server.unanswered -= 1
        if self._in_slot:
            self._in_slot = False
            self._server.release()

    def data_received(self, data: bytes) -> None:
        came_ns = time.monotonic_ns()
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and len(body) >= (int(length[1]) if length else 0):
            self._data = b""
            self._answer(head, body, came_ns)

    def _answer(self, head: bytes, body: bytes, came_ns: int) -> None:
        server = self._server
        if head.startswith(b"GET"):
            path = head.split(b" ", 2)[1]
            if path == b"/metrics":
                self._whole(200, _METRICS % (len(server.seen), server.unanswered))
                return
            self._whole(200, server.seen if path == b"/v1/seen" else _MODELS)
            return
        if head.startswith(b"POST /v1/fault "):
            server.fault = tuple(json.loads(body))
            self._whole(200, {})
            return
        if not head.startswith(b"POST /v1/completions "):
            self._whole(404, {})
            return
        asked = json.loads(body)
        fault, after = server.fault
        self._tokens, does = asked["max_tokens"], asked.get("does")
        if does is None and len(server.seen) >= after:
            does = fault
        used, self._used = self._used, True
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": self._tokens}
        if not asked.get("stream"):
            self._whole(200, {**_KIND, "choices": [{"text": " a"}], "usage": usage})
            return
        self._row = [asked.get("user"), came_ns, None, server.unanswered]
        server.seen.append(self._row)
        if does == "die":
            os._exit(1)
        if does == "stale" and used:
            self._transport.abort()
            return
        if does == "late" and used:
            asyncio.get_running_loop().call_later(LATE_S, self._transport.abort)
            return
        if does in ("429", "500"):
            self._whole(int(does), {"error": {"message": "not now"}})
            return
        if does == "stand still":
            time.sleep(STILL_S)
        if does == "rubbish":
            self._transport.write(b"oh\r\n\r\n")
        server.unanswered += 1
        self._does, self._sent = does, 0
        last = json.dumps({**_KIND, "choices": [], "usage": usage})
        self._last = _chunk(f"data: {last}\n\ndata: [DONE]\n\n") + _NO_MORE
        self._transport.write(_STREAM)
        if server.taken < server.slots:
            self.take(came_ns / 1e9)
        else:
            server.queue.append(self)

    def take(self, at_s: float) -> None:
        """Its first token is due so long after ``at_s``, the loop's time."""
        self._server.taken += 1
        self._in_slot = True
        self._due_s = at_s + self._server.first_s
        self._timer = asyncio.get_running_loop().call_at(self._due_s, self._token)

    def _token(self) -> None:
        if not self._sent:
            self._row[2] = time.monotonic_ns()
        if self._does is not None and self._sent == _FAULTY_AFTER and not self._goes_on():
            return
        self._transport.write(_TOKEN_CHUNK)
        self._sent += 1
        if self._sent < self._tokens:
            self._due_s += self._server.between_s
            self._timer = asyncio.get_running_loop().call_at(self._due_s, self._token)
            return
        self._timer = None
        self._in_slot = False
        self._server.unanswered -= 1
        self._server.release()
        last = self._last
        self._transport.write(last.removesuffix(_NO_MORE) if self._does == "open" else last)

    def _goes_on(self) -> bool:
        self._transport.write(_SAID.get(self._does or "", b""))
        if self._does in ("half", "close"):
            self._transport.close()
        return self._does not in ("hang", "half", "close")

    def _whole(self, status: int, said: Any) -> None:
        body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(body)) + body)


@dataclass(frozen=True)
class Running:
    """One that runs: its process, and its API's base address.

    From :meth:`fails` on something goes wrong with every stream, after so many in all.
    """

    process: subprocess.Popen[str]
    url: str

    def fails(self, does: str, after: int) -> None:
        """Let it happen, by the names of this module."""
        asked = urllib.request.Request(f"{self.url}/fault", json.dumps([does, after]).encode())
        urllib.request.urlopen(asked).close()

    def seen(self) -> list[Seen]:
        """Its own record, in the order in which requests came."""
        with urllib.request.urlopen(f"{self.url}/seen") as answer:
            return [Seen(*row) for row in json.load(answer)]


@contextlib.contextmanager
def null_server(
    first_s: float = 0.0, between_s: float = 0.0, slots: int = 100_000, core: int | None = None
) -> Iterator[Running]:
    """One in a process of its own, on ``core`` where one is named."""
    words = map(str, (first_s, between_s, slots, *(() if core is None else (core,))))
    with subprocess.Popen(
        [sys.executable, "-m", "testing.null_server", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Running(process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        finally:
            process.kill()


async def _serve(server: _Server) -> None:
    listening = await asyncio.get_running_loop().create_server(
        lambda: _Connection(server), "127.0.0.1", 0, backlog=4096
    )
    gc.disable()
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


def _main(first_s: str, between_s: str, slots: str, *core: str) -> None:
    if core:
        os.sched_setaffinity(0, map(int, core))
        take_precedence(True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run_precisely(_serve(_Server(float(first_s), float(between_s), int(slots))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
