"""A sweep submitted with `ray job submit` to a cluster with a token, results on a server."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.record import open_store
from testing.servers import TrackingServer
from testing.world import World

# Jobs take Ray's dashboard and its agents half a minute.
pytestmark = pytest.mark.long

RAY = (sys.executable, "-m", "ray.scripts.scripts")
LONGEST_S = 120


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        # As on a cluster's nodes: `python` is the environment's, nobody's checkout is on its path.
        made.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "c" * 32,
        }
        del made.environment["PYTHONPATH"]
        yield made


@pytest.fixture
def dashboard(world: World) -> str:
    """Address of the dashboard of a cluster of one node, which ends with ``world``."""
    log = world.directory / "head.log"
    with open(log, "wb") as out:
        # Not --block: that ends with the server for Ray Client, which has one port on a host.
        started = subprocess.run(
            [
                *(*RAY, "start", "--head", "--disable-usage-stats", "--num-cpus=2"),
                *("--port=0", "--dashboard-port=0", "--dashboard-agent-listen-port=0"),
                f"--temp-dir={world.directory}/ray",
            ],
            env=world.environment,
            cwd=world.directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            timeout=LONGEST_S,
        )
    said = log.read_text()
    assert started.returncode == 0, said
    found = re.search(r"RAY_API_SERVER_ADDRESS='(http://\S+)'", said)
    assert found, said
    return found[1]


def submitted(
    world: World, dashboard: str, checkout: Path, uri: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(*RAY, "job", "submit", "--address", dashboard, "--working-dir", str(checkout), "--"),
            *("python", "-m", "orchestrator", "task=noop", "task.value=1,2", "protocol=mine"),
            *("device=cpu", "cluster=ray", "tracking=server", f"tracking.uri={uri}"),
            *("telemetry.enabled=false", "preflight=off"),
        ],
        env=world.environment,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
    )


def test_a_submitted_sweep_runs_with_its_checkout(
    world: World, dashboard: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TrackingServer(world.directory / "mlflow", world.environment)
    done = submitted(world, dashboard, checkout, server.uri)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "adhoc: 2 ok in" in done.stdout
    # What is spooled meanwhile is this test's, and not the person's.
    monkeypatch.setenv("XDG_STATE_HOME", world.environment["XDG_STATE_HOME"])
    store = open_store({"kind": "server", "uri": server.uri})
    reports = [store.load(s.run_id) for group in store.attempts().values() for s in group]
    values = sorted(report.metrics["value"].value for report in reports)
    assert values == [1001, 1002], "the task of the checkout was measured"
    assert {report.slot.host for report in reports if report.slot} == {socket.gethostname()}
    # The command fails where the sweep fails, and says what it said.
    server.kill()
    done = submitted(world, dashboard, checkout, server.uri)
    assert done.returncode != 0, done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) == 1, done.stdout  # Ray says the end of the log again
    assert server.uri in errors[0]
    assert "Traceback" not in done.stdout


def test_a_job_without_the_token_is_refused(world: World, dashboard: str, checkout: Path) -> None:
    world.environment["RAY_AUTH_TOKEN"] = "d" * 32
    done = submitted(world, dashboard, checkout, "http://127.0.0.1:1")
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
    assert "adhoc" not in done.stdout
