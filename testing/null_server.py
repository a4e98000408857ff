"""A server that answers by schedule: OpenAI's completions, without a model.

``python -m testing.null_server FIRST_S BETWEEN_S TOKENS`` prints its port. Each chunk has the time
at which it was written (``at_ns``, CLOCK_MONOTONIC), and the first one when the request came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

from aiohttp import web

from orchestrator.tasks.serving.loop import run_precisely


class NullServer:
    """Parameters: seconds to the first token, between tokens, and how many there are."""

    def __init__(self, first_s: float, between_s: float, tokens: int) -> None:
        self._first_ns = round(first_s * 1e9)
        self._between_ns = round(between_s * 1e9)
        self._tokens = tokens

    async def completions(self, request: web.Request) -> web.StreamResponse:
        came_ns = time.monotonic_ns()
        asked = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        # Whoever no longer waits for the answer has gone.
        with contextlib.suppress(ConnectionError):
            await self._answer(response, came_ns, len(asked["prompt"]))
        return response

    async def _answer(self, response: web.StreamResponse, came_ns: int, prompt_tokens: int) -> None:
        for number in range(self._tokens):
            due_ns = came_ns + self._first_ns + number * self._between_ns
            wait_s = (due_ns - time.monotonic_ns()) / 1e9
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            chunk = {"choices": [{"text": "a"}], "came_ns": came_ns, "at_ns": time.monotonic_ns()}
            await response.write(b"data: %s\n\n" % json.dumps(chunk).encode())
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": self._tokens}
        await response.write(
            b"data: %s\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
        )

    async def run(self) -> None:
        """Serve until the process ends."""
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    first, between, count = sys.argv[1:]
    run_precisely(NullServer(float(first), float(between), int(count)).run())
