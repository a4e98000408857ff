"""aiohttp's responses, and when each piece of one was there: taken as it is read from the socket.

The task that waits for a response would see it later, after all else that came at the same time.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
# A head that another follows, as 103 Early Hints.
_EARLY = re.compile(rb"HTTP/1\.\d 1\d\d\b")
# Of a stream, in a chunk of HTTP's: never the last one.
_END_OF_EVENT = b"\n\n\r\n"
# Of a stream: nothing that counts comes behind it.
_DONE = re.compile(rb"\ndata: ?\[DONE\]")
# The end of the response mostly comes in the same read. Some servers never send it.
_LINGER_S = 0.1
# Who had closed a connection says so within a round trip; later, it had taken the request.
_STALE_S = 1.0
# One for all: it is emptied before anything else is read.
_BUFFER = memoryview(bytearray(1 << 16))

Reads = list[tuple[int, bytes]]


class StaleConnection(aiohttp.ClientError):
    """The server had closed a connection that was used before, as the request was sent."""


class TimedResponse(aiohttp.ClientResponse):
    """Attributes
    ----------
    reads : list of (int, bytes)
        What came, head and all, and when, nanoseconds on CLOCK_MONOTONIC.
    """

    reads: Reads

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """As aiohttp calls it when the request was sent."""
        self.reads = []
        if (transport := connection.transport) is None:
            raise StaleConnection
        reader = transport.get_protocol()
        used = isinstance(reader, TimedReader)
        if not used:
            reader = TimedReader(reader)
            transport.set_protocol(reader)
        reader.begin(self)
        begin_s = time.monotonic()
        try:
            return await super().start(connection)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if used and not self.reads and time.monotonic() - begin_s < _STALE_S:
                raise StaleConnection from None
            raise

    async def wait(self) -> None:
        """Until all is there; raises what aiohttp does. Nobody is woken by what comes before."""
        if (error := self.content.exception()) is not None:
            raise error
        await self.content.wait_eof()


class TimedReader(asyncio.BufferedProtocol):
    """Stands before aiohttp's own protocol and keeps what that one is given.

    It is given tokens together, when something else comes: each by itself would cost as much again.

    Attributes
    ----------
    reads : list of (int, bytes)
        Of the response that is awaited.
    """

    def __init__(self, inner: ResponseHandler) -> None:
        self._inner = inner
        self.reads: Reads = []
        self._held: list[bytes] = []
        self._response: TimedResponse

    def begin(self, response: TimedResponse) -> None:
        """What comes from now on is this response."""
        self._response, self.reads = response, response.reads

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        at_ns = time.monotonic_ns()
        data = bytes(_BUFFER[:nbytes])
        self.reads.append((at_ns, data))
        self._held.append(data)
        # The first has the head.
        if len(self.reads) == 1 or not data.endswith(_END_OF_EVENT):
            self._give()
        if b"]" in data and _DONE.search(b"".join(each for _, each in self.reads[-2:])):
            asyncio.get_running_loop().call_later(_LINGER_S, self._end, self._response)

    def _end(self, response: TimedResponse) -> None:
        """The connection of a response that said it was done, and has no end, is not used again."""
        if response is self._response and not response.content.is_eof():
            self._inner.force_close()
            response.content.feed_eof()

    def _give(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if data:
            self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._give()
        self._inner.connection_lost(exc)

    def eof_received(self) -> None:
        self._give()
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def body_of(reads: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The body of a response of HTTP/1, as far as it came: each piece with the time of its read."""
    rest, chunked, left = b"", None, 0
    for at_ns, data in reads:
        rest += data
        if chunked is None:
            head, end, body = rest.partition(b"\r\n\r\n")
            while end and _EARLY.match(head):
                rest = body
                head, end, body = rest.partition(b"\r\n\r\n")
            if not end:
                continue
            chunked, rest = _CHUNKED.search(head) is not None, body
        if not chunked:
            yield at_ns, rest
            rest = b""
            continue
        pieces = []
        while True:
            pieces.append(rest[:left])
            rest, left = rest[left:], left - len(pieces[-1])
            line, end, after = rest.partition(b"\r\n")
            if left or not end:
                break
            rest = after
            # An empty line is the end of the chunk before; one of no bytes is the last.
            if line and not (left := _size(line)):
                break
        if any(pieces):
            yield at_ns, b"".join(pieces)
        if line and end and not left:
            return


def _size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        return 0
