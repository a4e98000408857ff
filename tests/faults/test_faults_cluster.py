"""Nodes of a joined cluster frozen and killed; a wrong token."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
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
    hit = measured_on(victim)
    nodes.kill(1)
    faults.nothing_left(world, lambda: [p for p in hit if p.is_running()])
    nodes.add()
    faults.let_go(world)
    assert driver.wait() == 0, driver.tail()
    assert json.loads(driver.output.read_text())["outcomes"] == {"ok": TRIALS}
    outcomes, each, open_runs = faults.recorded(world.directory / "mlruns")
    # What the dead node held (one more may have waited in its queue); the frozen one lost nothing.
    assert 2 <= outcomes["lost"] <= 3, outcomes
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each)
    assert open_runs == []
    faults.nothing_left(world, lambda: faults.of_attempts(world))
    nodes.close()


def test_a_wrong_token_is_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    with World() as world:
        guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}
        # In a process of its own: Ray reads its token once.
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", "--num-cpus=1", "--include-dashboard=false"),
                *("--disable-usage-stats", f"--temp-dir={world.directory}/ray"),
            ],
            env={**world.environment, **guarded},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while True:
            assert head.poll() is None, "the head did not come up"
            with contextlib.suppress(OSError), socket.create_connection((_address(), port), 1):
                break
            time.sleep(0.1)
        world.environment |= {**guarded, "RAY_AUTH_TOKEN": "b" * 32}
        driver = DriverProcess(
            world,
            ["task=noop", "device=cpu", "cluster=ray", f"cluster.address={_address()}:{port}"],
        )
        driver.start()
        assert driver.wait() == 2, driver.tail()
        said = driver.tail()
        assert "RAY_AUTH_TOKEN" in said, said
        assert "Traceback" not in said
        assert "b" * 32 not in said
        head.terminate()
        head.wait(30)


def _address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())
