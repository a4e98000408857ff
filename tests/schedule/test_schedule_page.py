"""The commands of docs/cluster.md, run as the page has them: two Ray nodes on this host, a token.

Only places and ports are replaced, and the sweep by one that measures nothing: that the page's own
can be planned is the business of tests/docs.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.record import open_store
from orchestrator.schedule.cluster.ray.token import FIX
from testing.servers import TrackingServer
from testing.world import World

# Two nodes with agents and a dashboard take a minute to start; tests/faults has two nodes as well.
pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 120
NOOP = "task=noop task.value=1,2,3,4 device=cpu telemetry.enabled=false preflight=off"


@dataclass(frozen=True)
class Cluster:
    """What the page's commands started."""

    world: World
    address: str
    dashboard: str


def page(word: str) -> str:
    """The one block of commands of the page that has ``word``."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (found,) = (b for b in re.findall(r"^```bash\n(.*?)^```$", text, re.M | re.S) if word in b)
    return str(found)


def run(
    world: World, line: str, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    # To files: a pipe would stay open in the daemons that a command leaves behind.
    with open(world.directory / "out", "w+") as out, open(world.directory / "err", "w+") as err:
        done = subprocess.run(
            ["bash", "-ec", line],
            env={**world.environment, **more},
            cwd=cwd or world.directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=LONGEST_S,
        )
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(line, done.returncode, out.read(), err.read())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The cluster of the page's commands."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    with World() as world:
        home = world.local_directory("home")
        world.environment |= {
            "HOME": str(home),
            # As on a cluster's nodes: `python` is the environment's, nobody's checkout on its path.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        del world.environment["PYTHONPATH"]
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
            world.environment.pop(name, None)
        lines = []
        for line in page("ray start --head").splitlines():
            command, _, _host = (
                line.replace("HEAD", "127.0.0.1").replace("6379", str(port)).partition("#")
            )
            if "ray start" in command:
                # Each node has core locks of its own, as a host has.
                local = world.local_directory(f"n{len(lines)}")
                lines.append(f"export ORCHESTRATOR_LOCAL_DIR={local}")
                ports = "--dashboard-port=0" if "--head" in command else ""
                command += f" --num-cpus=2 --dashboard-agent-listen-port=0 {ports}"
            lines.append(command)
        started = run(world, "\n".join(lines))
        assert started.returncode == 0, started.stdout + started.stderr
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
        said = started.stdout + started.stderr
        dashboard = re.search(r"RAY_API_SERVER_ADDRESS='(http://\S+?)'", said)
        assert dashboard, said
        yield Cluster(world, f"127.0.0.1:{port}", dashboard[1])


def sweep(cluster: Cluster, line: str, store: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The page's command, on the checkout under test and with a store of its own."""
    line, _, _ = line.replace("HEAD:6379", cluster.address).partition("#")
    assert "+sweep=quant" in line
    line = line.replace("+sweep=quant", f"{NOOP} tracking.root={store} --json")
    return run(cluster.world, line, PYTHONPATH=str(ROOT), **more)


def test_the_sweep_uses_both_nodes(cluster: Cluster) -> None:
    for number, line in enumerate(page("cluster.address=HEAD:6379").splitlines()):
        store = str(cluster.world.directory / f"both-{number}")
        done = sweep(cluster, line.replace("+sweep", "task.sleep_s=1 +sweep"), store)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["outcomes"] == {"ok": 4}
        assert "gcs_client" not in done.stderr, "what Ray warns of"
        attempts = open_store({"kind": "embedded", "root": store})
        reports = [attempts.load(s.run_id) for g in attempts.attempts().values() for s in g]
        assert len({report.slot.node_id for report in reports if report.slot}) == 2
    # Each node is asked whether it could measure the same again.
    again = sweep(cluster, line.replace("+sweep", "task.sleep_s=1 +sweep"), store)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["cached"] == 4


def test_results_on_this_host_alone_are_refused_with_the_fix(cluster: Cluster) -> None:
    words = f"{NOOP} cluster=ray cluster.address={cluster.address} tracking.root=refused"
    done = run(cluster.world, f"python -m orchestrator {words}", PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: tracking=embedded: ")
    assert "2 nodes" in last
    assert "tracking=server tracking.uri=" in last
    assert "tracking.local_on_cluster=true" in last


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"RAY_AUTH_TOKEN": "b" * 32}, "the head rejects the token in RAY_AUTH_TOKEN. "),
        ({"HOME": "/nowhere"}, "the head requires a token; none in /nowhere/.ray/auth_token. "),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "none in RAY_AUTH_TOKEN_PATH=/nowhere. ",
        ),
        (
            {"RAY_AUTH_MODE": "disabled"},
            "the head requires a token, and RAY_AUTH_MODE=disabled uses none. Type",
        ),
    ],
    ids=["wrong", "none", "no file", "disabled"],
)
def test_a_wrong_token_is_one_line(cluster: Cluster, case: dict[str, str], said: str) -> None:
    line = page("cluster.address=HEAD:6379").splitlines()[0]
    done = sweep(cluster, line, str(cluster.world.directory / "none"), **case)
    assert done.returncode == 2, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("adhoc: "))
    assert error.startswith(f"error: cluster.address={cluster.address}: the head "), error
    assert said in error
    assert FIX in error or "RAY_AUTH_MODE" in case
    assert "b" * 32 not in done.stderr


def submitted(
    cluster: Cluster, checkout: Path, uri: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """The page's submission, from ``checkout``, with results on the server at ``uri``."""
    line = page("ray job submit").replace("http://HEAD:8265", cluster.dashboard)
    line = line.replace("http://HOST:5000", shlex.quote(uri))
    words = f"{NOOP} protocol=mine".replace("1,2,3,4", "1,2")
    # What the page exports for the node is exported in the shell that submits.
    more = {"RAY_AUTH_MODE": "token", **more}
    return run(cluster.world, line.replace("+sweep=quant", words), cwd=checkout, **more)


# Jobs take Ray's dashboard and its agents half a minute.
def test_a_submitted_sweep_runs_with_its_checkout(
    cluster: Cluster, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = cluster.world
    server = TrackingServer(world.directory / "mlflow", world.environment)
    done = submitted(cluster, checkout, server.uri)
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
    done = submitted(cluster, checkout, server.uri)
    assert done.returncode != 0, done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) == 1, done.stdout  # Ray says the end of the log again
    assert server.uri in errors[0]
    assert "Traceback" not in done.stdout


def test_a_job_without_the_token_is_refused(cluster: Cluster, checkout: Path) -> None:
    done = submitted(cluster, checkout, "http://127.0.0.1:1", RAY_AUTH_TOKEN="d" * 32)
    assert done.returncode != 0
    assert "token" in (done.stdout + done.stderr).lower()
    assert "adhoc" not in done.stdout
