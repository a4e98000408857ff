"""A node cut off from the network and back, in a network namespace of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psutil
import pytest

from testing import faults
from testing.network import Island, Unavailable
from testing.waiting import PATIENCE_S
from testing.world import DriverProcess, Nodes, World, measured, raylet_process

pytestmark = pytest.mark.long

TRIALS = 5


@pytest.fixture
def island() -> Iterator[Island]:
    try:
        made = Island()
    except Unavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


def test_a_node_is_cut_off_and_comes_back(island: Island, world: World) -> None:
    # The head asks once a second, and gives a node up that has not answered five times.
    world.environment["RAY_health_check_timeout_ms"] = "1000"
    # Until long after the node is given up: it still measures when it comes back.
    words = [f"task.value=range({TRIALS})", faults.held(world, 0)]
    # Named: where another test keeps a Ray on loopback, that is what Ray would choose.
    nodes = Nodes(world, 1, address=island.home)
    with island.inside():
        cut = nodes.add(node_ip_address=island.address)
    raylet = psutil.Process(raylet_process(cut).pid)
    driver = DriverProcess(world, faults.on_cluster(nodes, *words))
    driver.start()
    faults.until(lambda: len(measured(world.processes())) == 4, driver)
    hit = measured(raylet.children(recursive=True))
    spared = [p for p in measured(world.processes()) if p not in hit]
    assert len(hit) == len(spared) == 2
    island.cut()
    faults.until(lambda: driver.tail().count(" lost ") >= 2, driver)
    assert all(process.is_running() for process in (*hit, *spared)), "nobody has ended them"
    island.mend()
    # It learns that it was given up, and ends with all that it has.
    raylet_process(cut).wait(PATIENCE_S)
    faults.nothing_left(world, lambda: [p for p in hit if p.is_running()])
    faults.let_go(world)
    # Whatever keeps Ray up on that host starts it again.
    with island.inside():
        nodes.add(node_ip_address=island.address)
    assert driver.wait() == 0, driver.tail()
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
