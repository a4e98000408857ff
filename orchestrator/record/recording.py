"""Records a running sweep: every attempt onto disk at once, from there into MLflow.

::

    begin / finish --queue--> spooler --files--> drainer --> MLflow
       (return at once)       redact, fsync      retries while the store is away

Nobody waits for MLflow: the spooler makes results durable, the drainer writes them when the store
lets it, and what it cannot write stays in the spool for ``sync`` or the next driver.
"""

from __future__ import annotations

import threading
import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential_jitter,
)

from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.errors import StoreError
from orchestrator.record.boundary import Rejected
from orchestrator.record.build import Builder
from orchestrator.record.liveness import HEARTBEAT_PERIOD_S, driver_id
from orchestrator.record.provenance import provenance
from orchestrator.record.recover import read_or_set_aside
from orchestrator.record.redact import Redactor
from orchestrator.record.runrecord import ATTEMPT_TAG, RUNNING, SWEEP_TAG, RunRecord
from orchestrator.record.spool import Spool, set_aside
from orchestrator.record.store import Store
from orchestrator.record.writer import Writer

if TYPE_CHECKING:
    from orchestrator.plan import Plan, Trial

# Reports held in memory while the disk is slow; then `finish` waits, so that memory stays bounded.
QUEUE_LENGTH = 256
# How long `close` waits for a store that is away: longer than a minute's SQLite lock.
PATIENCE_S = 90.0
# Records written to the store before the disk is waited for and the spool forgets them.
SETTLE_EVERY = 64
# Records written to the store before the disk is waited for and the spool forgets them.
SETTLE_EVERY = 64
FIRST_RETRY_S, LONGEST_RETRY_S = 0.25, 15.0


@dataclass(frozen=True)
class RecordingSummary:
    """What became of a sweep's attempts.

    Attributes
    ----------
    run_id, experiment : str or None, str
        The parent run; None if the store was never reached.
    recorded, waiting : int
        Attempts in MLflow, and attempts still in the spool.
    run_ids : dict of str to str
        Attempt id to MLflow run id.
    outcomes : dict of str to int
    problems : tuple of str
        One line each.
    """

    run_id: str | None
    experiment: str
    recorded: int
    waiting: int
    run_ids: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Begun:
    spec: AttemptSpec
    trial: Trial
    slot: Slot
    at: float


