"""What is left when a supervisor or its server is killed: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.isolate.directory import sweep

pytestmark = pytest.mark.usefixtures("own_temporary")

SUPERVISOR = """
import sys
from orchestrator.attempt import PlannedAttempt, Slot, Trial
from orchestrator.isolate.isolation import Isolation

class Watch:
    def start(self, slot): pass
    def attach(self, pid): print(pid, flush=True)
    def finish(self, phases): raise AssertionError("not reached")

task = {"name": "noop", "value": 1, "sleep_s": 0, "fault": sys.argv[1]}
identity = {"task": task, "device": {"kind": "cpu", "threads": None}, "seed": 0}
spec, slot = PlannedAttempt(Trial("0" * 64, identity), attempt_id="a"), Slot("n", "h", ())
for item in Isolation(preload=()).run(spec, slot, Watch()):
    print(item.kind, flush=True)
"""


class Supervisor:
    """A supervisor in a process of its own, in the middle of an attempt that hangs."""

    def __init__(self, fault: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, fault],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": tempfile.gettempdir()},
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        self.child = int(self._process.stdout.readline())
        assert self._process.stdout.readline() == "started\n"
        assert self._process.stdout.readline() == "phase\n"
        self.server = psutil.Process(self.child).ppid()
        self.pid = self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("fault", ["hang_gil", "daemon_then_hang"])
def test_nothing_outlives_a_killed_supervisor(h: Any, fault: str) -> None:
    supervisor = Supervisor(f"{fault}:{h.sleep_s}" if fault == "daemon_then_hang" else fault)
    if fault == "daemon_then_hang":
        h.until(lambda: len(h.running_with(f"sleep\0{h.sleep_s}")) == 2)
    supervisor.kill()
    h.until(lambda: h.gone(supervisor.server) and h.gone(supervisor.child))
    assert h.running_with(f"sleep\0{h.sleep_s}") == []
    h.until(lambda: h.directories() == set())


def test_the_child_dies_with_the_server_where_nobody_else_can_kill_it(h: Any) -> None:
    supervisor = Supervisor("hang_gil")
    os.kill(supervisor.pid, signal.SIGSTOP)
    os.kill(supervisor.server, signal.SIGKILL)
    h.until(lambda: h.gone(supervisor.child))
    supervisor.kill()
    (left,) = h.directories()
    sweep(min_age_s=-1.0)
    assert left not in h.directories(), "the next supervisor removes what a killed one left"
