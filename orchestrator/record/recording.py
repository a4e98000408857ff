"""Records a running sweep: every attempt onto disk at once, from there into MLflow.

::

    begin / finish --queue--> spooler --files--> drainer --> MLflow
       (return at once)       redact, fsync      retries while the store is away

Nobody waits for MLflow: the spooler makes results durable, the drainer writes them when the store
lets it, and what it cannot write stays in the spool for ``sync`` or the next driver.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, RunningAttempt, Slot, Trial
from orchestrator.errors import StoreError
from orchestrator.record.build import Builder, Findings
from orchestrator.record.claims import Claims
from orchestrator.record.drainer import Drainer
from orchestrator.record.liveness import HEARTBEAT_PERIOD_S, driver_id
from orchestrator.record.provenance import provenance
from orchestrator.record.redact import Redactor
from orchestrator.record.shared_claims import SharedClaims
from orchestrator.record.spool import Spool
from orchestrator.record.spooler import Spooler
from orchestrator.record.store import Store

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan

# How long `close` waits for a store that is away: longer than a minute's SQLite lock. A person who
# stopped the sweep waits less; what is spooled is not lost.
PATIENCE_S = 90.0
STOPPED_PATIENCE_S = 10.0


@dataclass(frozen=True)
class RecordingSummary:
    """What became of a sweep's attempts.

    Attributes
    ----------
    run_id : str or None
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
    recorded: int
    waiting: int
    run_ids: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


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
    search_id : str, optional
        Of the search that this is a step of.

    Attributes
    ----------
    claims : Claims
        What this driver measures and others must not; each is given up once it is recorded.

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
        command: Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        message: Callable[[str], None] | None = None,
        patience_s: float = PATIENCE_S,
        heartbeat_period_s: float = HEARTBEAT_PERIOD_S,
        search_id: str | None = None,
    ) -> None:
        store.check_writable()
        self._message = message
        self._patience_s = patience_s
        self.sweep_id = uuid.uuid4().hex
        self.driver_id = driver_id()
        self.sweep = plan.sweep
        self._sync = plan.settings.tracking.command("sync")
        self._builder = Builder(
            sweep_id=self.sweep_id,
            sweep=plan.sweep,
            driver=self.driver_id,
            redactor=Redactor.of_environment(),
            facts=provenance(command=command),
            labels=labels or {},
            search_id=search_id,
            number=_next_number(store, plan.sweep),
        )
        self._begun: dict[str, RunningAttempt] = {}
        self._outcomes: Counter[str] = Counter()
        self._problems: list[str] = []
        self._summary: RecordingSummary | None = None
        self._findings = Findings()
        self._changed = threading.Condition()
        self._spool = Spool.create(store.spool_root, self.sweep_id)
        shared = SharedClaims(store.backend, lambda: self.run_id) if store.is_shared else None
        self.claims = Claims(store, self._spool.directory, shared=shared, say=self._say)
        try:
            # In the caller's thread: a disk that is full is said before anything is measured.
            self._parent = self._builder.sweep_begin(plan, time.time(), todo)
            begin = self._spool.write(self._parent)
        except BaseException:
            self.claims.close()
            self._spool.close()
            raise
        self._drainer = Drainer(
            store,
            self._spool,
            say=self._say,
            changed=self._changed,
            heartbeat_period_s=heartbeat_period_s,
            recorded=self.claims.drop,
        )
        self._drainer.add(begin.path)
        self._spooler = Spooler(
            self._spool,
            spooled=lambda item: self._drainer.add(item.path),
            say=self._say,
            changed=self._changed,
        )

    @property
    def run_id(self) -> str | None:
        """The parent run's id; None until the store has it."""
        return self._drainer.run_id

    def submit(self, attempt: PlannedAttempt) -> None:
        """An attempt may begin any time now: should we die before we hear of it, it is known."""
        record = self._builder.attempt_submitted(attempt, time.time())
        # A disk that is full is the spooler's to report; without the note only a death costs more.
        with contextlib.suppress(StoreError):
            self._spool.submit(record)

    def withdraw(self, attempt_id: str) -> None:
        """An attempt that was submitted will not be made."""
        self._spool.withdraw(attempt_id)

    def begin(self, attempt: PlannedAttempt, slot: Slot) -> None:
        """An attempt runs now; returns at once.

        Raises
        ------
        StoreError
            Results cannot be kept any more: measuring on would be in vain.
        """
        if self._spooler.failure is not None:
            raise self._spooler.failure
        now = time.time()
        self._begun[attempt.attempt_id] = RunningAttempt(attempt, now, now, slot)
        self._spooler.submit(lambda: self._builder.attempt_begin(attempt, slot, now))

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
            report.started_at = report.started_at or begun.submitted_at
        report.ended_at = report.ended_at or time.time()
        self._outcomes[report.outcome.value] += 1
        self._spooler.submit(lambda: self._builder.attempt_finish(report, trial))

    def attach(self, findings: Findings) -> None:
        """What the sweep found, for its own run; written by :meth:`close`."""
        self._findings = findings

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything handed over is in the store; False if it cannot be, or not yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle() or self._drainer.ended, timeout_s)
            return self._is_idle()

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
        try:
            self._hand_over_the_end(status, reason)
        except StoreError as error:
            self._say(str(error))
        patience_s = self._patience_s
        self._wait(min(patience_s, STOPPED_PATIENCE_S) if status == "KILLED" else patience_s)
        self._spooler.stop()
        self._drainer.stop()
        self.claims.close()
        return self._finish_up()

    def _hand_over_the_end(self, status: str, reason: str | None) -> None:
        outcome = Outcome.CANCELLED if status == "KILLED" else Outcome.LOST
        why = "the sweep was stopped" if status == "KILLED" else "nothing was heard of it"
        for begun in list(self._begun.values()):
            self.finish(begun.planned.report(outcome, why), begun.planned.trial)
        counts, ended_at = dict(self._outcomes), time.time()
        self._spooler.submit(
            lambda: self._builder.sweep_end(
                self._parent, status, ended_at, counts, reason, self._findings
            )
        )

    def _finish_up(self) -> RecordingSummary:
        waiting = [p for p in self._spool.pending() if p.name.endswith(".finish")]
        if self._is_idle():
            for path in self._spool.pending():
                self._spool.remove(path)
        # A driver that lived to its end has withdrawn them, or forgotten them as never heard of.
        for path in self._spool.submitted():
            self._spool.remove(path)
        self._spool.close()
        if self._spooler.unspooled:
            lost = self._spooler.unspooled
            self._say(f"{lost} results could not be written to disk: they are lost")
        if waiting:
            self._say(
                f"{len(waiting)} results wait in {self._spool.directory}: "
                f"`{self._sync}` records them"
            )
        self._summary = RecordingSummary(
            run_id=self._drainer.run_id,
            recorded=self._drainer.recorded,
            waiting=len(waiting),
            run_ids=dict(self._drainer.run_ids),
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
        return self._spooler.unspooled == 0 and self._drainer.undrained == 0

    def _wait(self, patience_s: float) -> None:
        """Until all is written, or the disk or the store has been failing for too long."""
        failing_since: float | None = None
        while not self.flush(0.5) and not self._drainer.ended:
            now = time.monotonic()
            if self._spooler.failure is None:
                failing_since = None
            elif failing_since is None:
                failing_since = now
            oldest = min(filter(None, (self._drainer.away_since, failing_since)), default=now)
            if now - oldest > patience_s:
                return

    def _say(self, text: str) -> None:
        self._problems.append(text)
        if self._message is not None:
            self._message(text)


def _next_number(store: Store, sweep: str) -> int:
    """Which run of its sweep the next one is; 0 where the store does not say."""
    try:
        return 1 + max((run.number for run in store.sweep_runs(sweep)), default=0)
    except StoreError:
        return 0
