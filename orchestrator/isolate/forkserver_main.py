"""The warm fork server: imports once, then forks one measured process per request.

Its words are ``CONTROL_FD SUPERVISOR_PID PRELOAD_JSON``. It has one thread, runs no torch operation
and never initialises CUDA, so that forking it is safe and cheap::

    supervisor --- control channel --- server (subreaper) --- child (own session) --- descendants

Whoever dies takes everything to its right along: the server learns of its supervisor by the closed
channel and by a parent-death signal, the child of the server by SIGKILL from the kernel.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.host.processes import descendants
from orchestrator.isolate import child, linux, wire
from orchestrator.isolate.variables import python_module

# The supervisor's *thread* may end while the process lives on, and the kernel signals that too.
# So the signal asks a question, and only the answer "my parent is another now" ends the server.
_PARENT_SIGNAL = signal.SIGUSR1
_CLEAN_UP_S = 10.0
_GRACE_S = 0.25
_GRACED_PROCESSES = 32


class Server:
    """Serves one supervisor, one child at a time.

    Parameters
    ----------
    control : socket
        Our end of the control channel.
    supervisor : int
        Process id of the supervisor.
    """

    def __init__(self, control: socket.socket, supervisor: int) -> None:
        self._control = control
        self._supervisor = supervisor
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._leaving = False
        self._child: int | None = None
        self._status: int | None = None
        self._usage: Any = None
        self._strays = 0
        self._directory: Path | None = None

    def listen_to_signals(self) -> None:
        """From here on signals are answered in :meth:`serve`, not by death."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(_PARENT_SIGNAL, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _on_terminate(self, *_: object) -> None:
        self._leaving = True

    def serve(self) -> NoReturn:
        """Answer requests until the supervisor is gone."""
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                else:
                    self._answer()
            if self._leaving or os.getppid() != self._supervisor:
                self._leave()
            self._reap()
            if self._status is not None:
                self._finish()

    def _answer(self) -> None:
        received = wire.receive(self._control)
        if received is None:
            self._leaving = True
            return
        message, descriptors = received
        try:
            if message["op"] == "start":
                self._start(message, descriptors)
            elif message["op"] == "kill" and self._child is not None:
                self._clean_up(_GRACE_S if message["grace"] else 0.0)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, message: dict[str, Any], descriptors: list[int]) -> None:
        self._directory = Path(message["job"]).parent
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"e": "unforked", "reason": str(error), "errno": error.errno})
            return
        if pid == 0:
            self._become_child(server, message, descriptors)
        self._child, self._status, self._usage, self._strays = pid, None, None, 0
        self._say({"e": "forked", "pid": pid})

    def _become_child(
        self, server: int, message: dict[str, Any], descriptors: list[int]
    ) -> NoReturn:
        """Turn a fresh fork into a measured process; nothing may return into the server's loop."""
        try:
            linux.die_with_parent(server)
            os.setsid()
            signal.set_wakeup_fd(-1)
            for signum in (signal.SIGCHLD, signal.SIGTERM, _PARENT_SIGNAL):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Held open here, the channel would hide the server's death from the supervisor.
            self._control.close()
            os.close(self._wake)
            os.close(self._waker)
            result, log = descriptors
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            pipe = child.ResultPipe(result)
            try:
                job = child.read_job(message["job"])
                child.take_slot(job)
                if message["start"] == "spawn":
                    os.set_inheritable(result, True)
                    command = python_module("orchestrator.isolate.child")
                    os.execv(sys.executable, [*command, message["job"], str(result)])
            except Exception as error:
                outcome = child.classify(error)
                pipe.end(outcome, f"cannot take the slot: {error}", traceback.format_exc())
                os._exit(1)
            child.run_job(job, pipe)
        finally:
            os._exit(1)

    def _reap(self) -> bool:
        """Wait for whoever has ended; True while any child is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._status, self._usage = status, usage

    def _finish(self) -> None:
        self._clean_up()
        if self._status is None:
            return
        self._say(
            {
                "e": "exit",
                "status": self._status,
                "max_rss_bytes": self._usage.ru_maxrss * 1024,
                "cpu_s": self._usage.ru_utime + self._usage.ru_stime,
                "strays": self._strays,
                "stuck": descendants(os.getpid()),
            }
        )
        self._child = self._status = self._directory = None

    def _clean_up(self, grace_s: float = _GRACE_S) -> None:
        """Kill every descendant and wait for all of them; most often there is none.

        The child goes first. What it leaves has ``grace_s`` to follow by itself: Python's resource
        tracker removes shared memory of the dead then, and nobody else would.
        """
        now_s = time.monotonic()
        graced_s, deadline_s = now_s + grace_s, now_s + _CLEAN_UP_S
        pause_s = 0.0005
        known: set[int] = set()
        if self._child is not None and self._status is None:
            linux.kill_quietly(self._child)
        while self._reap() and time.monotonic() < deadline_s:
            found = descendants(os.getpid())
            if time.monotonic() > graced_s or len(found) > _GRACED_PROCESSES:
                # Groups first, which no fork can slip out of; then whoever is in none but its own.
                for group in {linux.group_of(pid) for pid in found} - {None, os.getpgrp()}:
                    linux.kill_group_quietly(group or 0)
                for pid in found:
                    linux.kill_quietly(pid)
                known.update(found)
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)
        self._strays += len(known - {self._child})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            wire.send(self._control, message)
        except OSError:
            self._leaving = True
            os.write(self._waker, b"\0")

    def _leave(self) -> NoReturn:
        self._clean_up()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(0)


def main(arguments: list[str]) -> NoReturn:
    """Adopt, import, say whether forking is safe, serve."""
    control = socket.socket(fileno=int(arguments[0]))
    supervisor = int(arguments[1])
    # Until the imports are done this signal simply kills: they may hang where no handler runs.
    linux.die_with_parent(supervisor, _PARENT_SIGNAL)
    linux.adopt_orphans()
    try:
        gc.disable()
        child.import_modules(json.loads(arguments[2]))
        gc.disable()
        gc.freeze()
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        trace = traceback.format_exc()[-30_000:]
        with contextlib.suppress(OSError):
            wire.send(control, {"e": "unfit", "reason": reason[:2000], "traceback": trace})
        os._exit(1)
    server = Server(control, supervisor)
    server.listen_to_signals()
    threads = len(os.listdir("/proc/self/task"))
    with contextlib.suppress(OSError):
        wire.send(control, {"e": "ready", "threads": threads, "cuda": holds_cuda()})
    server.serve()


def holds_cuda() -> bool:
    """Whether this process has initialised CUDA: only that opens the unified-memory device."""
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(entry.path) == "/dev/nvidia-uvm":
                return True
    return False
