"""Follows one attempt from outside: limits, progress, and at last its report.

::

    launch ── server warm? ── fork ── "started" ── task ── "end" ── all processes gone ── report
       └──────── start timeout ────────────┘ └── timeout, memory limit ──┘
                               (cancel, at any point)

It waits on descriptors with a timeout and never spins: on two cores a spinning parent takes half
the machine from what it measures.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.attempt import AttemptReport, Observations, Outcome, PlannedAttempt, Slot
from orchestrator.environments.build import built, is_built
from orchestrator.environments.uv import Cancelled
from orchestrator.errors import TaskError
from orchestrator.host.cgroup import oom_kills
from orchestrator.host.cpu import usable_cores
from orchestrator.isolate import linux
from orchestrator.isolate.cancel import Cancel
from orchestrator.isolate.directory import LOG_NAME, AttemptDirectory
from orchestrator.isolate.ending import Ending, judge_ending, judge_fork_failure, log_tail
from orchestrator.isolate.forkserver import ForkServer, ServerGone
from orchestrator.isolate.ledger import End, Ledger, Progress
from orchestrator.isolate.memory_watch import MemoryWatch
from orchestrator.isolate.observer import AttemptObserver
from orchestrator.isolate.variables import (
    ATTEMPT_VARIABLE,
    attempt_environment,
    redact,
)
from orchestrator.measure.metric import ATTEMPT, Absent, Metric, Phase, Value
from orchestrator.measure.wording import gib

TICK_S = 0.1
# How long a child may take to leave after its last word, and the server to bury it.
LEAVE_S = 10.0
BURY_S = 12.0
DIE_S = 2.0  # for what SIGKILL was sent to; a driver may hold it a moment in the kernel
_PIPE_BYTES = 1 << 20

T = TypeVar("T")


class Supervision:
    """One attempt under way.

    Parameters
    ----------
    attempt, slot : PlannedAttempt, Slot
        What to run and where.
    preload : tuple of str
        What the child needs imported.
    server : callable
        Gives the warm server of a Python, None for this one; called again where one turned out to
        be dead.
    cancel : Cancel
        Raised by whoever wants the attempt ended.
    watch : AttemptObserver or None
        Telemetry.
    secrets : list of str
        Values that must not appear in what is reported.
    """

    def __init__(
        self,
        attempt: PlannedAttempt,
        slot: Slot,
        *,
        preload: tuple[str, ...],
        server: Callable[[Path | None], ForkServer],
        cancel: Cancel,
        watch: AttemptObserver | None,
        secrets: list[str],
    ) -> None:
        self._attempt = attempt
        self._slot = slot
        self._preload = preload
        self._new_server = server
        self._cancel = cancel
        self._watch = watch
        self._watch_error: str | None = None
        self._watched: Observations | None = None
        self._secrets = secrets
        self._ledger = Ledger()
        self._facts: dict[str, Any] = {"start": attempt.start, "preload": list(preload)}
        self._server: ForkServer | None = None
        self._server_failure: str | None = None
        self._stop: End | None = None
        self._trace: str | None = None
        self._directory: AttemptDirectory | None = None
        self._result = -1
        self._pid: int | None = None
        self._exit: dict[str, Any] | None = None
        self._memory: MemoryWatch | None = None
        self._started_at = time.time()
        self._began_s = time.monotonic()
        self._deadline_s = self._began_s + attempt.start_timeout_s
        self._bury_by_s: float | None = None
        self._oom_kills_before = oom_kills()

    def follow(self) -> Iterator[Progress | AttemptReport]:
        """Run the attempt; yields progress, then the report. Leaves no process, however it ends."""
        try:
            self._observe(lambda watch: watch.start(self._slot))
            try:
                self._launch()
            except Cancelled:
                self._stop = End(Outcome.CANCELLED, "cancelled")
            except TaskError as error:
                self._stop = End(Outcome(error.outcome), str(error))
            except OSError as error:
                self._stop = End(Outcome.ERROR, f"cannot prepare the attempt: {error}")
            if self._pid is not None:
                yield from self._supervise()
            report = self._report()
        finally:
            self._leave_nothing()
        yield report

    # -- launch --------------------------------------------------------------------------------

    def _launch(self) -> None:
        self._directory = directory = AttemptDirectory()
        directory.write_job(self._job(directory))
        python = self._python()
        for attempts_left in (1, 0):
            self._server = server = self._new_server(python)
            self._result, theirs = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self._result, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._result, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            try:
                if self._warm(server):
                    server.start_child(
                        str(directory.job), self._attempt.start, theirs, directory.log
                    )
                    self._take_fork(self._wait_for_message(server))
                return
            except ServerGone as gone:
                # Nothing has run yet: a server found dead costs a new one, not the attempt.
                if not attempts_left:
                    self._stop = End(Outcome.ERROR, f"cannot start a process: {gone}")
                os.close(self._result)
                self._result = -1
            finally:
                os.close(theirs)

    def _python(self) -> Path | None:
        """The Python of the trial's environment, built first where this node lacks it."""
        environment = self._attempt.trial.identity.get("environment")
        if environment is None:
            return None
        missing, begin_ns = not is_built(environment), time.perf_counter_ns()
        python = built(environment, self._cancel.is_set)
        if missing:
            end_ns = time.perf_counter_ns()
            self._ledger.phases.append(Phase("environment", begin_ns, end_ns, measured=False))
            self._deadline_s = time.monotonic() + self._attempt.start_timeout_s
        return python

    def _job(self, directory: AttemptDirectory) -> dict[str, Any]:
        cpus = sorted(self._slot.cpus)
        device = self._attempt.trial.identity.get("device") or {}
        threads = device.get("threads") or len(cpus or usable_cores())
        self._facts["threads"] = threads
        return {
            "identity": self._attempt.trial.measured,
            "preload": self._preload,
            "cpus": cpus,
            "threads": threads,
            "artifacts": str(directory.artifacts),
            "environment": attempt_environment(
                self._slot, threads, self._attempt.attempt_id, directory.temporary
            ),
        }

    def _warm(self, server: ForkServer) -> bool:
        """Wait until the server has imported; False where it cannot be used."""
        if server.ready is None:
            message = self._wait_for_message(server)
            if message is None:
                return False
            if message["e"] == "unfit":
                names = ", ".join(server.preload)
                self._stop = End(Outcome.ERROR, f"cannot import {names}: {message['reason']}")
                self._trace = message["traceback"]
                return False
            server.ready = message
        self._facts["server_pid"] = server.pid
        self._facts["server_threads"] = server.ready["threads"]
        if server.ready["cuda"] and self._attempt.start == "fork":
            names = ", ".join(server.preload)
            self._stop = End(
                Outcome.ERROR,
                f"importing {names} initialised CUDA, which a forked process cannot use. "
                "Set isolate.start=spawn",
            )
            return False
        return True

    def _take_fork(self, message: dict[str, Any] | None) -> None:
        if message is None:
            # A child may come to be at any moment, and nobody would know of it.
            if self._server is not None:
                self._server.destroy()
            self._kill_what_is_left()
            return
        if message["e"] == "unforked":
            self._stop = judge_fork_failure(message["errno"], message["reason"])
            return
        self._pid = pid = int(message["pid"])
        self._facts["pid"] = pid
        limit_bytes = self._attempt.trial.resources.memory_bytes
        if limit_bytes is not None:
            self._memory = MemoryWatch(pid, limit_bytes)
        self._observe(lambda watch: watch.attach(pid))

    def _wait_for_message(self, server: ForkServer) -> dict[str, Any] | None:
        """The server's next word; None where time ran out or the attempt was cancelled."""
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            selector.register(self._cancel, selectors.EVENT_READ)
            while True:
                ready = selector.select(max(0.0, self._deadline_s - time.monotonic()))
                if any(key.fileobj is server for key, _ in ready):
                    return server.receive()
                if self._cancelled() or self._overdue():
                    return None

    # -- supervise -----------------------------------------------------------------------------

    def _supervise(self) -> Iterator[Progress]:
        assert self._server is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._result, selectors.EVENT_READ)
            selector.register(self._cancel, selectors.EVENT_READ)
            while self._exit is None and self._server_failure is None:
                for key, _ in selector.select(self._patience_s()):
                    if key.fileobj is self._server:
                        self._hear_server()
                    elif key.fileobj is self._cancel:
                        # Readable for as long as it is raised: once seen, look no more.
                        selector.unregister(self._cancel)
                    else:
                        data = self._read_result()
                        if data == b"":
                            selector.unregister(self._result)
                        yield from self._ledger.feed(data or b"")
                self._enforce()
        while data := self._read_result():
            yield from self._ledger.feed(data)

    def _read_result(self) -> bytes | None:
        try:
            return os.read(self._result, _PIPE_BYTES)
        except BlockingIOError:
            return None

    def _hear_server(self) -> None:
        assert self._server is not None
        try:
            message = self._server.receive()
        except ServerGone as gone:
            self._lose_server(str(gone))
            return
        if message["e"] == "exit":
            self._exit = message
            self._facts["cpu_s"] = message["cpu_s"]
            self._facts["strays"] = message["strays"]
            if message["stuck"]:
                self._facts["stuck"] = message["stuck"]

    def _patience_s(self) -> float:
        deadline_s = self._deadline_s if self._bury_by_s is None else self._bury_by_s
        return min(TICK_S, max(0.0, deadline_s - time.monotonic()))

    def _enforce(self) -> None:
        """Hold the child to its limits; each can end it, once."""
        assert self._directory is not None
        assert self._server is not None
        self._directory.cap_log()
        if self._exit is not None or self._server_failure is not None:
            return
        now_s = time.monotonic()
        if self._bury_by_s is not None:
            if now_s > self._bury_by_s:
                self._server.destroy()
                self._lose_server("the fork server could not end the process")
            return
        if self._ledger.started and "started_s" not in self._facts:
            self._facts["started_s"] = now_s - self._began_s
            self._deadline_s = now_s + self._attempt.trial.timeout_s
        if self._ledger.end is not None and "ended_s" not in self._facts:
            self._facts["ended_s"] = now_s - self._began_s
            self._deadline_s = now_s + LEAVE_S
        if self._ledger.malformed is not None or self._cancelled() or self._overdue():
            self._kill()
        elif self._memory is not None and self._ledger.end is None and self._memory.exceeded():
            held, limit = self._memory.peak_bytes, self._memory.limit_bytes
            self._stop = End(
                Outcome.OOM_HOST, f"held {gib(held, 2)}, the memory limit is {gib(limit, 2)}"
            )
            self._kill(grace=False)

    def _cancelled(self) -> bool:
        if not self._cancel.is_set():
            return False
        self._stop = End(Outcome.CANCELLED, "cancelled")
        return True

    def _overdue(self) -> bool:
        if time.monotonic() < self._deadline_s:
            return False
        if self._ledger.started:
            reason = f"no result after {self._attempt.trial.timeout_s:g} s"
        else:
            reason = f"did not start within {self._attempt.start_timeout_s:g} s"
        self._stop = End(Outcome.TIMEOUT, reason)
        return True

    def _kill(self, *, grace: bool = True) -> None:
        assert self._server is not None
        self._bury_by_s = time.monotonic() + BURY_S
        try:
            self._server.kill_child(grace=grace)
        except ServerGone as gone:
            self._lose_server(str(gone))

    def _lose_server(self, reason: str) -> None:
        self._server_failure = reason
        self._kill_what_is_left()

    def _kill_what_is_left(self) -> None:
        """The server is gone, the kernel has killed its child: find what that had started.

        All of it is waited for: what comes next may get the same device.
        """
        import psutil

        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != self._pid:
                    if process.environ().get(ATTEMPT_VARIABLE) != self._attempt.attempt_id:
                        continue
                    process.kill()
                left.append(process)
        if self._pid is not None:
            linux.kill_group_quietly(self._pid)
        psutil.wait_procs(left, timeout=DIE_S)

    # -- report --------------------------------------------------------------------------------

    def _report(self) -> AttemptReport:
        self._finish_watching()
        ledger, directory = self._ledger, self._directory
        log = b""
        artifacts: dict[str, bytes] = {}
        if directory is not None:
            log = redact(directory.read_log(), self._secrets)
            artifacts, missing = directory.collect(ledger.artifacts)
            if missing:
                self._facts["artifacts_missing"] = missing
        judgement = self._judge(log)
        artifacts[LOG_NAME] = log
        duration_s = time.monotonic() - self._began_s
        report = self._attempt.report(
            judgement.outcome,
            judgement.reason,
            traceback=judgement.traceback,
            started_at=self._started_at,
            # Not the wall clock's: it may have been set meanwhile.
            ended_at=self._started_at + duration_s,
            duration_s=duration_s,
            phases=list(ledger.phases),
            metrics=self._metrics(),
            specs=ledger.specs,
            engaged=list(ledger.engaged),
            facts={**ledger.facts, "isolate": self._facts},
            slot=self._slot,
            artifacts=artifacts,
        )
        if self._watched is not None:
            report.telemetry.update(self._watched.aggregates)
            report.facts.update(self._watched.facts)
            report.artifacts.update(self._watched.artifacts)
        if self._watch_error is not None:
            report.facts["telemetry_error"] = self._watch_error
        return report

    def _observe(self, tell: Callable[[AttemptObserver], T], *, last: bool = False) -> T | None:
        """Tell the observer, if there is one; its first failure is kept, not raised."""
        watch = self._watch
        if last:
            self._watch = None
        if watch is not None:
            try:
                return tell(watch)
            except Exception as error:
                self._watch_error = self._watch_error or f"{type(error).__name__}: {error}"
        return None

    def _finish_watching(self) -> None:
        phases = list(self._ledger.phases)
        seen = self._observe(lambda watch: watch.finish(phases), last=True)
        self._watched = seen or self._watched

    def _judge(self, log: bytes) -> End:
        now = oom_kills()
        before = self._oom_kills_before
        ending = Ending(
            end=self._ledger.end,
            stop=self._stop,
            malformed=self._ledger.malformed,
            status=None if self._exit is None else self._exit["status"],
            oom_kills=None if now is None or before is None else now - before,
            server=self._server_failure,
            log_tail=log_tail(log),
        )
        judgement = judge_ending(ending)
        return End(
            judgement.outcome,
            self._redacted(judgement.reason),
            self._redacted(judgement.traceback if self._trace is None else self._trace),
        )

    def _redacted(self, text: str | None) -> str | None:
        if text is None:
            return None
        return redact(text.encode(errors="replace"), self._secrets).decode(errors="replace")

    def _metrics(self) -> dict[str, Metric]:
        metrics = self._ledger.metrics
        device = self._attempt.trial.identity.get("device") or {}
        # What the process holds of a GPU is another figure, and only the driver knows it.
        name = "host_memory_bytes" if device.get("kind") == "cuda" else "process_memory_bytes"
        if name not in metrics and self._pid is not None:
            peak_bytes = self._peak_bytes()
            reason = "the fork server ended before the measured process"
            metrics[name] = (
                Absent(name, "bytes", reason)
                if peak_bytes is None
                else Value(name, "bytes", float(peak_bytes))
            )
        return metrics

    def _peak_bytes(self) -> int | None:
        """Most host memory the process held: its own word, or the kernel's where it was killed."""
        if self._ledger.end is not None and self._ledger.end.memory_bytes is not None:
            return self._ledger.end.memory_bytes
        if self._exit is None:
            return None
        peak_bytes = int(self._exit["max_rss_bytes"])
        # Whoever measures a phase's peak resets the kernel's, which is then of that phase only.
        seen = self._watched and self._watched.aggregates.get(f"{ATTEMPT}.rss_bytes")
        if isinstance(seen, Value):
            peak_bytes = max(peak_bytes, int(seen.value))
        if self._memory is not None and self._stop is not None:
            # What went over the limit may have been a descendant's.
            peak_bytes = max(peak_bytes, self._memory.peak_bytes)
        return peak_bytes

    # -- leave ---------------------------------------------------------------------------------

    def _leave_nothing(self) -> None:
        """However the attempt is left (an interrupt, a closed generator): no process, no file."""
        try:
            if self._pid is not None and self._exit is None and self._server_failure is None:
                self._kill(grace=False)
                for _ in self._supervise():
                    pass
        except BaseException:
            if self._server is not None:
                self._server.destroy()
            raise
        finally:
            self._finish_watching()
            if self._result >= 0:
                os.close(self._result)
            if self._directory is not None:
                self._directory.remove()
