"""A thread that puts records on disk, so that whoever hands them over does not wait for it."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from queue import Empty, Full, Queue

from orchestrator.errors import StoreError
from orchestrator.record.runrecord import RunRecord
from orchestrator.record.spool import Spool, Spooled

# Reports held in memory while the disk is slow; then `submit` waits, so that memory stays bounded.
QUEUE_LENGTH = 64
RETRY_S = 1.0


class Spooler:
    """Builds records and writes them to a spool, in the order in which they were submitted.

    Parameters
    ----------
    spool : Spool
    spooled : callable
        Called, from this thread, with each record that is safe on disk.
    say : callable
        Takes one line for the person.
    changed : Condition
        Notified whenever ``unspooled`` or ``failure`` changes.

    Attributes
    ----------
    unspooled : int
        Handed over and not yet on disk.
    failure : StoreError or None
        Why the disk does not take the present record; None while it does.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        spooled: Callable[[Spooled], None],
        say: Callable[[str], None],
        changed: threading.Condition,
    ) -> None:
        self.unspooled = 0
        self.failure: StoreError | None = None
        self._spool = spool
        self._spooled = spooled
        self._say = say
        self._changed = changed
        self._queue: Queue[Callable[[], RunRecord]] = Queue(QUEUE_LENGTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spooler", daemon=True)
        self._thread.start()

    def submit(self, build: Callable[[], RunRecord]) -> None:
        """Have ``build()`` written; called in this thread, since redacting a log takes a while.

        Raises
        ------
        StoreError
            The disk has been failing and no more can be held in memory.
        """
        with self._changed:
            self.unspooled += 1
        while True:
            try:
                self._queue.put(build, timeout=RETRY_S)
                return
            except Full:
                if self.failure is not None:
                    with self._changed:
                        self.unspooled -= 1
                    raise self.failure from None

    def stop(self) -> None:
        """Try what is left once more, then end. What stays ``unspooled`` is lost."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                build = self._queue.get(timeout=0.2)
            except Empty:
                if self._stop.is_set():
                    return
                continue
            try:
                over = self._write(build())
            except Exception as error:
                # One report that cannot be turned into a record must not take the others along.
                where = traceback.format_exc(limit=-2).strip().replace("\n", " | ")
                self._say(f"a result could not be recorded: {error} ({where})")
                over = True
            if over:
                with self._changed:
                    self.unspooled -= 1
                    self._changed.notify_all()

    def _write(self, record: RunRecord) -> bool:
        """Put a record on disk, trying again while the disk is full and we are not to stop."""
        while True:
            try:
                spooled = self._spool.write(record)
            except StoreError as error:
                if self.failure is None:
                    self._say(str(error))
                with self._changed:
                    self.failure = error
                    self._changed.notify_all()
                if self._stop.wait(RETRY_S):
                    return False
                continue
            self.failure = None
            self._spooled(spooled)
            return True
