"""Shows a sweep while it runs: redrawn on a terminal, one line per attempt anywhere else.

::

    scheduler's thread --events--> Board (under a lock) <--reads-- one drawing thread --> stderr
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task
from orchestrator.measure.wording import counted
from orchestrator.report.analyse.labels import plain_label
from orchestrator.report.analyse.reasons import one_line
from orchestrator.report.show.board import Board, plain_line
from orchestrator.report.show.board_view import draw
from orchestrator.report.show.style import is_live
from orchestrator.report.show.units import duration, span

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport, PlannedAttempt, Slot, Trial

# The driver shares its cores with what is being measured: every frame is time taken from a trial.
# Two looks a second are enough for a person, and a frame equal to the last one is not drawn.
PERIOD_S = 0.5
HEARTBEAT_S = 60.0


class LiveView:
    """The scheduler's view port on a terminal.

    Events may come from any thread and return at once; one thread of the view's own draws. On a
    terminal the board is redrawn in place, elsewhere every finished attempt is one plain line (and
    a long silence is broken by one that says what runs).

    Parameters
    ----------
    console : rich.console.Console
        Where to draw; its file is usually stderr.
    total : int
        Attempts of the whole sweep, cached ones included.
    cached : int
        Attempts that need not run.
    sweep : str
        The sweep's name.
    labels : mapping of str to str, optional
        Label by config hash (:func:`orchestrator.report.analyse.labels.labels_of`).
    history_s : sequence of float, optional
        Durations of earlier attempts of this sweep, for the first estimate.
    clock : callable, optional
        Seconds on a monotonic clock.
    """

    def __init__(
        self,
        console: Console,
        *,
        total: int,
        cached: int = 0,
        sweep: str = "sweep",
        labels: Mapping[str, str] | None = None,
        history_s: Sequence[float] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._labels = labels or {}
        self._clock = clock
        self._board = Board(sweep, total, cached, started_s=clock(), history_s=history_s)
        self._lock = threading.RLock()
        self._lines: list[tuple[str, str]] = []
        self._wake = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        self._stray: _StrayLines | None = None
        self._is_live = is_live(console)

    # -- the scheduler's side ------------------------------------------------------------------

    def submitted(self, attempt: PlannedAttempt) -> None:
        """An attempt has been handed to the cluster and waits for a slot."""
        with self._lock:
            self._board.submit(attempt.attempt_id)

    def withdrawn(self, attempt: PlannedAttempt, *, made: bool) -> None:
        """Another driver makes the attempt, or has ``made`` it: then it is one of those there."""
        with self._lock:
            self._board.withdraw(attempt.attempt_id, made=made)

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None:
        """An attempt has got its slot."""
        with self._lock:
            self._board.start(attempt.attempt_id, self._label(attempt.trial), slot, self._clock())

    def phase(self, attempt: PlannedAttempt, name: str) -> None:
        """A running attempt has entered a phase."""
        with self._lock:
            self._board.enter(attempt.attempt_id, name)

    def finished(self, report: AttemptReport, trial: Trial) -> None:
        """An attempt has ended."""
        label = self._label(trial)
        headline = _headline(str(trial.identity["task"]["name"]))
        with self._lock:
            took_s = self._board.finish(report, label, self._clock())
            if not self._is_live:
                self._lines.append((plain_line(self._board, report, label, took_s, headline), ""))
        self._nudge()

    def message(self, text: str) -> None:
        """Something a person should read, above the board or as a line of its own."""
        with self._lock:
            self._lines.extend((one_line(line), "") for line in text.splitlines() if line.strip())
        self._nudge()

    # -- life ----------------------------------------------------------------------------------

    def open(self) -> LiveView:
        """Start drawing; does nothing if already open."""
        if self._thread is not None:
            return self
        self._ending = False
        if not self._is_live:
            todo, cached = self._board.todo, self._board.cached
            known = f", {cached} of {self._board.total} already there" if cached else ""
            self.message(f"{self._board.sweep}: {counted(todo, 'attempt')} to run{known}")
        elif self._console.file is sys.stderr:
            # A stray line (a warning of a library) would be drawn over; it goes above the board.
            self._stray = _StrayLines(sys.stderr, self.message)
            sys.stderr = self._stray
        self._thread = threading.Thread(target=self._run, name="live-view", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Draw what is left, say how it ended, give the terminal back. May be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._stray is not None:
            self._stray.flush_rest()
            sys.stderr = self._stray.rich_proxied_file
            self._stray = None
        with self._lock:
            self._lines.append((self._summary(), "bold"))
            self._ending = True
        self._wake.set()
        thread.join(timeout=5.0)

    def __enter__(self) -> LiveView:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the drawing thread --------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._is_live:
                self._redraw()
            else:
                self._write_lines()
        except (OSError, ValueError):
            # The terminal or the pipe has gone: the sweep goes on without being watched.
            return

    def _write_lines(self) -> None:
        while True:
            spoken = self._wake.wait(HEARTBEAT_S)
            self._wake.clear()
            with self._lock:
                lines, self._lines = self._lines, []
                ending = self._ending
                if not spoken and self._board.running:
                    lines.append((self._heartbeat(), "dim"))
            self._print(lines)
            if ending:
                return

    def _redraw(self) -> None:
        last = None
        # auto_refresh would draw from a thread of rich's own, and stdout is not ours to redirect.
        with Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        ) as live:
            while True:
                last, ending = self._frame(live, last)
                if ending:
                    break
                # Not `_wake`: a burst of events must not become a burst of frames.
                self._pause()
        with self._lock:
            lines, self._lines = self._lines, []
        self._print(lines)

    def _frame(self, live: Live, last: Any) -> tuple[Any, bool]:
        size = self._console.size
        with self._lock:
            ending = self._ending
            lines: list[tuple[str, str]] = []
            if not ending:
                lines, self._lines = self._lines, []
            text = draw(self._board, self._clock(), width=size.width - 1, height=size.height - 2)
        frame = (text, size)
        self._print(lines)
        if frame != last and not ending:
            live.update(text, refresh=True)
        return frame, ending

    def _pause(self) -> None:
        deadline = time.monotonic() + PERIOD_S
        while not self._ending and (rest := deadline - time.monotonic()) > 0:
            self._wake.wait(rest)
            self._wake.clear()

    def _print(self, lines: Sequence[tuple[str, str]]) -> None:
        if not lines:
            return
        if not self._is_live:
            # Not through rich: on a broken pipe it points the process's *stdout* at /dev/null.
            file = self._console.file
            file.write("".join(f"{line}\n" for line, _ in lines))
            file.flush()
            return

        text = Text("\n").join(Text(line, style) for line, style in lines)
        self._console.print(text, soft_wrap=True, highlight=False)

    # -- words ---------------------------------------------------------------------------------

    def _nudge(self) -> None:
        if not self._is_live:
            self._wake.set()

    def _label(self, trial: Trial) -> str:
        return self._labels.get(trial.hash) or plain_label(trial.identity)

    def _summary(self) -> str:
        board = self._board
        took = duration(self._clock() - board.started_s)
        failed = f", {board.failed} not ok" if board.failed else ""
        unrun = f", {board.waiting + len(board.running)} not run" if board.waiting else ""
        cached = f", {board.cached} already there" if board.cached else ""
        return f"{board.sweep}: {board.ok} ok{failed}{unrun}{cached} in {took}"

    def _heartbeat(self) -> str:
        board, now_s = self._board, self._clock()
        oldest = min(board.running.values(), key=lambda r: r.since_s)
        left = board.remaining_s(now_s)
        eta = f", ETA {span(*left)}" if left is not None else ""
        return (
            f"… {len(board.running)} running ({oldest.label}, {oldest.phase}, "
            f"{duration(now_s - oldest.since_s)}), {board.waiting} waiting{eta}"
        )


class _StrayLines:
    """Stands in for stderr while the board is drawn: whole lines go above it."""

    def __init__(self, real: Any, say: Callable[[str], None]) -> None:
        # rich looks for this name to find the file to draw on.
        self.rich_proxied_file = real
        self._say = say
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def flush(self) -> None:
        return None

    def flush_rest(self) -> None:
        if self._rest:
            self._say(self._rest)
            self._rest = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@cache
def _headline(task: str) -> tuple[str, ...]:
    try:
        return find_task(task).headline
    except (ConfigError, ImportError):
        return ()