class Recording:
    """One invocation of a sweep, being recorded. Satisfies ``schedule``'s RecordingPort.

    Parameters
    ----------
    store : Store
    plan : Plan
        Its name becomes the experiment, its description and axes the parent run's page.
    todo : int, optional
        Attempts that are to run, for the description.
    command : sequence of str, optional
        The command line, for the record; secrets in it are replaced.
    labels : mapping, optional
        Config hash to a short name, for run names; made of the trial's axes where there is none.
    message : callable, optional
        Takes one line for the person; called from the recording threads.
    patience_s : float
        How long :meth:`close` waits for a store that is away.

    Raises
    ------
    StoreError
        The place of the store or of the spool cannot be written, or its disk is full.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        *,
        todo: int | None = None,
        seed: int | None = None,
        command: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        message: Callable[[str], None] | None = None,
        patience_s: float = PATIENCE_S,
        heartbeat_period_s: float = HEARTBEAT_PERIOD_S,
    ) -> None:
        store.check_writable()
        self._store = store
        self._message = message
        self._patience_s = patience_s
        self._heartbeat_period_s = heartbeat_period_s
        self.sweep_id = uuid.uuid4().hex
        self.driver_id = driver_id()
        self.sweep = plan.sweep
        self._builder = Builder(
            sweep_id=self.sweep_id,
            sweep=plan.sweep,
            driver=self.driver_id,
            redactor=Redactor.of_environment(),
            facts=provenance(seed=seed, command=command),
            labels=labels or {},
        )
        self._changed = threading.Condition()
        self._queue: Queue[Callable[[], RunRecord]] = Queue(QUEUE_LENGTH)
        self._paths: deque[Path] = deque()
        self._written: list[Path] = []  # in the store, perhaps not yet safe on its disk
        self._unspooled = 0  # handed to us, not yet on disk
        self._undrained = 0  # on disk, not yet in the store
        self._spool_failure: StoreError | None = None
        self._store_failure: StoreError | None = None
        self._store_away_since: float | None = None
        self._begun: dict[str, _Begun] = {}
        self._outcomes: Counter[str] = Counter()
        self._run_ids: dict[str, str] = {}
        self._run_id: str | None = None
        self._problems: list[str] = []
        self._recorded = 0
        self._stop_spooler = threading.Event()
        self._stop_drainer = threading.Event()
        self._summary: RecordingSummary | None = None

        self._spool = Spool.create(store.spool_root, self.sweep_id)
        try:
            self._parent = self._builder.sweep_begin(plan, time.time(), todo)
            self._paths.append(self._spool.write(self._parent).path)
        except BaseException:
            self._spool.close()
            raise
        self._undrained = 1
        self._spooler = threading.Thread(target=self._spool_all, name="spooler", daemon=True)
        self._drainer = threading.Thread(target=self._drain_all, name="drainer", daemon=True)
        self._spooler.start()
        self._drainer.start()

    @property
    def run_id(self) -> str | None:
        """The parent run's id; None until the store has it."""
        return self._run_id

    def run_id_of(self, attempt_id: str) -> str | None:
        """An attempt's run id; None until the store has it."""
        return self._run_ids.get(attempt_id)

    def begin(self, spec: AttemptSpec, trial: Trial, slot: Slot) -> None:
        """An attempt runs now; returns at once.

        Raises
        ------
        StoreError
            Results cannot be kept any more: measuring on would be in vain.
        """
        if self._spool_failure is not None:
            raise self._spool_failure
        begun = _Begun(spec, trial, slot, time.time())
        self._begun[spec.attempt_id] = begun
        self._submit(lambda: self._builder.attempt_begin(spec, trial, slot, begun.at))

    def finish(self, report: AttemptReport, trial: Trial) -> None:
        """An attempt ended, begun or not; returns at once, waits only when the disk cannot follow.

        Raises
        ------
        StoreError
            The spool has been failing and no more can be held in memory.
        """
        begun = self._begun.pop(report.attempt_id, None)
        if begun is not None:
            report.slot = report.slot or begun.slot
            report.started_at = report.started_at or begun.at
        report.ended_at = report.ended_at or time.time()
        self._outcomes[report.outcome.value] += 1
        self._submit(lambda: self._builder.attempt_finish(report, trial))

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything handed over is in the store; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, status: str = "FINISHED", reason: str | None = None) -> RecordingSummary:
        """End the sweep's run and write what can be written; may be called again.

        Parameters
        ----------
        status : str
            ``FINISHED``, ``FAILED`` or ``KILLED``. Attempts that were begun and never finished end
            as ``cancelled`` in a killed sweep, as ``lost`` in another.
        reason : str, optional
            Why, in one line.
        """
        if self._summary is not None:
            return self._summary
        outcome = Outcome.CANCELLED if status == "KILLED" else Outcome.LOST
        why = "the sweep was stopped" if status == "KILLED" else "nothing was heard of it"
        for begun in list(self._begun.values()):
            report = AttemptReport(
                attempt_id=begun.spec.attempt_id,
                config_hash=begun.spec.config_hash,
                outcome=outcome,
                reason=why,
                number=begun.spec.number,
                sweep=begun.spec.sweep,
            )
            self.finish(report, begun.trial)
        counts, ended_at = dict(self._outcomes), time.time()
        self._submit(
            lambda: self._builder.sweep_end(self._parent, status, ended_at, counts, reason)
        )
        self._wait_patiently()
        self._stop_spooler.set()
        self._spooler.join()
        self._stop_drainer.set()
        with self._changed:
            self._changed.notify_all()
        self._drainer.join()
        return self._finish_up()

    def _finish_up(self) -> RecordingSummary:
        waiting = [p for p in self._spool.pending() if p.name.endswith(".finish")]
        if self._undrained == 0:
            for path in self._spool.pending():
                self._spool.remove(path)
        self._spool.close()
        if self._unspooled:
            self._say(f"{self._unspooled} results could not be written to disk: they are lost")
        if waiting:
            self._say(
                f"{len(waiting)} results wait in {self._spool.directory}: "
                "`python -m orchestrator sync` records them"
            )
        self._summary = RecordingSummary(
            run_id=self._run_id,
            experiment=self.sweep,
            recorded=self._recorded,
            waiting=len(waiting),
            run_ids=dict(self._run_ids),
            outcomes=dict(self._outcomes),
            problems=tuple(self._problems),
        )
        return self._summary

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED", str(error))

    def _is_idle(self) -> bool:
        return self._unspooled == 0 and self._undrained == 0

    def _wait_patiently(self) -> None:
        """Until all is written, or the disk or the store has been failing for too long."""
        spool_failing_since: float | None = None
        while True:
            with self._changed:
                if self._changed.wait_for(self._is_idle, 0.5):
                    return
                away_since = self._store_away_since
            now = time.monotonic()
            if self._spool_failure is None:
                spool_failing_since = None
            elif spool_failing_since is None:
                spool_failing_since = now
            oldest = min(filter(None, (away_since, spool_failing_since)), default=now)
            if now - oldest > self._patience_s:
                return

    def _submit(self, build: Callable[[], RunRecord]) -> None:
        with self._changed:
            self._unspooled += 1
        while True:
            try:
                self._queue.put(build, timeout=1.0)
                return
            except Full:
                if self._spool_failure is not None:
                    with self._changed:
                        self._unspooled -= 1
                    raise self._spool_failure from None

    # -- the spooler's thread -------------------------------------------------------------------

    def _spool_all(self) -> None:
        while not (self._stop_spooler.is_set() and self._queue.empty()):
            try:
                build = self._queue.get(timeout=0.2)
            except Empty:
                continue
            try:
                path: Path | None = self._write(build())
            except Exception as error:
                # One report that cannot be turned into a record must not take the others along.
                self._say(f"a result could not be recorded: {error!r}")
                self._say(traceback.format_exc(limit=4).strip().replace("\n", " | "))
                path = None
            with self._changed:
                if path is not None:
                    self._paths.append(path)
                    self._undrained += 1
                if self._spool_failure is None or path is not None:
                    self._unspooled -= 1
                self._changed.notify_all()

    def _write(self, record: RunRecord) -> Path | None:
        """Put a record on disk, trying again while the disk is full and we are not to stop."""
        while True:
            try:
                path = self._spool.write(record).path
                self._spool_failure = None
                return path
            except StoreError as error:
                if self._spool_failure is None:
                    self._say(str(error))
                self._spool_failure = error
                if self._stop_spooler.wait(1.0):
                    return None

    # -- the drainer's thread -------------------------------------------------------------------

    def _drain_all(self) -> None:
        writer: Writer | None = self._persist(lambda: Writer(self._store.backend()))
        if writer is None:
            return
        try:
            self._drain_until_stopped(writer)
        finally:
            self._settle(writer)

    def _drain_until_stopped(self, writer: Writer) -> None:
        next_beat = time.monotonic() + self._heartbeat_period_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: bool(self._paths) or self._stop_drainer.is_set(),
                    max(0.0, next_beat - time.monotonic()),
                )
                path = self._paths.popleft() if self._paths else None
            if path is None and self._stop_drainer.is_set():
                return
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._heartbeat_period_s
                self._beat()
            if path is None:
                continue
            if not self._drain(writer, path):
                return
            with self._changed:
                self._undrained -= 1
                idle = not self._paths
                self._changed.notify_all()
            if idle or len(self._written) >= SETTLE_EVERY:
                self._settle(writer)

    def _drain(self, writer: Writer, path: Path) -> bool:
        """Write one record to the store; False if we were told to stop before it worked."""
        if path.name.endswith(".begin"):
            finish = path.name.replace("1.", "2.", 1).replace(".begin", ".finish")
            if path.with_name(finish).exists():
                # It ended while we were behind: its run is made whole in one go.
                self._spool.remove(path)
                return True
        item = read_or_set_aside(path, self._say)
        if item is None:
            return True
        record = item.record
        try:
            run_id = self._persist(lambda: writer.apply(record, item.digest))
        except Rejected as error:
            self._say(set_aside(path, str(error)))
            return True
        except Exception as error:
            self._say(set_aside(path, f"{error!r}: {traceback.format_exc(limit=4)}"))
            return True
        if run_id is None:
            return False
        if record.key_tag == SWEEP_TAG:
            self._run_id = run_id
            if record.status == RUNNING:
                # Stays until the end: whoever drains for us after our death needs it.
                return True
        elif record.key_tag == ATTEMPT_TAG:
            self._run_ids[record.key] = run_id
            if record.status != RUNNING:
                self._recorded += 1
                writer.forget(record.key)
        self._written.append(path)
        return True

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
        run_id = self._run_id
        if run_id is None:
            return
        try:
            self._store.backend().tag(run_id, {"heartbeat": f"{time.time():.0f}"})
        except StoreError:
            return  # the next record meets the same trouble and says so

    def _persist(self, call: Callable[[], Any]) -> Any:
        """``call`` until it works; None once we are told to stop. ``Rejected`` goes through."""

        def trouble(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            with self._changed:
                if self._store_away_since is None:
                    self._store_away_since = time.monotonic()
            if isinstance(error, StoreError) and str(error) != str(self._store_failure):
                self._store_failure = error
                self._say(f"{error} (results wait in the spool)")

        def give_up(state: RetryCallState) -> None:
            return None

        retrying = Retrying(
            retry=retry_if_exception(
                lambda error: isinstance(error, StoreError) and not isinstance(error, Rejected)
            ),
            wait=wait_exponential_jitter(FIRST_RETRY_S, LONGEST_RETRY_S, jitter=FIRST_RETRY_S),
            stop=stop_when_event_set(self._stop_drainer),
            sleep=sleep_using_event(self._stop_drainer),
            before_sleep=trouble,
            retry_error_callback=give_up,
        )
        result = retrying(call)
        with self._changed:
            self._store_away_since = None
            self._store_failure = None
        return result

    def _say(self, text: str) -> None:
        self._problems.append(text)
        if self._message is not None:
            self._message(text)
