"""Nodes of a joined cluster frozen and killed."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from typing import Any

import psutil

from testing import faults
from testing.world import DriverProcess, Nodes, World, measured, raylet_process

TRIALS = 5


def measured_on(node: Any) -> list[psutil.Process]:
    """Measured processes under the raylet of ``node``."""
    with contextlib.suppress(psutil.NoSuchProcess):
        raylet = psutil.Process(raylet_process(node).pid)
        return measured(raylet.children(recursive=True))
    return []


def test_a_node_freezes_for_a_moment_and_another_is_killed(world: World) -> None:
    nodes = Nodes(world, 2)
    frozen, victim = nodes.alive
    # Until both nodes measure in both slots, and the one is dead: nothing ends before that.
    words = [f"task.value=range({TRIALS})", faults.held(world, 0)]
    driver = DriverProcess(world, faults.on_cluster(nodes, *words))
    driver.start()
    faults.until(lambda: len(measured_on(frozen)) == len(measured_on(victim)) == 2, driver)
    raylet_process(frozen).send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    raylet_process(frozen).send_signal(signal.SIGCONT)
    hit, spared = measured_on(victim), measured_on(frozen)
    nodes.kill(1)
    faults.nothing_left(world, lambda: [p for p in hit if p.is_running()])
    nodes.add()
    # The one that froze lost nothing.
    assert len(spared) == 2
    assert all(process.is_running() for process in spared)
    faults.let_go(world)
    assert driver.wait() == 0, driver.tail()
    assert json.loads(driver.output.read_text())["outcomes"] == {"ok": TRIALS}
    outcomes, each, open_runs = faults.recorded(world.directory / "mlruns")
    # What the dead node held, and what may have waited in its queue.
    assert outcomes["lost"] >= 2, outcomes
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each)
    assert open_runs == []
    faults.nothing_left(world, lambda: faults.of_attempts(world))
    nodes.close()
