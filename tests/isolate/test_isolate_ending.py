from __future__ import annotations

import errno
import signal

import pytest

from orchestrator.attempt import Outcome
from orchestrator.errors import (
    ConfigError,
    Infeasible,
    InputError,
    Mismatch,
    OutOfMemory,
    TaskError,
)
from orchestrator.isolate.child import classify
from orchestrator.isolate.ending import (
    Ending,
    judge_ending,
    judge_fork_failure,
    log_tail,
    one_line,
)
from orchestrator.isolate.ledger import End

KILLED = int(signal.SIGKILL)
TIMEOUT = End(Outcome.TIMEOUT, "no result after 1 s")


@pytest.mark.parametrize(
    ("ending", "outcome", "reason"),
    [
        (Ending(end=End(Outcome.OK, None, None), status=0), Outcome.OK, None),
        # A result that is out stands, whatever happens to the process afterwards.
        (Ending(end=End(Outcome.OK, None, None), stop=TIMEOUT, status=KILLED), Outcome.OK, None),
        (Ending(stop=TIMEOUT, status=KILLED), Outcome.TIMEOUT, "no result after 1 s"),
        (Ending(stop=TIMEOUT, status=KILLED, oom_kills=1), Outcome.TIMEOUT, "no result after 1 s"),
        (Ending(status=KILLED, oom_kills=0), Outcome.CRASHED, "killed by SIGKILL"),
        (Ending(status=KILLED, oom_kills=None), Outcome.CRASHED, "killed by SIGKILL"),
        (
            Ending(status=KILLED, oom_kills=2),
            Outcome.OOM_HOST,
            "killed by the kernel: the host ran out of memory",
        ),
        # The kernel counts kills of others too: a segmentation fault is not one of them.
        (Ending(status=int(signal.SIGSEGV), oom_kills=2), Outcome.CRASHED, "killed by SIGSEGV"),
        (Ending(status=0), Outcome.CRASHED, "exited with status 0 without a result"),
        (
            Ending(status=3 << 8, log_tail="one\ntwo\n\n"),
            Outcome.CRASHED,
            "exited with status 3 without a result: two",
        ),
        (
            Ending(server="fork server killed by SIGKILL"),
            Outcome.LOST,
            "fork server killed by SIGKILL",
        ),
        (
            Ending(server="fork server killed by SIGKILL", oom_kills=1),
            Outcome.OOM_HOST,
            "killed by the kernel: the host ran out of memory",
        ),
        (Ending(), Outcome.LOST, "the measured process is gone without a trace"),
        (
            Ending(end=End(Outcome.OK, None, None), malformed="'x': why", status=0),
            Outcome.ERROR,
            "the result cannot be parsed: 'x': why",
        ),
    ],
)
def test_every_ending_has_its_outcome(ending: Ending, outcome: Outcome, reason: str | None) -> None:
    judged = judge_ending(ending)
    assert (judged.outcome, judged.reason) == (outcome, reason)


def test_the_last_lines_of_the_log_stand_in_for_a_traceback() -> None:
    judged = judge_ending(Ending(status=int(signal.SIGABRT), log_tail="terminate called\n"))
    assert judged.traceback == "last lines of the log:\nterminate called"


def test_log_tail_is_bounded_and_survives_odd_bytes() -> None:
    log = b"".join(b"line %d \xff\n" % n for n in range(100_000))
    assert log_tail(log).splitlines()[-1].startswith("line 99999")
    assert len(log_tail(log).splitlines()) == 20
    assert log_tail(b"") == ""


def test_one_line() -> None:
    assert one_line(None) is None
    assert one_line("\n\n  first \nsecond") == "first"
    assert len(one_line("x" * 10_000) or "") == 400


def test_no_memory_to_fork_is_the_hosts_memory() -> None:
    assert judge_fork_failure(errno.ENOMEM, "x").outcome is Outcome.OOM_HOST
    assert judge_fork_failure(errno.EAGAIN, "x").outcome is Outcome.ERROR


def wrapped(cause: BaseException) -> RuntimeError:
    error = RuntimeError("while loading")
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("x"), Outcome.ERROR),
        (Infeasible("x"), Outcome.INFEASIBLE),
        (InputError("x"), Outcome.ERROR),
        (Mismatch("x"), Outcome.ERROR),
        (ConfigError("x"), Outcome.ERROR),
        (OutOfMemory("x"), Outcome.OOM_HOST),
        (OutOfMemory("x", device=True), Outcome.OOM_DEVICE),
        (MemoryError(), Outcome.OOM_HOST),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Outcome.OOM_HOST),
        (OSError(errno.ENOSPC, "No space left on device"), Outcome.ERROR),
        (wrapped(MemoryError()), Outcome.OOM_HOST),
        (wrapped(Infeasible("x")), Outcome.INFEASIBLE),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), Outcome.OOM_DEVICE),
        (RuntimeError("CUDA error: out of memory"), Outcome.OOM_DEVICE),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), Outcome.OOM_DEVICE),
        (RuntimeError("CUDA driver error: out of memory"), Outcome.OOM_DEVICE),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Outcome.OOM_DEVICE),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), Outcome.OOM_DEVICE),
        (RuntimeError("Triton Error [CUDA]: out of memory"), Outcome.OOM_DEVICE),
        (
            RuntimeError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"),
            Outcome.OOM_DEVICE,
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), Outcome.ERROR),
        (RuntimeError("std::bad_alloc"), Outcome.OOM_HOST),
        (RuntimeError("CUDA error: invalid argument\nthe tape ran out of memory"), Outcome.ERROR),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 8 bytes."
            ),
            Outcome.OOM_HOST,
        ),
        (KeyboardInterrupt(), Outcome.ERROR),
        (SystemExit(3), Outcome.ERROR),
    ],
)
def test_every_exception_has_its_outcome(error: BaseException, outcome: Outcome) -> None:
    assert classify(error) is outcome


def test_every_kind_of_task_error_is_mapped() -> None:
    for kind in [TaskError, *TaskError.__subclasses__()]:
        assert classify(kind("x")) is Outcome(kind("x").outcome)


def test_torchs_own_messages_are_understood() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert classify(raised.value) is Outcome.OOM_HOST
    assert classify(torch.OutOfMemoryError("x")) is Outcome.OOM_DEVICE
