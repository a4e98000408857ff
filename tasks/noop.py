"""Measures nothing; exists to measure this program itself, and its failures in tests."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orchestrator.measure import Identity, Recorder, Task


@dataclass
class NoopConfig:
    """Options of ``task=noop``; ``value`` makes distinct trials, ``sleep_s`` makes them last."""

    name: str = "noop"
    value: int = 0
    sleep_s: float = 0.0


def run(identity: Identity, recorder: Recorder) -> None:
    """Record ``value`` and the time slept."""
    options = identity["task"]
    with recorder.phase("body"):
        if options["sleep_s"]:
            time.sleep(options["sleep_s"])
    recorder.value("value", "1", options["value"])


TASK = Task(
    name="noop", config=NoopConfig, run=run, whole_node=False, headline=("value",)
)
