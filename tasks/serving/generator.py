"""The load generator: a process of its own that sends requests when they are due.

::

    python -m orchestrator.tasks.serving.generator ORDERS ANSWERS TABLE METRICS

``ORDERS`` is a file of JSON lines: how to send (``serving.orders.Orders``),
then each request, or conversation, in the order it is due. Nothing is computed while the load runs
that can wait: bodies are ready before it, what the server sends is kept as it came, with the time
of each read, and is read as tokens afterwards.

In an open loop a request is due at a time that was fixed before. In a closed one each of
``concurrency`` users sends the next request when the last one is answered: it is due then. No
request is left out because others are late, and latencies count from when it was due. In either a
request may begin a conversation: each later turn is due ``think_s`` after the last piece of the
answer before it. A conversation ends with a turn that fails.

Once a second it reads what the server exports of itself, if anything (``METRICS``); that is kept as
it came, too. Standard output has a line of JSON a second: how far it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import aiohttp
from yarl import URL

from orchestrator.engines.completions import error_message
from orchestrator.errors import one_line
from orchestrator.measure.plain_json import from_json
from orchestrator.measure.series import SeriesSet
from orchestrator.tasks.serving.answers import answer_of
from orchestrator.tasks.serving.loop import run_precisely, take_precedence
from orchestrator.tasks.serving.orders import BEAT_S, Answer, Load, Orders
from orchestrator.tasks.serving.server_metrics import series_of
from orchestrator.tasks.serving.timed_reads import Reads, StaleConnection, TimedResponse

_REPORT_S = 1.0
_METRICS_S = 1.0
_RECENT = 200
_CONNECT_S = 10.0
# A request is made so long before it is due, but for connecting and sending.
_READY_NS = 1_000_000
# A user whose request fails at once does not ask thousands of times a second.
_AFTER_FAILURE_S = 0.1
# Of an error's body.
_MOST_BODY = 1 << 16
# An answer waits inside aiohttp until it is whole.
_MOST_ANSWER = 1 << 30
# So little is written to the file at a time that nobody notices.
_WRITTEN_AT_ONCE = 1 << 16
# Shorter than servers keep a silent connection open: one that is about to be closed is not used.
_KEEP_ALIVE_S = 2.0
# Connections one after another, for one request.
_MOST_STALE = 100
_HTTP_OK = 200
_NO_END = "no end of its answer came"
# The end of an answer, and an error in it, are in these; all of it is read when the load is over.
_LAST_READS = 8
_ERROR = re.compile(rb"\"error\": *[{\"]|^(?:event: *)?error", re.MULTILINE)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Conversation:
    """A request, or several one after the other.

    Of each its body, the tokens of its prompt, and those it asks for.
    """

    number: int
    due_s: float
    turns: Sequence[tuple[bytes, int, int]]


@dataclass
class _Flight:
    """One request on its way."""

    due_ns: int
    conversation: _Conversation
    turn: int
    measured: bool
    sent_ns: int = 0
    sent_again: int = 0
    ended_ns: int | None = None
    status: str | None = None
    failed: bool = False
    reads: Reads = field(default_factory=list)
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    place: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether no good answer came, as far as a look at its end shows."""
        end = b"".join(data for _, data in self.reads[-_LAST_READS:])
        return self.status is not None or b"[DONE]" not in end or _ERROR.search(end) is not None

    @property
    def is_last(self) -> bool:
        """Whether no other turn follows: there is none, or this one has failed."""
        return self.failed or self.turn + 1 == len(self.conversation.turns)


