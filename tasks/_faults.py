"""Ways for ``task=noop`` to end badly, on purpose: what isolation must name and clean up after.

``task.fault=NAME`` or ``task.fault=NAME:ARGUMENT``. Each is the real thing on the real process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.measure import Infeasible, Recorder

_LONG_S = 3600.0
_LOOK_S = 0.02
_CHUNK_BYTES = 32 << 20
_BALLOON_BYTES = 4 << 30


def fail(fault: str, recorder: Recorder) -> None:
    """Commit the fault called ``fault``; raises ``ValueError`` naming the known ones."""
    name, _, argument = fault.partition(":")
    if name not in FAULTS:
        raise ValueError(f"unknown fault {name!r}; known: {', '.join(sorted(FAULTS))}")
    FAULTS[name](argument, recorder)


def _raise(argument: str, recorder: Recorder) -> None:
    raise RuntimeError(argument or "a fault was asked for")


def _infeasible(argument: str, recorder: Recorder) -> None:
    raise Infeasible(argument or "cannot be done here")


def _memory_error(argument: str, recorder: Recorder) -> None:
    raise MemoryError


def _signal(argument: str, recorder: Recorder) -> None:
    os.kill(os.getpid(), getattr(signal, argument or "SIGKILL"))
    time.sleep(_LONG_S)


def _segfault(argument: str, recorder: Recorder) -> None:
    ctypes.string_at(0)


def _exit(argument: str, recorder: Recorder) -> None:
    os._exit(int(argument or 0))


def _sys_exit(argument: str, recorder: Recorder) -> None:
    sys.exit(int(argument or 0))


def _hang(argument: str, recorder: Recorder) -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    time.sleep(_LONG_S)


def _hang_gil(argument: str, recorder: Recorder) -> None:
    ctypes.PyDLL(None).sleep(int(_LONG_S))  # PyDLL calls without letting go of the GIL


def _balloon(argument: str, recorder: Recorder) -> None:
    """Fill memory until somebody objects; ``MemoryError`` at 4 GiB so that a machine survives."""
    held: list[bytes] = []
    while len(held) * _CHUNK_BYTES < _BALLOON_BYTES:
        held.append(b"\1" * _CHUNK_BYTES)
        time.sleep(0.005)
    raise MemoryError


def _balloon_in_child(argument: str, recorder: Recorder) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(MemoryError):
            _balloon(argument, recorder)
        os._exit(1)
    os.waitpid(pid, 0)


def _fork_bomb(argument: str, recorder: Recorder) -> None:
    """Many processes, half of them in sessions of their own, and leave them behind."""
    for index in range(int(argument or 200)):
        if os.fork() == 0:
            if index % 2:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(_LONG_S)
            os._exit(0)


def _daemon(argument: str, recorder: Recorder) -> None:
    """A program that has cut every tie: forked twice, own session, own program image."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", argument or str(_LONG_S)])
        os._exit(0)


def _daemon_then_hang(argument: str, recorder: Recorder) -> None:
    _daemon(argument, recorder)
    subprocess.run(["sleep", argument or str(_LONG_S)], check=False)


def _print(argument: str, recorder: Recorder) -> None:
    """Print ``argument`` bytes (1 GB), the first and last lines being recognisable."""
    line = b"x" * 99 + b"\n"
    block = line * 10_000
    os.write(1, b"first line of the output\n")
    for _ in range(int(argument or 1_000_000_000) // len(block)):
        os.write(1, block)
    os.write(1, b"last line of the output\n")


def _bad_result(argument: str, recorder: Recorder) -> None:
    """Write something into the result pipe that is no event, then go on as if nothing were."""
    garbage = b"\x80\x04garbage\n"
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                os.write(int(name), garbage)
    time.sleep(_LONG_S)


def _witness(argument: str, recorder: Recorder) -> None:
    """No fault: leave a line in the file ``argument``, which no store and no driver can forget.

    While a file of the same name with ``.until`` holds a number, wait if ours is a later line.
    """
    line = os.environ.get("ORCHESTRATOR_ATTEMPT", "") + "\n"
    descriptor = os.open(argument, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
        # Where an appended line ends is known to whoever wrote it alone.
        written = os.pread(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR), 0)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        while written.count(b"\n") > int(Path(f"{argument}.until").read_text()):
            time.sleep(_LOOK_S)


def _fork_and_return(argument: str, recorder: Recorder) -> None:
    """Fork, and let the copy come back from the task as if it were the measured process."""
    pid = os.fork()
    if pid != 0:
        os.waitpid(pid, 0)


FAULTS: dict[str, Callable[[str, Recorder], None]] = {
    "raise": _raise,
    "infeasible": _infeasible,
    "memory_error": _memory_error,
    "signal": _signal,
    "segfault": _segfault,
    "exit": _exit,
    "sys_exit": _sys_exit,
    "hang": _hang,
    "hang_gil": _hang_gil,
    "balloon": _balloon,
    "balloon_in_child": _balloon_in_child,
    "fork_bomb": _fork_bomb,
    "daemon": _daemon,
    "daemon_then_hang": _daemon_then_hang,
    "print": _print,
    "bad_result": _bad_result,
    "witness": _witness,
    "fork_and_return": _fork_and_return,
}
