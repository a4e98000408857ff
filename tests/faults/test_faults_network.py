"""A node cut off from the network and back, in a network namespace of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from testing.network import Island, Unavailable
from testing.world import Nodes, World, raylet_process

TRIALS = 5


@pytest.fixture
def island() -> Iterator[Island]:
    try:
        made = Island()
    except Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


def test_a_node_is_cut_off_and_comes_back(island: Island, world: World, faults: Any) -> None:
    # The head asks once a second, and gives a node up that has not answered five times.
    world.environment["RAY_health_check_timeout_ms"] = "1000"
    # Until long after the node is given up: it still measures when it comes back.
    words = faults.held(world, TRIALS, hold=range(TRIALS))
    # Named: where another test keeps a Ray on loopback, that is what Ray would choose.
    nodes = Nodes(world, 1, address=island.home)
    with island.inside():
        cut = nodes.add(node_ip_address=island.address)
    raylet = psutil.Process(raylet_process(cut).pid)
    driver = faults.Driver(world, faults.on_cluster(nodes, words))
    driver.start()
    faults.until(lambda: len(faults.measured(world.processes())) == 4, driver)
    hit = faults.measured(raylet.children(recursive=True))
    spared = [p for p in faults.measured(world.processes()) if p not in hit]
    assert len(hit) == len(spared) == 2
    island.cut()
    faults.until(lambda: driver.tail().count(" lost ") >= 2, driver)
    assert all(process.is_running() for process in (*hit, *spared)), "nobody has ended them"
    island.mend()
    # It learns that it was given up, and ends with all that it has.
    raylet_process(cut).wait(60)
    faults.nothing_left(world, lambda: [p for p in hit if p.is_running()])
    faults.let_go(world)
    # Whatever keeps Ray up on that host starts it again.
    with island.inside():
        nodes.add(node_ip_address=island.address)
    assert driver.wait(200) == 0, driver.tail()
    outcomes, each, open_runs = faults.recorded(world.directory / "mlruns")
    # What had not begun may have waited in a queue there, and is lost, too.
    assert 2 <= outcomes["lost"] <= 3, driver.tail()
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each)
    assert sum(not trial["lost"] for trial in each) >= 2, "the other node's trials are unharmed"
    assert open_runs == []
    assert json.loads(driver.output.read_text())["outcomes"] == {"ok": TRIALS}
    faults.nothing_left(world, lambda: faults.of_attempts(world))
    nodes.close()
