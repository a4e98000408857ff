"""The load generator by itself, as ``task=serving`` starts it, against any server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from orchestrator.engines.separate import own_command
from orchestrator.measure.plain_json import from_json
from orchestrator.tasks.serving.orders import Load, Orders


class Generating:
    """A generator's load, written to files; :meth:`load` reads what came of it.

    Parameters
    ----------
    url : str
        Of the API.
    sends : iterable of (float or None, mapping)
        When each request is due, seconds, and what its body has besides: by default it asks for
        three tokens, and its number is its ``user``. What is ``then`` are later turns, likewise.
    orders
        As of :class:`orchestrator.tasks.serving.orders.Orders`; by default all are sent and waited
        for.

    Attributes
    ----------
    command, variables : list of str, dict
        What starts it.
    table, metrics : Path
        Every request, and what the server exported of itself, as Parquet.
    """

    def __init__(
        self,
        url: str,
        sends: Iterable[tuple[float | None, Mapping[str, Any]]],
        directory: Path,
        **orders: Any,
    ) -> None:
        self._answers = directory / "answers"
        self.table = directory / "requests.parquet"
        self.metrics = directory / "server.parquet"
        told = directory / "orders"
        given: dict[str, Any] = {
            "url": f"{url}/completions",
            "key_variable": None,
            "cores": tuple(os.sched_getaffinity(0)),
            "concurrency": None,
            "lead_s": 0.0,
            "ramp_s": 0.0,
            "requests": None,
            "duration_s": None,
            "drain_s": 60.0,
        }
        with told.open("w") as lines:
            lines.write(f"{json.dumps(asdict(Orders(**{**given, **orders})))}\n")
            for number, (due_s, more) in zip(count(), sends):
                body = {"prompt": [1, 2, 3], "max_tokens": 3, "stream": True, "user": str(number)}
                first = {key: value for key, value in more.items() if key != "then"}
                bodies = [{**body, **said} for said in (first, *more.get("then", ()))]
                lines.write(f"{json.dumps({'due_s': due_s, 'bodies': bodies})}\n")
        self.command, self.variables = own_command(
            "orchestrator.tasks.serving.generator", told, self._answers, self.table, self.metrics
        )

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """Its process, which is gone afterwards."""
        with subprocess.Popen(
            self.command,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def load(self, process: subprocess.Popen[str] | None = None) -> Load:
        """What came of it: of its ``process``, or of one that is started for it."""
        if process is None:
            with self.started() as process:
                return self.load(process)
        _, complaint = process.communicate()
        assert (process.returncode, complaint) == (0, "")
        found: Load = from_json(Load, json.loads(self._answers.read_text()))
        return found
