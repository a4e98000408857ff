"""uv, found and run; what it says when it fails, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import Infeasible

_POLL_S = 0.1
_LONGEST = 300


class UvFailed(Exception):
    """uv ended with an error; the message is its reason in one line.

    Attributes
    ----------
    unsolvable : bool
        It knows all that is needed to say that there is no such thing.
    """

    def __init__(self, reason: str, *, unsolvable: bool = False) -> None:
        super().__init__(reason)
        self.unsolvable = unsolvable


class Cancelled(Exception):
    """Whoever waited for uv no longer does."""


def find_uv() -> str:
    """The program; :class:`Infeasible` where it is not installed."""
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise Infeasible("uv is not installed", where="environment", fix="pip install uv")
    return found


def run_uv(*words: str | Path, cancelled: Callable[[], bool] = lambda: False) -> str:
    """Standard output of ``uv WORDS``.

    Parameters
    ----------
    cancelled : callable
        Asked while uv runs; once it is true, uv is ended.

    Raises
    ------
    UvFailed
        With the reason in a line.
    Cancelled
    OSError
        If the disk is full.
    """
    process = subprocess.Popen(
        [find_uv(), *map(str, words), "--no-progress", "--color", "never"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        while True:
            try:
                out, err = process.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if cancelled():
                    raise Cancelled from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode == 0:
        return out
    if os.strerror(errno.ENOSPC) in err:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise UvFailed(reason_in(err), unsolvable=process.returncode == 1)


def reason_in(err: str) -> str:
    """The first sentence of uv's reason, as one line."""
    words = " ".join(
        line.strip().removeprefix("×").removeprefix("╰─▶").removeprefix("│").strip()
        for line in err.splitlines()
        if line.strip() and not line.strip().startswith(("Using ", "warning:", "Resolved "))
    )
    # "No solution found when resolving dependencies: Because ... we can conclude that ..."
    for opening in ("error:", "No solution found when resolving dependencies", ":", "cause:", ":"):
        words = words.removeprefix(opening).strip()
    return (words.split(" hint:")[0] or "uv failed without a word")[:_LONGEST]
