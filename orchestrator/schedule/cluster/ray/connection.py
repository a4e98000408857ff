"""A connection to Ray and, for ``cluster=local``, Ray's own processes: start, end, clean up.

One thread keeps the session: it starts Ray, waits, and ends it. The kernel kills Ray's processes
when the *thread* that started them ends (``PR_SET_PDEATHSIG``), so that thread must live as long as
they do, and a driver that is killed outright takes them along.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

import orchestrator
from orchestrator.errors import ClusterError
from orchestrator.schedule.cluster.ray import aftermath
from orchestrator.schedule.cluster.ray.bare import bare_ray
from orchestrator.schedule.cluster.ray.call_thread import CallThread
from orchestrator.schedule.cluster.ray.head import Head, HeadWatch, more_patience, patience_s
from orchestrator.schedule.cluster.ray.token import MODE, TOKEN, read_variables_again, show_token
from orchestrator.schedule.cluster.ray.variables import variables
from orchestrator.schedule.supervise.cores import CORES_VARIABLE, allowed_cores, split, to_text
from orchestrator.schedule.supervise.locks import (
    local_directory,
    private_directory,
    short_directory,
)

if TYPE_CHECKING:
    from orchestrator.plan.schema import ClusterConfig

MIB = 1024**2
OBJECT_STORE_BYTES = 200 * MIB
PROBE_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 10.0
# Alive after the session's end it says that Ray does not let go (see ``stopping.leave``).
KEEPER = "ray-session"
# A path of a Unix socket has at most 107 bytes; Ray appends up to 64.
LONGEST_DIRECTORY = 40
START_ONE = "Start one with `ray start --head`, or use cluster=local"

_SMALL_BOX = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    # On Linux too this makes a cluster of one node keep to the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Else 15: what is measured would give way to whatever else the machine does.
    "RAY_worker_niceness": "0",
    # We say ourselves which GPUs a measured process sees, also when it is none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray would write one into the home directory, and a head started there later would ask for it.
    MODE: "token",
    TOKEN: secrets.token_hex(32),
}

_CODE = Path(orchestrator.__file__).resolve().parent

T = TypeVar("T")


class RayConnection:
    """Ray, connected to by the configuration ``settings``; starts at once, in the background.

    Attributes
    ----------
    calls, questions : CallThread
        For calls of Ray's that may never return; for what may need the head.
    """

    def __init__(self, settings: ClusterConfig) -> None:
        self._settings = settings
        self._up = threading.Event()
        self._end = threading.Event()
        self._error: BaseException | None = None
        self.calls, self.questions = CallThread(), CallThread()
        self._watch: HeadWatch | None = None
        self._keeper = threading.Thread(target=self._keep, name=KEEPER, daemon=True)
        self._keeper.start()
        atexit.register(self.close)

    def wait(self, timeout_s: float) -> bool:
        """Whether Ray is up within ``timeout_s``; raises :class:`ClusterError` if it cannot be."""
        if not self._up.wait(timeout_s):
            return False
        if self._error is not None:
            raise _as_cluster_error(self._error, self._settings)
        return True

    def check(self) -> None:
        """Raise :class:`ClusterError` if the cluster is no more.

        Ray would not say: calls into a dead raylet hang, and a dead head ends the driver in time.
        """
        if self._watch is not None:
            self._watch.check()
        if self._settings.kind != "local":
            return
        from ray._private import worker

        for name, process in worker._global_node.dead_processes():
            raise ClusterError(
                f"Ray's {name} died (status {process.returncode})",
                fix="The same command goes on where this one stopped",
            )

    def call(self, function: Callable[[], T]) -> T:
        """What ``function()`` (of Ray's) returns; :class:`ClusterError` where it never would."""
        return self.calls.call(function, self.check)

    def close(self) -> None:
        """End the session and, of a local cluster, every process and file; may be called twice."""
        atexit.unregister(self.close)
        self._end.set()
        self.calls.close()
        self.questions.close()
        # To leave a cluster that is gone Ray would wait for its answers.
        gone = self._watch is not None and self._watch.gone
        self._keeper.join(0.0 if gone else CLOSE_TIMEOUT_S)

    def _keep(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                if self._settings.kind == "local":
                    try:
                        _start_local(self._settings, stack)
                    except OSError:
                        # One of Ray's many processes did not start (EFAULT, EAGAIN); the next may.
                        stack.close()
                        _start_local(self._settings, stack)
                else:
                    # Ray reads its settings once, when they are first asked for.
                    with variables(more_patience(), over_rays=True):
                        _connect(self._settings, stack)
                    # Without what it asks with (an older Ray), Ray ends us in its own time.
                    with contextlib.suppress(ImportError):
                        self._watch = stack.enter_context(contextlib.closing(_watch()))
            except BaseException as error:
                self._error = error
                return
            finally:
                self._up.set()
            self._end.wait()


def _start_local(settings: ClusterConfig, stack: contextlib.ExitStack) -> None:
    directory = stack.enter_context(_session_directory())
    stack.enter_context(_aftermath(directory))
    cores = split(allowed_cores(), settings.cpus)
    if cores.ours:
        # Of this thread alone: the processes it starts inherit it, the driver stays where it is.
        os.sched_setaffinity(0, cores.ours)
    uuids = _gpu_uuids(settings.gpus)
    environment = {
        **_SMALL_BOX,
        CORES_VARIABLE: to_text(cores.measured),
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(_CODE.parent), os.environ.get("PYTHONPATH")))
        ),
        "CUDA_VISIBLE_DEVICES": ",".join(uuids),
    }
    if not uuids and settings.gpus:
        del environment["CUDA_VISIBLE_DEVICES"]  # logical GPUs, for trying a sweep without any
    with variables(environment):
        ray = _import_ray(loopback=True)
        read_variables_again()
        stack.callback(ray.shutdown)
        with bare_ray():
            ray.init(
                address="local",
                num_cpus=settings.cpus or len(cores.measured),
                num_gpus=len(uuids) if settings.gpus is None else settings.gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(directory),
            )