class _Generator:
    def __init__(self, orders: Orders, requests: Sequence[_Conversation]) -> None:
        self._orders = orders
        self._url = URL(orders.url)
        # Users of a closed loop begin again at the first when all are sent.
        self._requests = cycle(requests) if orders.concurrency else iter(requests)
        self._flights: list[_Flight] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._measured = 0
        self._unanswered = 0
        self._pauses: list[tuple[float, float]] = []
        self._begin_ns = 0
        self._lead_ns = 0
        self._end_ns: int | None = None
        self._last_ns = 0
        self._cpu_at = (0, 0)
        self._cpu_ratio = 0.0
        self._over = asyncio.Event()
        self._raw: IO[bytes] = tempfile.TemporaryFile(buffering=_WRITTEN_AT_ONCE)  # noqa: SIM115
        self._ttfts = array("d")
        # When, where in the file and how long.
        self._exported: list[tuple[int, int, int]] = []

    async def run(self) -> Load:
        orders = self._orders
        headers = {"Content-Type": "application/json"}
        if orders.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[orders.key_variable]}"
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=None
            ),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_MOST_ANSWER,
            response_class=TimedResponse,
        ) as self._session:
            # Requests leave no cycles, and each look for some would take milliseconds.
            gc.disable()
            take_precedence(True)
            self._begin_ns = time.monotonic_ns()
            self._lead_ns = self._begin_ns + round(orders.lead_s * 1e9)
            beating = asyncio.create_task(self._beat())
            telling = asyncio.create_task(self._tell())
            watching = asyncio.create_task(self._watch(headers))
            sending = asyncio.create_task(self._closed() if orders.concurrency else self._open())
            sending.add_done_callback(self._note_failure)
            await self._over.wait()
            take_precedence(False)
            ours = (beating, telling, sending, watching)
            for task in (*ours, *self._in_flight):
                task.cancel()
            await asyncio.wait((*ours, *self._in_flight))
        if not sending.cancelled() and (error := sending.exception()):
            raise error
        end_ns = self._end_ns or self._last_ns
        return Load(
            self._begin_ns,
            (orders.lead_s, (end_ns - self._begin_ns) / 1e9),
            tuple(self._read()),
            tuple(self._pauses),
            self._cpu_ratio,
        )

    async def _until(self, at_ns: int) -> None:
        wait_s = (at_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _open(self) -> None:
        all_sent = asyncio.get_running_loop().create_future()
        self._send_due(all_sent)
        await all_sent
        self._end(self._last_ns)

    def _send_due(self, all_sent: asyncio.Future[None], *waited: Any) -> None:
        """Begin what is due soon and come again for the next; a task would be woken later."""
        if all_sent.done():  # nobody waits for more
            return
        if waited:
            self._start(*waited)
        for request in self._requests:
            due_ns = self._begin_ns + round(request.due_s * 1e9)
            if due_ns - _READY_NS > time.monotonic_ns():
                loop, at_s = asyncio.get_running_loop(), (due_ns - _READY_NS) / 1e9
                loop.call_at(at_s, self._send_due, all_sent, due_ns, request)
                return
            self._start(due_ns, request)
        all_sent.set_result(None)

    def _go_on(self, flight: _Flight) -> None:
        """Begin the next turn of a conversation in an open loop when it is due soon."""
        if flight.is_last or self._over.is_set():
            return
        due_ns, next_turn = self._next_due_ns(flight), flight.turn + 1
        loop, at_s = asyncio.get_running_loop(), (due_ns - _READY_NS) / 1e9
        loop.call_at(at_s, self._start_unless_over, due_ns, flight.conversation, next_turn)

    def _start_unless_over(self, *turn: Any) -> None:
        if not self._over.is_set():
            self._start(*turn)

    def _next_due_ns(self, flight: _Flight) -> int:
        return flight.times_ns[-1] + round(self._orders.think_s * 1e9)

    async def _closed(self) -> None:
        users = self._orders.concurrency or 1
        step_ns = round(self._orders.ramp_s / users * 1e9)
        await asyncio.gather(*(self._user(self._begin_ns + k * step_ns) for k in range(users)))

    async def _user(self, due_ns: int) -> None:
        for request in self._requests:
            for turn in range(len(request.turns)):
                await self._until(due_ns)
                flight, task = self._start(due_ns, request, turn)
                await asyncio.wait([task])
                if flight.is_last:
                    break
                due_ns = self._next_due_ns(flight)
            due_ns = time.monotonic_ns()
            if flight.failed:
                due_ns += round(_AFTER_FAILURE_S * 1e9)

    def _start(
        self, due_ns: int, request: _Conversation, turn: int = 0
    ) -> tuple[_Flight, asyncio.Task[None]]:
        self._note_window(due_ns)
        measured = self._end_ns is None and due_ns >= self._lead_ns
        flight = _Flight(due_ns, request, turn, measured)
        self._measured += flight.measured
        self._unanswered += flight.measured
        self._flights.append(flight)
        task = asyncio.create_task(self._send(flight, request.turns[turn][0]))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        if not self._orders.concurrency and len(request.turns) > 1:
            task.add_done_callback(lambda _: self._go_on(flight))
        return flight, task

    def _note_window(self, due_ns: int) -> None:
        """The window ends with the first request that is due after what is measured."""
        orders = self._orders
        self._last_ns = max(self._last_ns, due_ns)
        if self._end_ns is not None or due_ns < self._lead_ns:
            return
        if not self._measured:
            self._cpu_at = (time.process_time_ns(), time.monotonic_ns())
        last_ns = self._lead_ns + round((orders.duration_s or 0) * 1e9)
        if orders.duration_s is not None and due_ns >= last_ns:
            self._end(last_ns)
        elif orders.requests is not None and self._measured >= orders.requests:
            self._end(due_ns)

    def _end(self, at_ns: int) -> None:
        if self._end_ns is not None:
            return
        self._end_ns = at_ns
        cpu_ns, at_then_ns = self._cpu_at
        passed_ns = max(1, time.monotonic_ns() - at_then_ns)
        self._cpu_ratio = (time.process_time_ns() - cpu_ns) / passed_ns
        asyncio.get_running_loop().call_later(self._orders.drain_s, self._over.set)
        self._note_over()

    def _note_failure(self, sending: asyncio.Task[None]) -> None:
        if not sending.cancelled() and sending.exception():
            self._over.set()

    def _note_over(self) -> None:
        if self._end_ns is not None and not self._unanswered:
            self._over.set()

    async def _send(self, flight: _Flight, body: bytes) -> None:
        try:
            response = await self._asked(flight, body)
            async with response:
                if response.status == _HTTP_OK:
                    flight.reads = response.reads
                    await response.wait()
                else:
                    text = error_message(await response.content.read(_MOST_BODY))
                    flight.status = f"HTTP {response.status}: {text}"
        except asyncio.CancelledError:
            flight.status = _NO_END
            raise
        # aiohttp's own errors, and what its parser raises.
        except Exception as error:
            flight.status = f"the connection failed: {one_line(error) or type(error).__name__}"
        finally:
            if flight.status != _NO_END:
                flight.ended_ns = time.monotonic_ns()
            flight.failed = flight.has_failed
            self._keep(flight)
            self._unanswered -= flight.measured
            self._note_over()

    async def _asked(self, flight: _Flight, body: bytes) -> TimedResponse:
        async def when_due(
            request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            await self._until(flight.due_ns)
            flight.sent_ns = flight.sent_ns or time.monotonic_ns()
            return await send(request)

        while True:
            try:
                response = await self._session.post(
                    self._url, data=body, allow_redirects=False, middlewares=(when_due,)
                )
            except (StaleConnection, aiohttp.ClientConnectionResetError):
                # A server may close a connection that nobody uses, at any time and without a word.
                if flight.sent_again == _MOST_STALE:
                    raise
                flight.sent_again += 1
            else:
                assert isinstance(response, TimedResponse)
                return response

    def _keep(self, flight: _Flight) -> None:
        flight.times_ns.extend(at_ns for at_ns, _ in flight.reads)
        flight.lengths.extend(len(data) for _, data in flight.reads)
        flight.place = self._raw.tell()
        self._raw.writelines(data for _, data in flight.reads)
        first_ns = next((at_ns for at_ns, data in flight.reads if b"data:" in data), None)
        if first_ns is not None:
            self._ttfts.append((first_ns - flight.due_ns) / 1e9)
        flight.reads = []

    async def _beat(self) -> None:
        beat_ns = round(BEAT_S * 1e9)
        next_ns = self._begin_ns + beat_ns
        while True:
            await self._until(next_ns)
            late_ns = time.monotonic_ns() - next_ns
            if late_ns >= beat_ns:
                self._pauses.append(((next_ns - self._begin_ns) / 1e9, late_ns / 1e9))
            # A beat that the loop slept through is not made up for.
            next_ns += beat_ns * max(1, -(-late_ns // beat_ns))

    async def _watch(self, headers: Mapping[str, str]) -> None:
        """Keep what the server exports of itself, until it says that there is nothing."""
        if self._orders.metrics_url is None:
            return
        timeout = aiohttp.ClientTimeout(total=_CONNECT_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            while True:
                try:
                    async with session.get(
                        self._orders.metrics_url, allow_redirects=False
                    ) as response:
                        if response.status != _HTTP_OK:
                            return
                        at_ns = time.monotonic_ns()
                        text = await response.read()
                except (aiohttp.ClientError, asyncio.TimeoutError):
                    pass  # its death is for the requests to say
                else:
                    self._exported.append((at_ns, self._raw.tell(), len(text)))
                    self._raw.write(text)
                await asyncio.sleep(_METRICS_S)

    def exported(self) -> SeriesSet:
        """What the server said of itself meanwhile."""
        return series_of(map(self._kept, self._exported), self._begin_ns)

    def _kept(self, text: tuple[int, int, int]) -> tuple[int, bytes]:
        at_ns, place, length = text
        self._raw.seek(place)
        return at_ns, self._raw.read(length)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            recent = sorted(self._ttfts[-_RECENT:])
            told = {
                "at_s": (time.monotonic_ns() - self._begin_ns) / 1e9,
                "due": len(self._flights),
                "done": len(self._flights) - len(self._in_flight),
                "in_flight": len(self._in_flight),
                "ttft_p95_s": recent[int(0.95 * len(recent))] if recent else None,
            }
            print(json.dumps(told), flush=True)

    def _read(self) -> Iterator[Answer]:
        """What was answered, out of what was kept."""
        # Of conversations a later turn may be due before one that began earlier.
        for flight in sorted(self._flights, key=lambda flight: flight.due_ns):
            if not flight.sent_ns:
                continue  # all was over when it was due
            self._raw.seek(flight.place)
            reads = [
                (at_ns, self._raw.read(length))
                for at_ns, length in zip(flight.times_ns, flight.lengths, strict=True)
            ]
            _, prompt_tokens, asked_tokens = flight.conversation.turns[flight.turn]
            answer = answer_of(
                reads,
                begin_ns=self._begin_ns,
                due_ns=flight.due_ns,
                sent_ns=flight.sent_ns,
                ended_ns=flight.ended_ns,
                status=flight.status,
                measured=flight.measured,
                prompt_tokens=prompt_tokens,
                asked_tokens=asked_tokens,
            )
            yield replace(
                answer,
                conversation=flight.conversation.number,
                turn=flight.turn + 1,
                sent_again=flight.sent_again,
            )


def _write_table(load: Load, file: str) -> None:
    """Every request as a row of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    rows = [vars(answer) for answer in load.answers]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _main(orders_file: str, answers_file: str, table_file: str, metrics_file: str) -> None:
    # Killed with whoever started it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with Path(orders_file).open("rb") as lines:
        orders: Orders = from_json(Orders, json.loads(next(lines)))
        requests = []
        for number, line in enumerate(lines):
            request = json.loads(line)
            turns = [
                (json.dumps(body).encode(), len(body["prompt"]), int(body["max_tokens"]))
                for body in request["bodies"]
            ]
            requests.append(_Conversation(number, request["due_s"], turns))
    os.sched_setaffinity(0, orders.cores)
    # A connection each for as many requests as a server leaves unanswered.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    generator = _Generator(orders, requests)
    load = run_precisely(generator.run())
    _write_table(load, table_file)
    if len(series := generator.exported()):
        Path(metrics_file).write_bytes(series.to_parquet())
    Path(answers_file).write_text(json.dumps(vars(load), default=vars))


if __name__ == "__main__":
    _main(*sys.argv[1:])
