"""Real processes for the tests of isolation: one bare fork server a module, and a probing task."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, PlannedAttempt, Resources, Slot, Trial
from orchestrator.isolate.directory import PREFIX
from orchestrator.isolate.isolation import Isolation
from orchestrator.telemetry.watch import Telemetry
from testing.waiting import until

CORE = min(os.sched_getaffinity(0))
SLOT = Slot(node_id="node", host="host", cpus=(CORE,))

PROBE = """
import gc, os, random, sys, tempfile
from dataclasses import dataclass
from orchestrator.measure import MetricSpec, Task

@dataclass
class ProbeConfig:
    name: str = "isolate_probe"
    source: str = ""

def run(identity, recorder):
    exec(identity["task"]["source"], {"recorder": recorder, "identity": identity, **globals()})

METRICS = (MetricSpec("loudness", "dB", "higher", title="how loud"),)
TASK = Task(name="isolate_probe", config=ProbeConfig, run=run, metrics=METRICS)
"""


def make_spec(
    task: dict[str, Any],
    *,
    model: dict[str, Any] | None = None,
    threads: int | None = None,
    seed: int = 0,
    timeout_s: float = 1800.0,
    memory_limit_bytes: int | None = None,
    **options: Any,
) -> PlannedAttempt:
    identity = {
        "schema": 1,
        "task": task,
        "model": model or {},
        "quant": {},
        "protocol": {},
        "device": {"kind": "cpu", "threads": threads},
        "seed": seed,
    }
    trial = Trial(
        "0" * 64,
        identity,
        resources=Resources(memory_bytes=memory_limit_bytes),
        timeout_s=timeout_s,
    )
    return PlannedAttempt(trial, attempt_id=f"test-{time.monotonic_ns()}", **options)


def noop(
    fault: str = "", *, sleep_s: float = 0.0, value: int = 7, **options: Any
) -> PlannedAttempt:
    task = {"name": "noop", "value": value, "sleep_s": sleep_s, "fault": fault}
    return make_spec(task, **options)


def last(
    isolation: Isolation, spec: PlannedAttempt, slot: Slot = SLOT, **more: Any
) -> AttemptReport:
    items = list(isolation.run(spec, slot, **more))
    assert [type(item) for item in items].count(AttemptReport) == 1
    report = items[-1]
    assert isinstance(report, AttemptReport)
    return report


def gone(pid: int) -> bool:
    """Whether ``pid`` is no longer running (a zombie runs no more)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def running_with(word: str) -> list[int]:
    """Processes whose command line contains ``word``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if word.encode() in (entry / "cmdline").read_bytes() and not gone(int(entry.name)):
                    found.append(int(entry.name))
    return found


def directories() -> set[str]:
    """The directories of attempts that are there."""
    return {p.name for p in Path(tempfile.gettempdir()).glob(f"{PREFIX}*")}


class Helpers:
    """What the tests share: a fixture, because test modules cannot import each other."""

    core = CORE
    # Tells the sleepers of these tests from those of another run on this machine.
    sleep_s = f"90210{os.getpid()}"
    slot = SLOT
    spec = staticmethod(make_spec)
    noop = staticmethod(noop)
    last = staticmethod(last)
    gone = staticmethod(gone)
    until = staticmethod(until)
    running_with = staticmethod(running_with)
    directories = staticmethod(directories)


@pytest.fixture(scope="session")
def h() -> type[Helpers]:
    return Helpers


@pytest.fixture
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts of others on this machine are none of these tests' business."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    with Isolation(preload=()) as made:
        yield made


@pytest.fixture
def probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., AttemptReport]]:
    """Runs Python source as a task, installed the way a third party's task is."""
    (tmp_path / "isolate_probe.py").write_text(PROBE)
    info = tmp_path / "isolate_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isolate-probe\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[orchestrator.tasks]\nisolate_probe = isolate_probe:TASK\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Isolation] = []

    def run(
        source: str,
        slot: Slot = SLOT,
        *,
        start: str = "fork",
        preload: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        watched: bool = False,
        **options: Any,
    ) -> AttemptReport:
        if not made:
            made.append(Isolation(preload=preload, env=env))
        spec = make_spec({"name": "isolate_probe", "source": source}, start=start, **options)
        return last(made[0], spec, slot, watch=Telemetry({}) if watched else None)

    yield run
    for isolation in made:
        isolation.close()
