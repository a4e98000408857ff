"""Worlds to be broken, and the look at what a fault left behind."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from orchestrator.record import open_store
from testing.world import MEASURED, SUPERVISOR, DriverProcess, Nodes, World, measured, named

LIMIT_S = 10.0
SHARED_MEMORY = Path("/dev/shm")


def until(holds: Callable[[], Any], driver: DriverProcess, timeout_s: float = 90.0) -> Any:
    """Wait until ``holds()`` while ``driver`` runs; returns what it says."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert driver.poll() is None, f"ended with {driver.poll()}:\n{driver.tail()}"
        assert time.monotonic() < deadline, f"not in {timeout_s:.0f} s:\n{driver.tail()}"
        time.sleep(0.05)
    return found


def held(world: World, count: int, *, hold: Collection[int]) -> str:
    """The word that makes ``count`` trials, of which those in ``hold`` last until ``let_go``."""
    files = [world.directory / f"witness-{index}" for index in range(count)]
    for index in hold:
        Path(f"{files[index]}.until").write_text("0")
    return f"task.fault={','.join(f'witness:{file}' for file in files)}"


def let_go(world: World) -> None:
    """Let every trial end that :func:`held` holds."""
    for file in world.directory.glob("witness-*.until"):
        file.unlink()


def on_cluster(nodes: Nodes, *words: str) -> list[str]:
    """The words of a sweep of empty trials that joins ``nodes`` and records on this host."""
    return [
        "task=noop",
        *words,
        "device=cpu",
        "cluster=ray",
        f"cluster.address={nodes.address}",
        "tracking.local_on_cluster=true",
        "telemetry.enabled=false",
        "preflight=off",
        "--json",
    ]


def children(driver: DriverProcess) -> list[psutil.Process]:
    """Every descendant of the driver."""
    assert driver.process is not None
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(driver.process.pid).children(recursive=True)
    return []


def of_attempts(world: World) -> list[psutil.Process]:
    """Supervisors, fork servers and measured processes of ``world``."""
    found = world.processes()
    servers = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if MEASURED in process.cmdline():
                servers.append(process)
    return [*named(found, SUPERVISOR), *servers]


def shared_memory_nobody_has() -> set[str]:
    """Ray's files in shared memory that no living process has open."""
    there = {path.name for path in SHARED_MEMORY.glob("*plasma*")}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            there -= {name for name in there if target.endswith(f"/{name}")}
    return there


def nothing_left(world: World, look: Callable[[], list[psutil.Process]] | None = None) -> None:
    """No process of a fault's victims, no directory of an attempt, no shared memory."""
    look = look or world.processes
    deadline = time.monotonic() + LIMIT_S
    while left := look():
        assert time.monotonic() < deadline, [(p, p.parent()) for p in left]
        time.sleep(0.1)
    assert not shared_memory_nobody_has()


def recorded(root: Path) -> tuple[Counter[str], list[Counter[str]], list[str]]:
    """Attempts by outcome, outcomes of each trial, and statuses of runs that never ended."""
    store = open_store({"kind": "embedded", "root": str(root)})
    attempts = store.attempts()
    outcomes = Counter(str(s.outcome) for group in attempts.values() for s in group)
    each = [Counter(str(s.outcome) for s in group) for group in attempts.values()]
    return outcomes, each, [run.run_id for run in store.running()]


@pytest.fixture(scope="session")
def faults() -> Any:
    """The helpers above, for test modules (which cannot import this file)."""
    return SimpleNamespace(
        until=until,
        held=held,
        let_go=let_go,
        on_cluster=on_cluster,
        children=children,
        measured=measured,
        of_attempts=of_attempts,
        nothing_left=nothing_left,
        recorded=recorded,
        Driver=DriverProcess,
    )


@pytest.fixture
def world() -> Iterator[World]:
    """A place of its own; what is left in it is killed at the end."""
    with World() as made:
        yield made
