"""A server with OpenAI's completions API whose answers are scripted: right, late, wrong or cut."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from typing import Any

VOCABULARY = 256  # a token for every byte


@dataclass
class Script:
    """What it does; by default all that the engine can use, as vLLM does it.

    Attributes
    ----------
    stops_after : int or None
        Tokens after which it stops by itself.
    tokens_a_chunk : int
    counts : bool
        Whether each chunk says how many tokens there are by now.
    takes_options : bool
        Whether it knows more than OpenAI's own options; else it answers 400.
    rejects : callable
        Whether it answers 429 to what is asked; by default never.
    echoes_key : bool
        Whether the message of a rejected key has the key in it.
    whole : bool
        Whether it answers at once where a stream is asked for.
    cut_after, error_after, hang_after : int or None
        Chunks after which it closes the connection, sends an error, or is silent.
    new_prompt_s, token_s : float
        What a prompt takes that it has not seen, and what lies between chunks.
    """

    models: tuple[str, ...] | None = ("toy",)
    tokenizes: bool = True
    key: str | None = None
    status: int = 200
    body: str = ""
    stops_after: int | None = None
    tokens_a_chunk: int = 1
    counts: bool = True
    takes_options: bool = True
    rejects: Callable[[dict[str, Any]], bool] = lambda asked: False
    echoes_key: bool = False
    whole: bool = False
    cut_after: int | None = None
    error_after: int | None = None
    hang_after: int | None = None
    new_prompt_s: float = 0.0
    token_s: float = 0.005
    extra_prompt_tokens: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def scripted(**script: Any) -> Iterator[tuple[str, Script]]:
    """Its ``engine.url`` and what it does, which may be changed meanwhile."""
    does = Script(**script)

    class Handler(_Handler):
        script = does

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", does
        finally:
            does.release.set()
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may leave whenever it likes."""


class _Handler(BaseHTTPRequestHandler):
    script: Script
    protocol_version = "HTTP/1.1"
    # Else a token waits for the acknowledgement of the one before.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        names = self.script.models
        listed = {"data": [{"id": name, "max_model_len": 512} for name in names or ()]}
        self._answer(404 if names is None else 200, json.dumps(listed))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script = self.script
        if self.path == "/tokenize":
            tokens = list(asked["prompt"].encode())
            self._answer(200 if script.tokenizes else 404, json.dumps({"tokens": tokens}))
            return
        script.seen.append(asked)
        given = self.headers["Authorization"]
        if script.key is not None and given != f"Bearer {script.key}":
            shown = f": {given}" if script.echoes_key else ""
            self._answer(401, json.dumps({"error": {"message": f"no such key{shown}"}}))
        elif script.rejects(asked):
            self._answer(429, json.dumps({"error": {"message": "not now"}}))
        elif script.status != 200:
            self._answer(script.status, script.body)
        elif "ignore_eos" in asked and not script.takes_options:
            self._answer(400, json.dumps({"error": {"message": "unknown ignore_eos"}}))
        elif asked.get("stream") and not script.whole:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._stream(asked)
        else:
            self._answer(200, json.dumps({"choices": [self._whole(asked)]}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def _whole(self, asked: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"text": "x"}
        if self.script.takes_options and "prompt_logprobs" in asked:
            # One half for the token that follows in the alphabet, the rest for all others.
            rows = [
                {str(i): {"logprob": _logprob(before, i)} for i in {token, (before + 1) % 256}}
                for before, token in zip(asked["prompt"], asked["prompt"][1:], strict=False)
            ]
            choice["prompt_logprobs"] = [None, *rows]
        return choice

    def _stream(self, asked: dict[str, Any]) -> None:
        script, prompt = self.script, asked["prompt"]
        if prompt not in [before["prompt"] for before in script.seen[:-1]]:
            time.sleep(script.new_prompt_s)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        wanted = asked["max_tokens"]
        count = wanted if script.stops_after is None else min(wanted, script.stops_after)
        usage = {"prompt_tokens": len(prompt) + script.extra_prompt_tokens}
        sent = 0
        for number, _ in enumerate(range(0, count, script.tokens_a_chunk)):
            if number == script.cut_after:
                self.close_connection = True
                return
            if number == script.error_after:
                self._chunk({"error": {"message": "the model fell over"}})
            if number == script.hang_after:
                script.release.wait(60)
            sent = min(count, sent + script.tokens_a_chunk)
            chunk: dict[str, Any] = {"choices": [{"text": "x"}]}
            if script.counts:
                chunk["usage"] = {**usage, "completion_tokens": sent}
            self._chunk(chunk)
            time.sleep(script.token_s)
        ended = "stop" if count < wanted else "length"
        self._chunk({"choices": [{"text": "", "finish_reason": ended}]})
        self._chunk({"choices": [], "usage": {**usage, "completion_tokens": count}})
        self._send(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, content: dict[str, Any]) -> None:
        self._send(b"data: " + json.dumps(content).encode() + b"\n\n")

    def _send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def _logprob(before: int, token: int) -> float:
    return log(0.5 if token == (before + 1) % 256 else 0.5 / (VOCABULARY - 1))
