"""A server that fails, a driver that is killed in the middle of a load: typed, and nothing left."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines.vllm.served import ready_server
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import InputError
from testing import faults
from testing.null_server import Running, null_server
from testing.trial import make_identity, run_attempt
from testing.world import DriverProcess, World

GENERATOR = "orchestrator.tasks.serving.generator"


@pytest.fixture
def attempt() -> Iterator[Callable[..., AttemptReport]]:
    """Runs an attempt at a server; its generator must be gone when it has ended."""
    isolation = Isolation()

    def run(url: str, timeout_s: float = 120.0) -> AttemptReport:
        load = {"rate": 20.0, "arrivals": "constant", "requests": 40, "warmup_s": 0.0}
        asked = {"prompt_tokens": 4, "new_tokens": 4, **load}
        identity = make_identity(
            "source", task="serving", engine="endpoint", url=url, load="open", **asked
        )
        report = run_attempt(isolation, identity, timeout_s=timeout_s)
        assert not generators()
        return report

    try:
        yield run
    finally:
        isolation.close()


def generators() -> list[psutil.Process]:
    """Load generators below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if GENERATOR in process.cmdline():
                found.append(process)
    return found


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("does", "outcome", "reason"),
    [
        ("die", Outcome.ERROR, "the connection failed"),
        ("429", Outcome.ERROR, "it answered 429 .*: not now"),
        pytest.param("500", Outcome.ERROR, "it answered 500 .*: not now", marks=LONG),
        pytest.param("half", Outcome.OK, "the connection failed", marks=LONG),
        pytest.param("close", Outcome.OK, "the connection failed", marks=LONG),
        pytest.param("hang", Outcome.TIMEOUT, "", marks=LONG),
    ],
)
def test_a_server_that_fails_in_the_middle_of_a_load(
    attempt: Callable[..., AttemptReport], does: str, outcome: Outcome, reason: str
) -> None:
    with null_server(0.01, 0.01) as server:
        server.fails(does, after=8)
        report = attempt(server.url, timeout_s=15.0 if does == "hang" else 120.0)
        if does == "die":
            assert server.process.wait() == 1
        else:
            assert len(server.seen()) > 8, report.reason
    assert report.outcome is outcome, report.reason
    # One that still answers for a while is measured, and its failures are the verdict's to judge.
    failed = report.facts.get("requests", {}).get("failed")
    assert re.search(reason, report.reason or str(failed))
    if outcome is Outcome.OK:
        assert report.metrics["error_ratio"].value > 0.5


@pytest.mark.long
def test_a_server_that_never_answers_ends_with_the_attempts_time(
    attempt: Callable[..., AttemptReport],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        report = attempt(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=5.0)
    assert report.outcome is Outcome.TIMEOUT


_HEALTHY = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_port_that_was_taken_meanwhile_is_another_one_next_time() -> None:
    ports: list[int] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        ports.append(port)
        words = [sys.executable, "-c", _HEALTHY, str(port)]
        if len(ports) > 1:
            return subprocess.Popen(words)
        with socket.create_server(("127.0.0.1", port)):
            taken = subprocess.Popen(words, stderr=subprocess.DEVNULL)
            taken.wait()
        return taken

    server, port = ready_server(start)
    try:
        assert len(ports) == 2
        assert port == ports[1]
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


def test_a_server_that_never_comes_up_is_said() -> None:
    with pytest.raises(InputError, match="ended before it was ready"):
        ready_server(lambda port: subprocess.Popen(["false"]))


@pytest.mark.long
def test_a_driver_that_is_killed_or_interrupted_in_the_middle_of_a_load(world: World) -> None:
    model = world.directory / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 100}')
    with null_server(0.01, 0.01) as server:
        words = [
            *("task=serving", "engine=endpoint", f"engine.url={server.url}", "quant=source"),
            *("model=path", f"model.path={model}", "load=open", "load.rate=20"),
            *("load.duration_s=600", "load.warmup_s=0", "task.new_tokens=4", "device=cpu"),
            *("preflight=off", "verdict=off", "telemetry.enabled=false"),
        ]
        driver = DriverProcess(world, words)
        for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
            before = len(server.seen())
            driver.start()
            faults.until(partial(under_load, server, before), driver)
            driver.send(number)
            assert driver.wait() == code, driver.tail()
            faults.nothing_left(world)
    outcomes, _, running = faults.recorded(world.directory / "mlruns")
    assert outcomes == {"lost": 1, "cancelled": 1}
    assert running == []


def under_load(server: Running, before: int) -> bool:
    """Whether more than what is sent before a load has come."""
    return len(server.seen()) > before + 10
