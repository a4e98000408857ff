"""A server that answers by schedule: OpenAI's completions, without a model.

``python -m testing.null_server FIRST_S BETWEEN_S SLOTS [CORE]`` prints its port. ``GET
/v1/seen`` gives its own record. A request may say in ``does`` what goes wrong with it::

    429, 500       its status                    stale   its connection is closed, if used before
    die            the process ends              rubbish no HTTP comes
    stand still    nothing is answered for 0.3 s
    after two tokens: hang (silence), half (of a chunk), close (of the connection), garbage (no
    JSON), error
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakSet

from aiohttp import web

from orchestrator.tasks.serving.loop import run_precisely
from orchestrator.tasks.serving.timed_reads import TimedReader

_CHUNK = b'data: {"choices": [{"text": "a"}]}\n\n'
#: For so long everything stands still.
STILL_S = 0.3
_FAULTY_AFTER = 2
_LOOKS_S = 0.01
_SAID = {
    "half": _CHUNK[:20],
    "garbage": b"data: {oh\n\n",
    "error": b'data: {"error": {"message": "oh"}}\n\n',
}
_MODELS = {"data": [{"id": "null", "max_model_len": 4096}]}


class Seen(NamedTuple):
    """One request as the server saw it, nanoseconds on CLOCK_MONOTONIC.

    Attributes
    ----------
    user : str or None
        As the request says.
    first_ns : int or None
        Before its first token was written.
    unanswered : int
        Others, when it came.
    """

    user: str | None
    came_ns: int
    first_ns: int | None
    unanswered: int


class NullServer:
    """Parameters: seconds to the first token and between tokens, and requests it takes at once."""

    def __init__(self, first_s: float, between_s: float, slots: int) -> None:
        self._first_ns = round(first_s * 1e9)
        self._between_ns = round(between_s * 1e9)
        self._slots = asyncio.Semaphore(slots)
        self._seen: list[list[Any]] = []
        self._unanswered = 0
        self._used: WeakSet[TimedReader] = WeakSet()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Whatever is asked for: the models, the record, or a completion."""
        if request.method == "GET":
            return web.json_response(self._seen if request.path == "/v1/seen" else _MODELS)
        if request.path != "/v1/completions":
            return web.json_response({}, status=404)
        assert request.transport is not None
        reader = request.transport.get_protocol()
        assert isinstance(reader, TimedReader)
        came_ns, _ = reader.reads[0]
        reader.reads.clear()
        used = reader in self._used
        self._used.add(reader)
        asked = await request.json()
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        if not asked.get("stream"):
            return web.json_response({"choices": [{"text": "a"}], "usage": usage})
        row = [asked.get("user"), came_ns, None, self._unanswered]
        self._seen.append(row)
        does = asked.get("does")
        if does == "die":
            os._exit(1)
        if does in ("429", "500"):
            return web.json_response({"error": {"message": "not now"}}, status=int(does))
        if does == "stand still":
            time.sleep(STILL_S)
        if does == "stale" and used:
            request.transport.abort()
        if does == "rubbish":
            request.transport.write(b"oh\r\n\r\n")
        self._unanswered += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            queued = self._slots.locked()
            async with self._slots:
                begin_ns = time.monotonic_ns() if queued else came_ns
                await self._stream(request, response, begin_ns, row, asked)
            last = json.dumps({"choices": [], "usage": usage}).encode()
            await response.write(b"data: %s\n\ndata: [DONE]\n\n" % last)
        except ConnectionError:  # whoever waited for the answer has gone, or is to see an end
            if request.transport:
                request.transport.close()
        self._unanswered -= 1
        return response

    async def _stream(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        begin_ns: int,
        row: list[Any],
        asked: dict[str, Any],
    ) -> None:
        does = asked.get("does")
        for number in range(asked["max_tokens"]):
            due_ns = begin_ns + self._first_ns + number * self._between_ns
            wait_s = (due_ns - time.monotonic_ns()) / 1e9
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if not number:
                row[2] = time.monotonic_ns()
            if does is not None and number == _FAULTY_AFTER:
                await response.write(_SAID.get(does, b""))
                if does == "hang":
                    while request.transport:
                        await asyncio.sleep(_LOOKS_S)
                if does in ("half", "close"):
                    raise ConnectionResetError
            await response.write(_CHUNK)

    async def run(self) -> None:
        """Serve until the process ends."""
        runner = web.ServerRunner(_Server(self.answer, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


class _Server(web.Server):
    def __call__(self) -> Any:
        return TimedReader(super().__call__())


@dataclass(frozen=True)
class Running:
    """One that runs: its process, and its API's base address."""

    process: subprocess.Popen[str]
    url: str

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


def _main(first_s: str, between_s: str, slots: str, *core: str) -> None:
    if core:
        os.sched_setaffinity(0, map(int, core))
    run_precisely(NullServer(float(first_s), float(between_s), int(slots)).run())


if __name__ == "__main__":
    _main(*sys.argv[1:])
