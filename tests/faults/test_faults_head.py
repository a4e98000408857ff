"""The head of a joined cluster lost: its process, its answers, its whole host."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

import psutil
import pytest

from testing import faults
from testing.commands import orchestrator
from testing.near import near
from testing.world import DriverProcess, Nodes, World, measured

TRIALS = 3
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"


def at_work(world: World) -> list[psutil.Process]:
    """Supervisors, and measured processes with or without one.

    Not what a Ray worker keeps warm that is idle: that ends with its node.
    """
    found = []
    for process in faults.of_attempts(world):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent is None or parent.name() != "ray::IDLE":
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("parts", "number", "said"),
    [
        pytest.param(["gcs_server"], signal.SIGKILL, "the head has not answered", id="process"),
        pytest.param(
            ["gcs_server"],
            signal.SIGSTOP,
            "the head has not answered",
            id="silent",
            marks=pytest.mark.long,
        ),
        # The driver is on the head's host, and has its raylet.
        pytest.param(
            ["raylet", "gcs_server"],
            signal.SIGKILL,
            "raylet of this host",
            id="host",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_lost_head_ends_the_sweep_with_its_books_closed(
    world: World, parts: Sequence[str], number: signal.Signals, said: str
) -> None:
    # The last runs when the head goes, and until it is let go.
    words = [f"task.value=range({TRIALS})", faults.held(world, TRIALS - 1)]
    nodes = Nodes(world, 1)
    # Of the driver alone: the head may be silent for half of it.
    world.environment[PATIENCE] = "20"
    driver = DriverProcess(world, faults.on_cluster(nodes, *words))
    driver.start()
    faults.until(lambda: driver.tail().count(" ok ") == 2, driver)
    faults.until(lambda: len(measured(world.processes())) == 1, driver)
    for part in parts:
        nodes.head.all_processes[part][0].process.send_signal(number)
    assert driver.wait() == 2, driver.tail()
    last = driver.tail().splitlines()[-1]
    assert last.startswith(f"error: cluster.address={nodes.address}: "), driver.tail()
    assert said in last
    assert "Traceback" not in driver.tail()
    faults.nothing_left(world, lambda: at_work(world))
    mlruns = world.directory / "mlruns"
    outcomes, each, open_runs = faults.recorded(mlruns)
    assert outcomes == {"ok": 2, "lost": 1}
    assert open_runs == [], "nothing is left for the next command to end"
    for part in parts:
        nodes.head.all_processes[part][0].process.send_signal(signal.SIGCONT)
    nodes.close()

    faults.let_go(world)
    with near():
        again = orchestrator(world.directory, *words, "task=noop", "device=cpu", "--json")
    assert again.code == 0, again.err
    assert again.json["cached"] == 2
    outcomes, each, open_runs = faults.recorded(mlruns)
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each)
    assert open_runs == []
