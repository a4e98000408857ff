"""A cluster of several nodes and a driver: real processes, made to be killed.

Everything lives under one short directory and carries its name in the environment, so that what is
left behind can be found however it lost its parents.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.isolate.directory import PREFIX, sweep
from orchestrator.schedule.cluster.ray.aftermath import users_of
from testing.commands import environment
from testing.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parents[1]
MARK = "ORCHESTRATOR_WORLD"
MEASURED = "orchestrator.isolate.forkserver_main"
SUPERVISOR = "ray::attempt"

# A dead node is noticed in seconds and not in Ray's half minute; a slow one is left alone.
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
    # On a busy machine a node takes its time to come up.
    "RAY_raylet_start_wait_time_s": "120",
}


class World:
    """Where everything of one run lives; removed, and all its processes ended, by :meth:`close`."""

    def __init__(self) -> None:
        # Short: Ray's sockets lie below it, and their paths have at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="cw", dir="/tmp"))
        self.temporary = self.directory / "tmp"
        (self.temporary / "ray").mkdir(parents=True)  # where Ray notes its address
        self.environment = {
            **os.environ,
            **_RAY,
            MARK: str(self.directory),
            "TMPDIR": str(self.temporary),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "ORCHESTRATOR_LOCAL_DIR": str(self.local_directory("d")),
            "PYTHONPATH": str(ROOT),
        }

    def local_directory(self, name: str) -> Path:
        """A host's own directory: simulated nodes must not share their core locks."""
        path = self.directory / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def processes(self) -> list[psutil.Process]:
        """Every living process that carries the mark or has a file here open, but this one."""
        # Ray's workers overwrite their environment with their title; their logs give them away.
        users = set(users_of(str(self.directory), {os.getpid()}))
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    mark = process.environ().get(MARK)
                    if process.pid in users or mark == str(self.directory):
                        found.append(process)
        return found

    def held_directories(self) -> list[Path]:
        """Directories of attempts that a living process still holds.

        Those of a supervisor that was killed are removed by the next one, as it is done here.
        """
        sweep(self.temporary, min_age_s=0.0)
        return list(self.temporary.glob(f"{PREFIX}*"))

    def close(self) -> None:
        """End what is left, remove the files."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Nodes:
    """A head without slots and nodes of two each, all on this machine.

    Parameters
    ----------
    address : str, optional
        The head's IP address; by default Ray's choice.
    """

    def __init__(
        self, world: World, count: int, slots: int = 2, *, address: str | None = None
    ) -> None:
        self._world = world
        self._slots = slots
        self._made = 0
        self.alive: list[Any] = []
        with environment(world.environment):
            # Here: Ray reads its settings once.
            from ray.cluster_utils import Cluster

            self._cluster = Cluster(shutdown_at_exit=False)
            self._cluster.add_node(
                num_cpus=0,
                include_dashboard=False,
                temp_dir=str(world.directory / "ray"),
                **({"node_ip_address": address} if address else {}),
            )
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        """HOST:PORT for ``cluster.address``."""
        return str(self._cluster.address)

    @property
    def head(self) -> Any:
        """The head node."""
        return self._cluster.head_node

    def add(self, *, wait: bool = True, **options: Any) -> Any:
        """A node joins, as another host would; variables in capitals are of its environment."""
        self._made += 1
        local = self._world.local_directory(f"n{self._made}")
        with environment(self._world.environment):
            variables = {name: options.pop(name) for name in list(options) if name.isupper()}
            node = self._cluster.add_node(
                num_cpus=self._slots,
                wait=wait,
                env_vars={"ORCHESTRATOR_LOCAL_DIR": str(local), **variables},
                **options,
            )
        self.alive.append(node)
        return node

    def kill(self, index: int) -> None:
        """SIGKILL to the raylet of a node: the rest of it has to notice by itself."""
        node = self.alive.pop(index)
        raylet_process(node).kill()
        # Only reaps: what is ours must go without being killed here.
        raylet_process(node).wait()
        self._cluster.worker_nodes.discard(node)

    def close(self) -> None:
        """End the cluster."""
        with environment(self._world.environment), contextlib.suppress(Exception):
            self._cluster.shutdown()


def raylet_process(node: Any) -> subprocess.Popen[bytes]:
    """The raylet of a :class:`ray.cluster_utils.Cluster` node."""
    process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return process


class DriverProcess:
    """``python -m orchestrator ...``, started again and again with the same words.

    Parameters
    ----------
    name : str
        Of the files that have what it says: ``NAME.log`` and, of stdout, ``NAME.out``.
    """

    def __init__(self, world: World, words: Sequence[str], name: str = "driver") -> None:
        self._world = world
        self._words = [sys.executable, "-m", "orchestrator", *words]
        self.log = world.directory / f"{name}.log"
        self.output = world.directory / f"{name}.out"
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        self.starts += 1
        with open(self.log, "ab") as log, open(self.output, "wb") as output:
            log.write(f"--- start {self.starts}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                self._words,
                env=self._world.environment,
                cwd=self._world.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return None if self.process is None else self.process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code; kills it and fails where it does not end."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit(f"the driver did not end:\n{self.tail()}") from None

    def tail(self, count: int = 30) -> str:
        """The last lines it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


def named(processes: Sequence[psutil.Process], title: str) -> list[psutil.Process]:
    """Those whose command line begins with ``title``."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process)
    return found


def measured(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Measured processes: forks of a fork server, which bear its command line."""
    servers = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if MEASURED in process.cmdline():
                servers[process.pid] = process
    found = []
    for process in servers.values():
        with contextlib.suppress(psutil.Error):
            if process.ppid() in servers:
                found.append(process)
    return found
