"""Breaking a sweep in a :class:`~testing.world.World`, and the look at what that left behind."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from orchestrator.record import open_store
from orchestrator.record.spool import write_whole
from testing.waiting import until as wait_until
from testing.world import MEASURED, SUPERVISOR, DriverProcess, Nodes, World, named

SHARED_MEMORY = Path("/dev/shm")


def until(holds: Callable[[], Any], driver: DriverProcess) -> Any:
    """Wait until ``holds()`` while ``driver`` runs; returns what it says."""

    def alive() -> None:
        assert driver.poll() is None, f"ended with {driver.poll()}:\n{driver.tail()}"

    return wait_until(holds, alive=alive, said=driver.tail)


def held(world: World, free: int) -> str:
    """The word with which ``free`` executions go on, and all others last until they may."""
    let_go(world, free)
    return f"task.fault='witness:{_witness(world)}'"


def let_go(world: World, more: int | None = None) -> None:
    """Let ``more`` executions than have begun go on; by default all."""
    until_file = _witness(world).with_suffix(".until")
    if more is None:
        until_file.unlink()
    else:
        begun = _witness(world).read_text().count("\n") if _witness(world).exists() else 0
        write_whole(until_file, b"%d" % (begun + more), durable=False)


def _witness(world: World) -> Path:
    return world.directory / "witness"


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
    """Wait until there is no process of a fault's victims, and no shared memory of nobody's."""
    seen = look or world.processes
    wait_until(lambda: not seen(), said=lambda: [(p, p.parent()) for p in seen()])
    wait_until(lambda: not shared_memory_nobody_has(), said=shared_memory_nobody_has)


def recorded(root: Path) -> tuple[Counter[str], list[Counter[str]], list[str]]:
    """Attempts by outcome, outcomes of each trial, and runs that never ended."""
    store = open_store({"kind": "embedded", "root": str(root)})
    attempts = store.attempts()
    outcomes = Counter(str(s.outcome) for group in attempts.values() for s in group)
    each = [Counter(str(s.outcome) for s in group) for group in attempts.values()]
    return outcomes, each, [run.run_id for run in store.running()]
