"""What runs in the measured process: take the slot, run the task, send the result, leave.

Order matters: affinity and environment come before anything can start a thread pool or CUDA; the
result is out before anything is torn down; ``os._exit`` saves the interpreter's second of teardown.
Started by the fork server, either right after ``fork`` or (``isolate.start=spawn``) in a fresh
interpreter with the words ``JOB RESULT_FD``: the same code either way.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import importlib
import json
import os
import random
import re
import resource
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.attempt import Outcome
from orchestrator.errors import OrchestratorError, TaskError
from orchestrator.isolate.linux import flush_c_stdio
from orchestrator.measure.clock import Clock, clock_for
from orchestrator.measure.memory import HostMemory
from orchestrator.measure.recorder import Event, Recorder
from orchestrator.measure.registry import find_task

Job = dict[str, Any]

_TRACEBACK_CHARACTERS = 64_000
# As CUDA's runtime and driver, cuBLAS, cuDNN and their like, Triton and NCCL say it, and as torch's
# CPU allocator and C++ do.
_DEVICE_IS_FULL = re.compile(
    r"CU[A-Z]+_(?:STATUS_)?ALLOC_FAILED|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|\bCUDA\b.*\bout of memory\b",
    re.IGNORECASE,
)
_HOST_IS_FULL = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|std::bad_alloc"
)


class ResultPipe:
    """Writes events as JSON lines; blocks while the supervisor has not read.

    Only the process that made it may speak: a copy of it that a task forks would answer for
    the attempt, and its lines would run into ours.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Write one event, whole; raises ``RuntimeError`` in a process that the task forked."""
        if os.getpid() != self._owner:
            raise RuntimeError("only the measured process itself may record, not one it has forked")
        try:
            text = json.dumps(event, allow_nan=False, default=_plain)
        except ValueError as error:
            what = event.get("key") or event.get("name") or event["e"]
            raise ValueError(f"{what} (is NaN or infinity in it?): {error}") from error
        line = memoryview(text.encode() + b"\n")
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]

    def end(self, outcome: Outcome, reason: str | None, trace: str | None = None) -> None:
        """Say the last word."""
        if trace is not None:
            trace = trace[-_TRACEBACK_CHARACTERS:]
        self.emit(
            {
                "e": "end",
                "outcome": outcome.value,
                "reason": reason,
                "traceback": trace,
                "memory_bytes": _peak_memory_bytes(),
            }
        )


def _plain(value: object) -> Any:
    """Numbers and arrays of numpy and torch as Python's own, which they would not be in words.

    What else JSON does not know is told in words.
    """
    plain = getattr(value, "tolist", None)
    return plain() if callable(plain) else str(value)


def read_job(path: str) -> Job:
    """The orders a supervisor has written."""
    job: Job = json.loads(Path(path).read_text())
    return job


def take_slot(job: Job) -> None:
    """Bind this process to its slot: cores, environment, limits. Survives ``exec``.

    Raises
    ------
    OrchestratorError
        Some of the cores may not be used here.
    """
    os.environ.update(job["environment"])
    # A core dump of a process that maps a model fills the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if job["cpus"]:
        with contextlib.suppress(OSError):  # the kernel's word where none of them may be used
            os.sched_setaffinity(0, job["cpus"])
        # Where some may, the kernel takes those without a word: as many threads on fewer cores.
        if lacking := sorted(set(job["cpus"]) - os.sched_getaffinity(0)):
            raise OrchestratorError(
                f"cores {', '.join(map(str, lacking))} may not be used here (any more)",
                fix="Start the program, or Ray on this node, again: it looks for cores once",
            )


def run_job(job: Job, pipe: ResultPipe) -> NoReturn:
    """Run the task of ``job`` and leave the process; never returns, never raises."""
    own_pid = os.getpid()
    status = 1
    try:
        _measure(job, pipe)
        if os.getpid() == own_pid:
            pipe.end(Outcome.OK, None)
            status = 0
    except BaseException as error:
        # A process that the task forked and that came back here must not speak for its parent.
        if os.getpid() == own_pid:
            _report(error, pipe)
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
            flush_c_stdio()
        os._exit(status)


def import_modules(names: Sequence[str]) -> None:
    """Import without collecting garbage meanwhile: that alone takes half a second of torch's."""
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
        if "numpy" in sys.modules:
            # numpy loads this one on first use: 11 ms, better once here than in each child.
            importlib.import_module("numpy.random")
    finally:
        gc.enable()


def _measure(job: Job, pipe: ResultPipe) -> None:
    for stream in (sys.stdout, sys.stderr):
        # Lines a process printed before it was killed are the most interesting ones.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    faulthandler.enable(all_threads=False)
    tempfile.tempdir = None  # the server may have looked it up before TMPDIR was ours
    gc.enable()
    import_modules(job["preload"])
    identity = job["identity"]
    task = find_task(identity["task"]["name"])
    _set_threads_and_seeds(job["threads"], int(identity["seed"]))
    recorder = Recorder(pipe.emit, _clock(identity["device"]["kind"]), Path(job["artifacts"]))
    pipe.emit({"e": "started"})
    recorder.declare(task.metrics)
    task.run(identity, recorder)


def _clock(device_kind: str) -> Clock:
    """The device's clock where torch can reach the device; a task without torch has the host's."""
    torch = sys.modules.get("torch")
    on_cuda = device_kind == "cuda" and torch is not None and torch.cuda.is_available()
    return clock_for("cuda" if on_cuda else "cpu")


def _set_threads_and_seeds(threads: int, seed: int) -> None:
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda._is_in_bad_fork():
        raise OrchestratorError(
            "CUDA was initialised before this process was forked", fix="Set isolate.start=spawn"
        )
    # libgomp read OMP_NUM_THREADS when the server loaded it; a forked child has to say it again.
    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def _peak_memory_bytes() -> int | None:
    # Also of a process that has just run out of it.
    with contextlib.suppress(MemoryError, OSError, ValueError):
        return HostMemory().proportional_peak_bytes()
    return None


def _report(error: BaseException, pipe: ResultPipe) -> None:
    try:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        outcome = classify(error)
        sys.stderr.write(trace)
        pipe.end(outcome, _reason(error), trace)
    except MemoryError:
        pipe.end(Outcome.OOM_HOST, "out of memory")


def _reason(error: BaseException) -> str:
    if isinstance(error, OrchestratorError):
        return str(error)
    if isinstance(error, SystemExit):
        return f"the task called sys.exit({error.code!r})"
    # Some libraries begin their messages with a blank line.
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def classify(error: BaseException) -> Outcome:
    """The outcome an exception of a task stands for; looks through ``raise ... from``.

    torch's kinds are told apart by where they come from and what they say, so that a process
    without torch need not import it: the CPU allocator and cuBLAS raise a bare ``RuntimeError``.
    """
    seen: BaseException | None = error
    for _ in range(16):
        if seen is None:
            break
        if isinstance(seen, TaskError):
            return Outcome(seen.outcome)
        if isinstance(seen, MemoryError) or getattr(seen, "errno", None) == errno.ENOMEM:
            return Outcome.OOM_HOST
        text = str(seen)
        if type(seen).__name__ == "OutOfMemoryError" or _DEVICE_IS_FULL.search(text):
            return Outcome.OOM_DEVICE
        if _HOST_IS_FULL.search(text):
            return Outcome.OOM_HOST
        seen = seen.__cause__
    return Outcome.ERROR


def main(words: list[str]) -> None:
    """Run the job that ``JOB RESULT_FD`` name."""
    run_job(read_job(words[0]), ResultPipe(int(words[1])))
