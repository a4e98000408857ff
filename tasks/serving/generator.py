"""The load generator: a process of its own that sends requests when they are due.

::

    python -m orchestrator.tasks.serving.generator ORDERS ANSWERS TABLE

``ORDERS`` is a file of JSON lines: how to send (``serving.orders.Orders``),
then each request in the order it is due. Nothing is computed while the load runs that can wait:
bodies are ready before it, what the server sends is kept as it came, with the time of each read,
and is read as tokens afterwards.

In an open loop a request is due at a time that was fixed before. In a closed one each of
``concurrency`` users sends the next request when the last one is answered: it is due then. No
request is left out because others are late, and latencies count from when it was due.

Standard output has a line of JSON a second: how far it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import IO

import aiohttp

from orchestrator.engines.completions import (
    DONE,
    error_message,
    read_completion,
    stream_lines,
)
from orchestrator.errors import one_line
from orchestrator.measure.plain_json import from_json
from orchestrator.tasks.serving.loop import run_precisely
from orchestrator.tasks.serving.orders import BEAT_S, OK, Answer, Load, Orders

_REPORT_S = 1.0
_RECENT = 200
_CONNECT_S = 10.0
# Of an error's body.
_MOST_BODY = 1 << 16
# Shorter than servers keep a silent connection open: one that is about to be closed is not used.
_KEEP_ALIVE_S = 2.0
_HTTP_OK = 200
_PR_SET_PDEATHSIG = 1


@dataclass
class _Flight:
    """One request on its way."""

    due_ns: int
    asked_tokens: int
    sent_ns: int = 0
    status: str | None = None
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    reads: list[bytes] = field(default_factory=list)
    place: tuple[int, int] = (0, 0)
    measured: bool = False


class _Generator:
    def __init__(self, orders: Orders, requests: Sequence[tuple[float, bytes, int]]) -> None:
        self._orders = orders
        # Users of a closed loop begin again at the first when all are sent.
        self._requests = cycle(requests) if orders.concurrency else iter(requests)
        self._flights: list[_Flight] = []
        self._in_flight: set[asyncio.Task[None]] = set()
        self._awaited = 0
        self._beats = array("d")
        self._begin_ns = 0
        self._end_ns: int | None = None
        self._last_ns = 0
        self._answered = asyncio.Event()
        self._raw: IO[bytes] = tempfile.TemporaryFile(buffering=1 << 20)  # noqa: SIM115
        self._ttfts = array("d")

    async def run(self) -> Load:
        orders = self._orders
        headers = {"Content-Type": "application/json"}
        if orders.key_variable is not None:
            headers["Authorization"] = f"Bearer {os.environ[orders.key_variable]}"
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        ) as self._session:
            # What is here already is never looked at again by the collector.
            gc.collect()
            gc.freeze()
            gc.set_threshold(10_000, 50, 1_000_000)
            cpu_s = time.process_time()
            self._begin_ns = time.monotonic_ns()
            beating = asyncio.create_task(self._beat())
            telling = asyncio.create_task(self._tell())
            sending = asyncio.create_task(self._closed() if orders.concurrency else self._open())
            waiting = asyncio.create_task(self._answered.wait())
            await asyncio.wait([waiting, sending], return_when=asyncio.FIRST_EXCEPTION)
            cpu_s = time.process_time() - cpu_s
            wall_ns = time.monotonic_ns() - self._begin_ns
            ours = (beating, telling, sending, waiting)
            for task in ours:
                task.cancel()
            await asyncio.wait(ours)
            await self._cancel_rest()
        if sending.done() and not sending.cancelled() and (error := sending.exception()):
            raise error
        return Load(
            self._begin_ns,
            (orders.lead_s, ((self._end_ns or self._last_ns) - self._begin_ns) / 1e9),
            tuple(self._read()),
            tuple(self._beats),
            cpu_s,
            wall_ns / 1e9,
        )

    async def _until(self, at_ns: int) -> None:
        wait_s = (at_ns - time.monotonic_ns()) / 1e9
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _open(self) -> None:
        for due_s, body, tokens in self._requests:
            due_ns = self._begin_ns + round(due_s * 1e9)
            await self._until(due_ns)
            self._start(due_ns, body, tokens)
        self._end(time.monotonic_ns())

    async def _closed(self) -> None:
        users = self._orders.concurrency or 1
        step_ns = round(self._orders.ramp_s / users * 1e9)
        await asyncio.gather(*(self._user(self._begin_ns + k * step_ns) for k in range(users)))
        self._end(time.monotonic_ns())

    async def _user(self, due_ns: int) -> None:
        await self._until(due_ns)
        for _, body, tokens in self._requests:
            task = self._start(due_ns, body, tokens)
            await asyncio.wait([task])
            due_ns = time.monotonic_ns()

    def _start(self, due_ns: int, body: bytes, tokens: int) -> asyncio.Task[None]:
        self._note_window(due_ns)
        flight = _Flight(due_ns, tokens)
        lead_ns = self._begin_ns + round(self._orders.lead_s * 1e9)
        if self._end_ns is None and due_ns >= lead_ns:
            flight.measured = True
            self._awaited += 1
        self._flights.append(flight)
        task = asyncio.create_task(self._send(flight, body))
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        return task

    def _note_window(self, due_ns: int) -> None:
        """The window ends with the first request that is due after what is measured."""
        orders = self._orders
        self._last_ns = due_ns
        if self._end_ns is not None:
            return
        begin_ns = self._begin_ns + round(orders.lead_s * 1e9)
        measured = sum(flight.measured for flight in self._flights[-(orders.requests or 0) :])
        if orders.duration_s is not None and due_ns >= begin_ns + round(orders.duration_s * 1e9):
            self._end(begin_ns + round(orders.duration_s * 1e9))
        elif orders.requests is not None and measured >= orders.requests:
            self._end(due_ns)

    def _end(self, at_ns: int) -> None:
        if self._end_ns is not None:
            return
        self._end_ns = at_ns
        asyncio.get_running_loop().call_later(self._orders.drain_s, self._answered.set)
        if not self._awaited:
            self._answered.set()

    async def _send(self, flight: _Flight, body: bytes) -> None:
        clock = time.monotonic_ns
        times, lengths, reads = flight.times_ns, flight.lengths, flight.reads
        try:
            flight.sent_ns = clock()
            async with self._session.post(self._orders.url, data=body) as response:
                if response.status != _HTTP_OK:
                    text = error_message(await response.content.read(_MOST_BODY))
                    flight.status = f"HTTP {response.status}: {text}"
                    return
                while data := await response.content.readany():
                    if not times:
                        self._ttfts.append(clock() - flight.due_ns)
                    times.append(clock())
                    lengths.append(len(data))
                    reads.append(data)
        except asyncio.CancelledError:
            flight.status = "no end of its answer came"
            raise
        except (aiohttp.ClientError, OSError) as error:
            flight.status = f"the connection failed: {one_line(error) or type(error).__name__}"
        finally:
            flight.place = (self._raw.tell(), sum(lengths))
            self._raw.writelines(reads)
            reads.clear()
            if flight.measured:
                self._awaited -= 1
                if self._end_ns is not None and not self._awaited:
                    self._answered.set()

    async def _cancel_rest(self) -> None:
        for task in self._in_flight:
            task.cancel()
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    async def _beat(self) -> None:
        beat_ns = round(BEAT_S * 1e9)
        next_ns = self._begin_ns + beat_ns
        while True:
            await self._until(next_ns)
            now_ns = time.monotonic_ns()
            self._beats.append((now_ns - next_ns) / 1e9)
            # A beat that the loop slept through is not made up for.
            next_ns += beat_ns * max(1, -(-(now_ns - next_ns) // beat_ns))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            recent = sorted(self._ttfts[-_RECENT:])
            done = len(self._flights) - len(self._in_flight)
            told = {
                "at_s": (time.monotonic_ns() - self._begin_ns) / 1e9,
                "due": len(self._flights),
                "done": done,
                "in_flight": len(self._in_flight),
                "ttft_p95_s": recent[int(0.95 * len(recent))] / 1e9 if recent else None,
            }
            print(json.dumps(told), flush=True)

    def _read(self) -> Iterator[Answer]:
        """What was answered, out of what was kept."""
        for flight in self._flights:
            begin, size = flight.place
            self._raw.seek(begin)
            raw = self._raw.read(size)
            reads, at = [], 0
            for at_ns, length in zip(flight.times_ns, flight.lengths, strict=True):
                reads.append((at_ns, raw[at : at + length]))
                at += length
            yield _answer(flight, reads, self._begin_ns)


def _answer(flight: _Flight, reads: Sequence[tuple[int, bytes]], begin_ns: int) -> Answer:
    status, chunks, ended = flight.status, [], False
    for at_ns, line in stream_lines(reads):
        if line in DONE:
            ended = True
            continue
        try:
            chunk = json.loads(line.partition(b":")[2])
        except ValueError:
            status = status or "a chunk of its answer is no JSON"
            continue
        if not isinstance(chunk, dict) or "error" in chunk:
            status = status or f"an error in its answer: {error_message(line.partition(b':')[2])}"
            continue
        chunks.append((at_ns, chunk))
    found = read_completion(flight.sent_ns, chunks)
    got = len(found.arrivals_ns)
    if status is None and not ended:
        status = "it closed the connection in the middle of an answer"
    if status is None and (not got or found.new_tokens not in (None, got)):
        status = f"{found.new_tokens} tokens came in {got} chunks, and it does not say which"
    return Answer(
        due_s=(flight.due_ns - begin_ns) / 1e9,
        sent_s=(flight.sent_ns - begin_ns) / 1e9,
        arrivals_s=tuple((at_ns - begin_ns) / 1e9 for at_ns in found.arrivals_ns),
        status=status or OK,
        asked_tokens=flight.asked_tokens,
        prompt_tokens=found.prompt_tokens,
        new_tokens=found.new_tokens,
        cached_tokens=found.cached_tokens,
        counted_by=found.counted_by,
    )


def _write_table(load: Load, file: str) -> None:
    """Every request as a row of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    begin, end = load.window_s
    rows = [{**asdict(answer), "measured": begin <= answer.due_s < end} for answer in load.answers]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def _main(orders_file: str, answers_file: str, table_file: str) -> None:
    with Path(orders_file).open("rb") as lines:
        orders: Orders = from_json(Orders, json.loads(next(lines)))
        requests = []
        for line in lines:
            request = json.loads(line)
            body = request["body"]
            requests.append((request["due_s"], json.dumps(body).encode(), int(body["max_tokens"])))
    os.sched_setaffinity(0, orders.cores)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    load = run_precisely(_Generator(orders, requests).run())
    _write_table(load, table_file)
    Path(answers_file).write_text(json.dumps(asdict(load)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
