"""OpenAI's completions API over HTTP, each chunk of a stream with the time at which it arrived.

Each request has a connection of its own, opened before its time begins. A chunk's time is that of
the read from the socket that brought its end: chunks that one read brought share it.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NoReturn
from urllib.parse import urlsplit

from orchestrator.engines.completions import (
    Chunk,
    error_message,
    is_end,
    likeliest_next,
    read_stream,
)
from orchestrator.engines.next_tokens import Likeliest
from orchestrator.errors import one_line
from orchestrator.measure import InputError

#: No byte for so long ends an attempt: a long prompt on a slow CPU takes minutes.
SILENT_S = 600.0
_CONNECT_S = 10.0
_MOST_BODY = 1 << 16
# What a header can carry.
_KEY = re.compile(r"[!-~]+")
_REJECTED = (400, 422)
_FIXES = {
    401: "Name the variable that holds its key: engine.key_variable=NAME",
    403: "Name the variable that holds its key: engine.key_variable=NAME",
    404: "engine.url is what /completions follows, engine.model a name that the server knows",
    429: "The server has too much to do: run again later, with retry.failed=true",
}


class _Received(io.RawIOBase):
    """A socket's bytes, and when the last of them were read."""

    def __init__(self, raw: io.RawIOBase, now_ns: Callable[[], int]) -> None:
        self._raw, self._now_ns, self.at_ns = raw, now_ns, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count: int | None = self._raw.readinto(buffer)
        self.at_ns = self._now_ns()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Endpoint:
    """A server at ``url``, by whose models and completions a session runs.

    Parameters
    ----------
    url : str
        What ``/models`` and ``/completions`` follow: ``http://host:8000/v1``.
    key : str or None
        Sent as ``Authorization: Bearer``, and kept nowhere else.
    now_ns : callable
        The clock.
    """

    def __init__(self, url: str, key: str | None, now_ns: Callable[[], int]) -> None:
        parts = urlsplit(url)
        self._secure, self._address = parts.scheme == "https", parts.netloc
        self._path = parts.path.rstrip("/")
        self._url = url
        self._now_ns = now_ns
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self.model: str | None = None
        self._character: int | None = None

    @property
    def completions_url(self) -> str:
        """Where completions are asked for."""
        return f"{self._url.rstrip('/')}/completions"

    @property
    def metrics_url(self) -> str:
        """Where vLLM, SGLang and llama.cpp export their own metrics."""
        return f"{self._url.rstrip('/').removesuffix('/v1')}/metrics"

    def models(self) -> list[dict[str, Any]] | None:
        """What the server lists; None where it has no list."""
        status, body = self._exchange("GET", f"{self._path}/models")
        if status == http.client.NOT_FOUND:
            return None
        self._expect_ok(status, body)
        listed = self._object(body).get("data")
        return [each for each in listed or () if isinstance(each, dict) and "id" in each]

    def tokenize(self, text: str, *, special: bool = False) -> list[int] | None:
        """Ids by the server's own tokenizer (llama.cpp, vLLM, SGLang); None where it offers none.

        Parameters
        ----------
        special : bool
            With what it puts before a text.
        """
        asked = {
            **{"content": text, "add_special": special, "parse_special": False},  # llama.cpp
            **{"prompt": text, "add_special_tokens": special, "model": self.model},
        }
        status, body = self._exchange("POST", self._path.removesuffix("/v1") + "/tokenize", asked)
        if status != http.client.OK:
            return None
        return [int(i) for i in self._object(body).get("tokens", ())]

    def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The whole answer at once."""
        answer = self.try_complete(request, rejects=())
        assert answer is not None
        return answer

    def try_complete(
        self, request: Mapping[str, Any], rejects: Sequence[int] = _REJECTED
    ) -> dict[str, Any] | None:
        """As :meth:`complete`; None where the server rejects what it is asked for."""
        status, body = self._exchange("POST", f"{self._path}/completions", self._named(request))
        if status in rejects:
            return None
        self._expect_ok(status, body)
        return self._object(body)

    def stream(self, request: Mapping[str, Any]) -> tuple[int, list[tuple[int, Chunk]]]:
        """When it was asked, and each chunk of the answer with the time at which it arrived.

        Raises
        ------
        InputError
            In one line: no connection, another status than 200, an error within the stream, or an
            end before its end.
        """
        body = json.dumps({**self._named(request), "stream": True}).encode()
        lines: list[tuple[int, bytes]] = []
        done = False
        with self._errors(), closing(self._connect()) as connection:
            begin_ns = self._now_ns()
            connection.request("POST", f"{self._path}/completions", body, self._headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                self._expect_ok(response.status, response.read(_MOST_BODY))
            received: Any = response.fp.raw
            while not done and (line := response.readline()):
                lines.append((received.at_ns, line))
                done = is_end(line)
        stream = read_stream(lines)
        if stream.problem is not None:
            self._fail(stream.problem)
        if not stream.ended:
            chunks = len(stream.chunks)
            self._fail(f"it closed the connection in the middle of an answer ({chunks} chunks)")
        return begin_ns, stream.chunks

    def next_logprobs(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        cached: bool = True,
        chosen: int | None = None,
    ) -> Likeliest:
        """As :meth:`orchestrator.engines.next_tokens.NextTokens.next_logprobs`."""
        asked: dict[str, Any] = {
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": count,
            "cache_prompt": cached,
        }
        if self._character is None:
            (self._character, *_) = self.tokenize("a") or (None,)
        # They are of before this bias; llama.cpp leaves them out where it chooses a part of a
        # character.
        asked["logit_bias"] = {str(self._character if chosen is None else chosen): 100}
        answer = self.complete({**asked, "prompt": list(prompt)})
        found = likeliest_next(answer, chosen)
        if found is None:
            if chosen is not None:
                return []
            self._fail("it no longer gives log-probabilities by id")
        return found

    def _named(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": self.model, **request}

    def _exchange(
        self, method: str, path: str, asked: Mapping[str, Any] | None = None
    ) -> tuple[int, bytes]:
        body = None if asked is None else json.dumps(asked).encode()
        with self._errors(), closing(self._connect()) as connection:
            connection.request(method, path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._address, timeout=_CONNECT_S)
        connection.response_class = self._response  # type: ignore[assignment]
        connection.connect()
        connection.sock.settimeout(SILENT_S)
        return connection

    def _response(self, sock: Any, *more: Any, **named: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *more, **named)
        raw: Any = response.fp.detach()
        response.fp = io.BufferedReader(_Received(raw, self._now_ns))
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self._fail(f"no answer: it was silent for {SILENT_S:g} s", "Is it running?")
        # A host that no name can be raises UnicodeError.
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._fail(f"the connection failed: {one_line(error)}", "Is it running?")

    def _expect_ok(self, status: int, body: bytes) -> None:
        if status != http.client.OK:
            known = http.client.responses.get(status, "")
            self._fail(f"it answered {status} {known}: {error_message(body)}", _FIXES.get(status))

    def _object(self, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            self._fail(
                f"its answer is not OpenAI's: {one_line(body[:80].decode(errors='replace'))}"
            )
        if "error" in found:
            self._fail(f"it answered with an error: {error_message(body)}")
        return found

    def _fail(self, what: str, fix: str | None = None) -> NoReturn:
        raise InputError(what, where=self._url, fix=fix)


def key_of(variable: str | None) -> str | None:
    """The key that a variable of this process holds; :class:`InputError` where it has none."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InputError(f"{variable} is not set", where="engine.key_variable", fix="Export it")
    if not _KEY.fullmatch(key):
        raise InputError(
            f"{variable} holds no key: it has a line break, a blank or a letter beyond ASCII",
            where="engine.key_variable",
            fix="Export the key alone",
        )
    return key
