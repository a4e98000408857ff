"""Measures nothing; exists to measure this program itself, and its failures in tests."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orchestrator.measure import Identity, Recorder, Task


@dataclass
class NoopConfig:
    """Options of ``task=noop``.

    ``value`` makes distinct trials, ``sleep_s`` makes them last, ``fault`` (a name of ``_faults``,
    ``signal:SIGKILL``) makes them end badly after ``value`` is recorded.
    """

    name: str = "noop"
    value: int = 0
    sleep_s: float = 0.0
    fault: str = ""


def run(identity: Identity, recorder: Recorder) -> None:
    """Record ``value``; then sleep and fail as asked."""
    options = identity["task"]
    recorder.value("value", "1", options["value"])
    with recorder.phase("body"):
        if options["sleep_s"]:
            time.sleep(options["sleep_s"])
        if options.get("fault"):
            from orchestrator.tasks._faults import fail

            fail(options["fault"], recorder)


TASK = Task(
    name="noop",
    config=NoopConfig,
    run=run,
    whole_node=False,
    headline=("value",),
    content=lambda identity: {},
)
