"""The driver and Ray's own processes killed in earnest: what is left, what is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from testing.faults import shared_memory_nobody_has
from testing.waiting import PATIENCE_S, until

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import json, os, signal, sys, threading, time
sys.path.insert(0, {root!r})
from types import SimpleNamespace
from orchestrator.attempt import Resources
from orchestrator.plan.schema import ClusterConfig, Settings, TelemetryConfig
from orchestrator.attempt import Trial
from orchestrator.schedule.cluster.ray.cluster import PendingCluster, emergency_stop
from orchestrator.schedule.driver import run_sweep
from orchestrator.attempt import PlannedAttempt

stop = threading.Event()

def on_signal(number, frame):
    if stop.is_set():
        emergency_stop()
        os._exit(130)
    stop.set()

signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal)

def say(*words):
    print(json.dumps(words), flush=True)

class Port:
    def submit(self, spec): pass
    def withdraw(self, attempt_id): pass
    def begin(self, spec, slot): pass
    def submitted(self, spec): pass
    def message(self, text): say("message", text)
    def started(self, spec, slot): say("started", spec.attempt_id)
    def phase(self, spec, name): say("phase", name)
    def finish(self, report, trial): say("finish", report.outcome.value, report.facts.get("pid"))
    def finished(self, report, trial): pass

def trial(value):
    identity = {{"schema": 1, "task": {{"name": "noop", "value": value, "sleep_s": {sleep_s}}},
                 "model": {{}}, "quant": {{}}, "protocol": {{}},
                 "device": {{"kind": "cpu", "threads": None}}, "seed": 0}}
    return Trial(f"{{value:064x}}", identity, resources=Resources(cpus=1), timeout_s=120)

settings = Settings(
    cluster=ClusterConfig(cpus=2, gpus=0), telemetry=TelemetryConfig(enabled=False)
)
plan = SimpleNamespace(sweep="faults", settings=settings, trials=())
with PendingCluster(settings.cluster) as cluster:
    say("starting")
    result = run_sweep(plan, [PlannedAttempt(trial(i)) for i in range({trials})], recording=Port(),
                       view=Port(), seed=0, stop=stop, cluster=cluster)
say("done", dict(result.outcomes), result.interrupted, result.unmade)
"""


class Driver:
    """A driver in a process of its own, with everything it starts."""

    def __init__(self, directory: Path, *, trials: int = 4, sleep_s: float = 60.0) -> None:
        local = directory / "local"
        local.mkdir(mode=0o700)
        self.mark = str(local)
        script = textwrap.dedent(DRIVER).format(root=str(ROOT), trials=trials, sleep_s=sleep_s)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "ORCHESTRATOR_LOCAL_DIR": self.mark, "ORCHESTRATOR_MARK": self.mark},
            # A group of its own, as a terminal's foreground group: Ctrl-C reaches all in it.
            start_new_session=True,
        )

    def wait_for(self, word: str) -> list[Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: list[Any] = json.loads(line)
            if said[0] == word:
                return said
        assert self.process.stderr is not None
        raise AssertionError(f"never said {word}: {self.process.stderr.read()}")

    def wait_for_process(self, name: str) -> None:
        until(lambda: any(p.name() == name for p in _descendants(self.process.pid) if _runs(p)))

    def family(self) -> set[psutil.Process]:
        """Every process this driver has started, and whatever has its environment or files."""
        found = set()
        for process in psutil.process_iter():
            try:
                if process.environ().get("ORCHESTRATOR_LOCAL_DIR") == self.mark:
                    found.add(process)
            except psutil.Error:
                continue
        return found | set(_descendants(self.process.pid))

    def wait_until_nothing_is_left(self, before: set[psutil.Process]) -> None:
        """No process of its own, no shared memory of nobody's, no session directory of Ray's."""

        def left() -> list[object]:
            pattern = f"orchestrator-*/ray/{self.process.pid}"  # its name is the driver's pid
            processes = [p for p in before | self.family() if _runs(p)]
            return [*processes, *Path("/tmp").glob(pattern), *shared_memory_nobody_has()]

        until(lambda: not left(), said=left)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    started = Driver(tmp_path)
    yield started
    for process in started.family():
        if _runs(process):
            process.kill()
    started.process.kill()
    started.process.wait()


def test_ctrl_c_ends_everything_with_its_records(driver: Driver) -> None:
    driver.wait_for("phase")
    family = driver.family()
    assert len(family) > 5, "Ray, workers, fork servers, children"
    # As a terminal does it: to the whole foreground group.
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.wait_for("finish")[1] == "cancelled"
    _, outcomes, interrupted, unmade = driver.wait_for("done")
    assert interrupted
    assert set(outcomes) == {"cancelled"}
    assert outcomes["cancelled"] + unmade == 4
    assert driver.process.wait(PATIENCE_S) == 0
    driver.wait_until_nothing_is_left(family)
    assert driver.process.stderr is not None
    assert driver.process.stderr.read() == ""


def test_a_second_ctrl_c_is_out_at_once(driver: Driver) -> None:
    driver.wait_for("phase")
    family = driver.family()
    driver.process.send_signal(signal.SIGINT)
    driver.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    if driver.process.poll() is None:
        driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(PATIENCE_S) in (0, 130)
    driver.wait_until_nothing_is_left(family)


# While it measures, with all that it records: test_faults_driver.py.
@pytest.mark.long
@pytest.mark.parametrize("when", ["gcs_server", "raylet", "measuring"])
def test_a_killed_driver_takes_everything_along(driver: Driver, when: str) -> None:
    if when == "measuring":
        driver.wait_for("phase")
    else:
        driver.wait_for_process(when)
    family = driver.family()
    driver.process.kill()
    driver.process.wait()
    driver.wait_until_nothing_is_left(family)


def test_terminated_before_the_cluster_is_up(driver: Driver) -> None:
    driver.wait_for("starting")
    driver.process.send_signal(signal.SIGTERM)
    assert driver.process.wait(PATIENCE_S) == 1
    assert driver.process.stderr is not None
    assert "Interrupted" in driver.process.stderr.read()
    driver.wait_until_nothing_is_left(set())


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.long)])
def test_a_dead_ray_ends_the_sweep_with_its_books_closed(driver: Driver, name: str) -> None:
    driver.wait_for("phase")
    family = driver.family()
    (part,) = [p for p in family if p.name() == name]
    part.kill()
    assert driver.wait_for("finish")[1] == "lost"
    assert driver.process.wait(PATIENCE_S) == 1
    assert driver.process.stderr is not None
    said = driver.process.stderr.read()
    assert f"ClusterError: Ray's {name} died" in said
    driver.wait_until_nothing_is_left(family)
