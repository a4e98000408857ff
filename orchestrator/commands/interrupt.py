"""How a person stops a sweep: Ctrl-C once to stop cleanly, twice to be out at once; ``cancel``.

::

    1st SIGINT / SIGTERM / cancel file -> stop event -> driver cancels, records, exits 130
    2nd SIGINT / SIGTERM               -> emergency(): kill what we started -> exit 130 now
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from orchestrator.commands.output import say
from orchestrator.errors import Interrupted

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport, PlannedAttempt, Slot, Trial
    from orchestrator.record.drivers import DriverFile
    from orchestrator.schedule.ports import ViewPort

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signals(
    emergency: Callable[[], object], tell: Callable[[str], object]
) -> Iterator[threading.Event]:
    """Yield the event that the first signal sets; the second one never returns."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        # Ray's own handler of SIGTERM ran first and has set an alarm that aborts in 3 s.
        signal.alarm(0)
        if stop.is_set():
            emergency()
            # The interpreter's own teardown would wait for threads that wait for a store.
            os._exit(Interrupted.exit_code)
        stop.set()
        tell("stopping: what runs is ended and recorded; press Ctrl-C again to be out at once")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(code: int) -> NoReturn:
    """Exit with ``code``, also where Ray says goodbye to a head that does not answer."""
    session = sys.modules.get("orchestrator.schedule.cluster.ray.connection")
    if session and any(thread.name == session.KEEPER for thread in threading.enumerate()):
        # In the interpreter's own teardown it would say it once more, for a minute, or crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def interrupted() -> int:
    """Say that what was stopped can go on; returns the exit code."""
    say("interrupted: the same command goes on where this one stopped")
    return Interrupted.exit_code


class Published:
    """A view that also tells other terminals, and hears from them that the sweep is to stop."""

    def __init__(
        self, view: ViewPort, file: DriverFile, labels: Mapping[str, str], stop: threading.Event
    ) -> None:
        self._view = view
        self._file = file
        self._labels = labels
        self._outcomes: Counter[str] = Counter()
        self._running: dict[str, str] = {}
        self._ended = threading.Event()
        self._stop = stop
        self._file.publish(self._outcomes, [])
        self._watcher = threading.Thread(target=self._watch, name="cancel-watch", daemon=True)
        self._watcher.start()

    def submitted(self, attempt: PlannedAttempt) -> None:
        self._view.submitted(attempt)

    def withdrawn(self, attempt: PlannedAttempt, *, made: bool) -> None:
        self._view.withdrawn(attempt, made=made)

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None:
        label = self._labels.get(attempt.trial.hash, "")
        self._running[attempt.attempt_id] = f"{label} on {slot.host}"
        self._file.publish(self._outcomes, list(self._running.values()))
        self._view.started(attempt, slot)

    def phase(self, attempt: PlannedAttempt, name: str) -> None:
        self._view.phase(attempt, name)

    def finished(self, report: AttemptReport, trial: Trial) -> None:
        self._running.pop(report.attempt_id, None)
        self._outcomes[report.outcome.value] += 1
        self._file.publish(self._outcomes, list(self._running.values()))
        self._view.finished(report, trial)

    def message(self, text: str) -> None:
        self._view.message(text)

    def close(self) -> None:
        """Stop looking for a request, and forget this driver."""
        self._ended.set()
        self._watcher.join()
        self._file.remove()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            if self._file.cancel_requested():
                self._view.message("asked to stop from another terminal")
                self._stop.set()
                return