def _connect(settings: ClusterConfig, stack: contextlib.ExitStack) -> None:
    address = settings.address or "auto"
    if address.startswith("ray://"):
        raise ClusterError(
            "Ray Client addresses cannot stream results",
            where=f"cluster.address={address}",
            fix="Give the head's host:6379, or submit with `ray job submit` and address auto",
        )
    ray = _import_ray(loopback=False)
    if address == "auto":
        address = _found_here()
    host, port = _parse(address)
    if error := _refusal(host, port):
        raise ClusterError(
            f"no Ray head answers ({error})", where=f"cluster.address={address}", fix=START_ONE
        )
    show_token(address, stack)
    # Ray takes 127.0.0.1 for "this host" and goes to its outward address. A cluster that keeps
    # to the loopback interface, as our local one does, is not there.
    if _is_loopback(host) and _refusal(ray.util.get_node_ip_address(), port):
        ray = _import_ray(loopback=True)
    stack.callback(ray.shutdown)
    ray.init(
        address=address,
        runtime_env=code_environment(),
        log_to_driver=False,
        configure_logging=False,
    )


def _found_here() -> str:
    """HOST:PORT of the cluster that RAY_ADDRESS names, or that has a node on this host."""
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except ConnectionError:
        raise ClusterError(
            "no node of a Ray cluster runs on this host",
            where="cluster.address=auto",
            fix="Start one with `ray start --head`, or give cluster.address=HOST:6379",
        ) from None


def _watch() -> HeadWatch:
    """Somebody who looks after the cluster that was joined."""
    import ray

    context = ray.get_runtime_context()
    own = context.get_node_id()
    raylet = None
    for node in ray.nodes():
        if node["NodeID"] == own:
            raylet = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return HeadWatch(Head(context.gcs_address), raylet, silence_s=patience_s())


def code_environment() -> dict[str, Any]:
    """The runtime environment that carries this program's code, and nothing else, to the nodes.

    Modules and not a working directory: that one belongs to whoever submitted the job.
    """
    modules = [_CODE]
    beside = _CODE.parent / "conf"
    if beside.is_dir():
        modules.append(beside)
    return {
        "py_modules": [str(module) for module in modules],
        "excludes": ["__pycache__", "*.pyc", "mlruns", ".venv", ".git"],
    }


def _import_ray(*, loopback: bool) -> Any:
    import ray
    from ray._private import ray_constants, worker

    # After the import, which sets it: what a person needs to know of Ray's, we say.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    # Read once, when ray was imported: by then it may have been meant otherwise.
    ray_constants.ENABLE_RAY_CLUSTER = not loopback
    # Ray prints a line on stdout for every worker that dies; stdout is for data, and the driver
    # says what was lost.
    worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _gpu_uuids(wanted: int | None) -> list[str]:
    """The GPUs a local cluster gets: those this process may see, at most ``wanted``."""
    if wanted == 0:
        return []
    from orchestrator.telemetry.device import devices, resolve_visible

    seen = resolve_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), devices())
    uuids = [device.uuid for device in seen]
    if wanted is not None and wanted > len(uuids):
        return []
    return uuids[:wanted]


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            "is neither auto nor host:port", where=f"cluster.address={address}", fix="HOST:6379"
        )
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _refusal(host: str, port: int) -> OSError | None:
    """Why nothing answers there; None where something does."""
    try:
        socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def _session_directory() -> Iterator[Path]:
    """A directory for Ray's logs and sockets, removed at the end; those of dead drivers too."""
    parent = local_directory() / "ray"
    if len(str(parent)) > LONGEST_DIRECTORY - 12:
        parent = short_directory() / "ray"
    private_directory(parent)
    remove_stale(parent)
    lock = FileLock(parent / f"{os.getpid()}.lock", mode=0o600, thread_local=False)
    lock.acquire(timeout=5)  # another driver may be looking whether it is stale
    directory = parent / str(os.getpid())
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextlib.contextmanager
def _aftermath(directory: Path) -> Iterator[None]:
    """Whatever becomes of this process: nothing that uses ``directory`` outlives it for long."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", aftermath.__file__, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert watcher.stdin is not None
    try:
        yield
    finally:
        watcher.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            watcher.wait(CLOSE_TIMEOUT_S)


def remove_stale(parent: Path) -> None:
    """Remove the directories of drivers that no longer hold their lock."""
    for path in parent.glob("*.lock"):
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)
        lock.release()


def _as_cluster_error(error: BaseException, settings: ClusterConfig) -> ClusterError:
    if isinstance(error, ClusterError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = lines[0] if lines else type(error).__name__
    if settings.kind == "local":
        return ClusterError(f"Ray cannot be started: {what}", fix="python -m orchestrator doctor")
    where = f"cluster.address={settings.address or 'auto'}"
    return ClusterError(f"cannot join the Ray cluster: {what}", where=where, fix=START_ONE)
