"""A thread that writes a spool to the store, and goes on trying while the store is away."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential_jitter,
    wait_fixed,
)

from orchestrator.errors import StoreError
from orchestrator.record.boundary import Failed, Rejected
from orchestrator.record.liveness import HEARTBEAT_PERIOD_S
from orchestrator.record.recover import read_or_set_aside
from orchestrator.record.runrecord import ATTEMPT_TAG, RUNNING, SWEEP_TAG, RunRecord
from orchestrator.record.spool import Spool, set_aside
from orchestrator.record.store import Store
from orchestrator.record.writer import Writer

# Records written to the store before the disk is waited for and the spool forgets them.
SETTLE_EVERY = 64
FIRST_RETRY_S, LONGEST_RETRY_S = 0.25, 15.0
# Of an error nobody foresaw: a race in a library is gone at the next try, a bad record is not.
UNFORESEEN_TRIES = 3

T = TypeVar("T")


class Drainer:
    """Writes records to the store in the order in which they were added, and beats for the sweep.

    Parameters
    ----------
    store : Store
    spool : Spool
    say : callable
        Takes one line for the person.
    changed : Condition
        Notified whenever a record was written or this thread ended.
    heartbeat_period_s : float
    recorded : callable, optional
        Called, from this thread, with the id of each attempt that is whole in the store.

    Attributes
    ----------
    undrained : int
        Added and not yet in the store.
    recorded : int
        Attempts that are whole in the store.
    run_id : str or None
        The sweep's run.
    run_ids : dict of str to str
        Attempt id to run id.
    away_since : float or None
        Since when (CLOCK_MONOTONIC, seconds) the store has not answered.
    ended : bool
        The thread ended before it was told to, by an error nobody foresaw.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        *,
        say: Callable[[str], None],
        changed: threading.Condition,
        heartbeat_period_s: float = HEARTBEAT_PERIOD_S,
        recorded: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.undrained = 0
        self.recorded = 0
        self.run_id: str | None = None
        self.run_ids: dict[str, str] = {}
        self.away_since: float | None = None
        self.ended = False
        self._store = store
        self._spool = spool
        self._say = say
        self._changed = changed
        self._heartbeat_period_s = heartbeat_period_s
        self._is_over = False  # the sweep's run has its end
        self._recorded = recorded
        self._paths: deque[Path] = deque()
        self._later: list[Path] = []  # what the store did not take, though it takes others
        self._again_at = math.inf
        self._written: list[Path] = []  # in the store, perhaps not yet safe on its disk
        self._said: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)
        self._thread.start()

    def add(self, path: Path) -> None:
        """A record is on disk at ``path``."""
        with self._changed:
            self._paths.append(path)
            self.undrained += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Give up what the store does not take now; it stays in the spool."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            writer = self._persist(lambda: Writer(self._store.backend()))
            if writer is not None:
                try:
                    self._drain_until_stopped(writer)
                finally:
                    self._settle(writer)
        except Exception as error:
            where = traceback.format_exc(limit=-2).strip().replace("\n", " | ")
            self._say(f"recording stopped, results wait in the spool: {error} ({where})")
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _drain_until_stopped(self, writer: Writer) -> None:
        next_beat = time.monotonic() + self._heartbeat_period_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: bool(self._paths) or self._stop.is_set(),
                    max(0.0, min(next_beat, self._again_at) - time.monotonic()),
                )
                if not self._paths and time.monotonic() >= self._again_at:
                    self._paths.extend(self._later)
                    self._later.clear()
                    self._again_at = math.inf
                path = self._paths.popleft() if self._paths else None
            if path is None and self._stop.is_set():
                return
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._heartbeat_period_s
                self._beat()
            if path is None:
                continue
            if not self._drain(writer, path):
                return
            with self._changed:
                self.undrained -= 1
                idle = not self._paths
                self._changed.notify_all()
            if idle or len(self._written) >= SETTLE_EVERY:
                self._settle(writer)

    def _drain(self, writer: Writer, path: Path) -> bool:
        """Write one record to the store; False if we were told to stop before it worked."""
        if path.name.endswith(".begin"):
            finish = "2" + path.name.removeprefix("1").removesuffix("begin") + "finish"
            if path.with_name(finish).exists():
                # It ended while we were behind: its run is made whole in one go.
                self._spool.remove(path)
                return True
        item = read_or_set_aside(path, self._say)
        if item is None:
            return True
        record, digest = item.record, item.digest
        apply = partial(writer.apply, record, digest)
        try:
            run_id = self._persist(lambda: _tried(apply, UNFORESEEN_TRIES), but=(Rejected, Failed))
        except Rejected as error:
            self._say(set_aside(path, str(error)))
            return True
        except Failed as error:
            self._postpone(path, record, error)
            return True
        except Exception as error:
            self._say(set_aside(path, f"{error!r}: {traceback.format_exc(limit=-4)}"))
            return True
        if run_id is None:
            return False
        if record.key_tag == SWEEP_TAG:
            self.run_id = run_id
            if record.status == RUNNING:
                # Stays until the end: whoever drains for us after our death needs it.
                return True
            self._is_over = True
        elif record.key_tag == ATTEMPT_TAG:
            self.run_ids[record.key] = run_id
            if record.status != RUNNING:
                self.recorded += 1
                writer.forget(record.key)
                self._recorded(record.key)
        self._written.append(path)
        return True

    def _postpone(self, path: Path, record: RunRecord, error: Failed) -> None:
        """Try a record again after all others; a beginning not at all, for its end brings all."""
        self._trouble(error)
        if record.status == RUNNING and record.key_tag == ATTEMPT_TAG:
            return
        with self._changed:
            self._later.append(path)
            self.undrained += 1
        self._again_at = time.monotonic() + LONGEST_RETRY_S

    def _settle(self, writer: Writer) -> None:
        """Forget what the store holds; one wait for the disk serves all of it."""
        try:
            writer.settle()
        except OSError as error:
            self._say(f"{self._store.where}: {error} (results wait in the spool)")
            return
        for path in self._written:
            self._spool.remove(path)
        self._written.clear()

    def _beat(self) -> None:
        run_id = self.run_id
        if run_id is None or self._is_over:
            return
        try:
            backend = self._store.backend()
            if backend.get_run(run_id).status != RUNNING:
                # Somebody took us for dead: we slept, or our clock is not theirs. Claims of a run
                # that has ended count for nothing.
                backend.reopen(run_id)
                backend.tag(run_id, {"reason": ""})
            backend.tag(run_id, {"heartbeat": f"{time.time():.0f}"})
        except StoreError:
            return  # the next record meets the same trouble and says so

    def _trouble(self, error: BaseException | None) -> None:
        if self.away_since is None:
            self.away_since = time.monotonic()
        if str(error) not in self._said:
            self._said.add(str(error))
            self._say(f"{error} (results wait in the spool)")

    def _persist(
        self, call: Callable[[], T], *, but: tuple[type[StoreError], ...] = (Rejected,)
    ) -> T | None:
        """``call`` until it works; None once we are told to stop. ``but`` goes through."""

        def trouble(state: RetryCallState) -> None:
            self._trouble(state.outcome.exception() if state.outcome else None)

        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, StoreError) and not isinstance(error, but)
            ),
            wait=wait_exponential_jitter(FIRST_RETRY_S, LONGEST_RETRY_S, jitter=FIRST_RETRY_S),
            stop=stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            before_sleep=trouble,
            retry_error_callback=lambda state: None,
        )
        result: T | None = retrying(call)
        if result is not None and not self._later:
            self.away_since = None
            self._said.clear()
        return result


def _tried(call: Callable[[], T], tries: int) -> T:
    """``call``, up to ``tries`` times while it raises what nobody knows."""
    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, Failed) or not isinstance(error, StoreError)
        ),
        stop=stop_after_attempt(tries),
        wait=wait_fixed(FIRST_RETRY_S),
        reraise=True,
    )
    return retrying(call)
