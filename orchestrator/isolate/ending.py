"""Decides, from what is known when a child is gone, how its attempt ended and why in one line."""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass

from orchestrator.attempt import Outcome
from orchestrator.isolate.ledger import End
from orchestrator.isolate.linux import describe_status

_REASON_CHARACTERS = 400
_LOG_LINES = 20


@dataclass(frozen=True)
class Ending:
    """All there is to judge an ending by.

    Attributes
    ----------
    end : End or None
        The child's own last word.
    stop : End or None
        Set where the supervisor ended it.
    malformed : str or None
        What of the result could not be read.
    status : int or None
        Wait status of the child; None where nobody could wait for it.
    oom_kills : int or None
        OOM kills the kernel counted meanwhile; None where it does not say.
    server : str or None
        What became of the fork server, where it is the server that failed.
    log_tail : str
        The last lines of the child's output.
    """

    end: End | None = None
    stop: End | None = None
    malformed: str | None = None
    status: int | None = None
    oom_kills: int | None = None
    server: str | None = None
    log_tail: str = ""


def judge_ending(ending: Ending) -> End:
    """Classify an ending. Pure.

    A child's own last word counts most: once it is out, how the process then went matters no more.
    Next comes what the supervisor did to it, then what the kernel says.
    """
    if ending.malformed is not None:
        return _unsaid(Outcome.ERROR, f"the result cannot be parsed: {ending.malformed}", ending)
    if ending.end is not None:
        return End(ending.end.outcome, one_line(ending.end.reason), ending.end.traceback)
    if ending.stop is not None:
        return _unsaid(ending.stop.outcome, ending.stop.reason, ending)
    killed = ending.status is not None and os.WIFSIGNALED(ending.status)
    by_sigkill = killed and os.WTERMSIG(ending.status or 0) == signal.SIGKILL
    if ending.oom_kills and (by_sigkill or ending.status is None):
        return _unsaid(Outcome.OOM_HOST, "killed by the kernel: the host ran out of memory", ending)
    if ending.server is not None:
        return _unsaid(Outcome.LOST, ending.server, ending)
    if ending.status is None:
        return _unsaid(Outcome.LOST, "the measured process is gone without a trace", ending)
    reason = describe_status(ending.status)
    if not killed:
        # After a signal the last line is the end of faulthandler's stack: of no use by itself.
        last = ending.log_tail.rstrip().rpartition("\n")[2].strip()
        reason += f" without a result: {last}" if last else " without a result"
    return _unsaid(Outcome.CRASHED, reason, ending)


def judge_fork_failure(number: int, reason: str) -> End:
    """How an attempt ended whose process could not be made (``number``: errno)."""
    outcome = Outcome.OOM_HOST if number == errno.ENOMEM else Outcome.ERROR
    return End(outcome, f"cannot start a process: {reason}")


def one_line(text: str | None) -> str | None:
    """First line that says something, of bearable length."""
    if text is None:
        return None
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= _REASON_CHARACTERS else line[: _REASON_CHARACTERS - 1] + "…"


def log_tail(log: bytes) -> str:
    """The last lines of a log, as text."""
    return "\n".join(log[-16_384:].decode(errors="replace").splitlines()[-_LOG_LINES:])


def _unsaid(outcome: Outcome, reason: str | None, ending: Ending) -> End:
    tail = ending.log_tail.strip("\n")
    traceback = f"last lines of the log:\n{tail}" if tail else None
    return End(outcome, one_line(reason), traceback)
