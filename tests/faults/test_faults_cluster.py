"""Nodes of a joined cluster frozen and killed."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from benchmarks._world import DriverProcess, Nodes, World, raylet_process

pytestmark = pytest.mark.slow

TRIALS = 8


@pytest.fixture(scope="module")
def cluster_world() -> Iterator[World]:
    with World() as made:
        yield made


@pytest.fixture(scope="module")
def nodes(cluster_world: World) -> Iterator[Nodes]:
    """A head without slots and two nodes of two."""
    made = Nodes(cluster_world, 2)
    yield made
    made.close()


def words(address: str, name: str, sleep_s: float = 2.0, first: int = 0) -> list[str]:
    return [
        "task=noop",
        f"task.value=range({first},{first + TRIALS})",
        f"task.sleep_s={sleep_s}",
        "device=cpu",
        "cluster=ray",
        f"cluster.address={address}",
        f"tracking.root={name}",
        "tracking.local_on_cluster=true",
        "telemetry.enabled=false",
        "preflight=off",
        "--json",
    ]


@pytest.fixture
def driver(
    request: pytest.FixtureRequest, cluster_world: World, nodes: Nodes
) -> Iterator[DriverProcess]:
    """A driver on the cluster, with a store of its own, that measures on both nodes already."""
    made = DriverProcess(cluster_world, words(nodes.address, request.node.name))
    made.start()
    yield made
    if made.poll() is None:
        made.send(signal.SIGKILL)
        made.wait(30)


def measured_on(faults: Any, node: Any) -> list[psutil.Process]:
    """Measured processes under the raylet of ``node``."""
    with contextlib.suppress(psutil.NoSuchProcess):
        raylet = psutil.Process(raylet_process(node).pid)
        found: list[psutil.Process] = faults.measured(raylet.children(recursive=True))
        return found
    return []


def finished(driver: DriverProcess, faults: Any, name: str) -> Any:
    """The sweep came to its end, whole; returns the outcomes of its attempts."""
    assert driver.wait(150) == 0, driver.tail()
    outcomes, each, open_runs = faults.recorded(driver.log.parent / name)
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each)
    assert open_runs == []
    assert json.loads(driver.output.read_text())["outcomes"] == {"ok": TRIALS}
    return outcomes


def test_a_node_freezes_for_a_moment_and_another_is_killed(
    request: pytest.FixtureRequest,
    cluster_world: World,
    nodes: Nodes,
    driver: DriverProcess,
    faults: Any,
) -> None:
    frozen, victim = nodes.alive
    hit = faults.until(lambda: measured_on(faults, victim), driver)
    raylet_process(frozen).send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    raylet_process(frozen).send_signal(signal.SIGCONT)
    hit = measured_on(faults, victim) or hit
    nodes.kill(1)
    faults.nothing_left(cluster_world, lambda: [p for p in hit if p.is_running()])
    nodes.add()
    outcomes = finished(driver, faults, request.node.name)
    # Only what the dead node held: the frozen one lost nothing.
    assert 1 <= outcomes["lost"] <= 2, outcomes
    assert outcomes["ok"] == TRIALS
    faults.nothing_left(cluster_world, lambda: faults.of_attempts(cluster_world))
