"""Puts in order what dead drivers left behind: results in the spool, runs that never ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.attempt import Outcome
from orchestrator.measure.wording import counted
from orchestrator.record import spool
from orchestrator.record.backend import RunRow
from orchestrator.record.boundary import Failed, Rejected
from orchestrator.record.build import lost_attempt, lost_record, status_of
from orchestrator.record.liveness import is_alive
from orchestrator.record.runrecord import (
    ATTEMPT_TAG,
    DIGEST_TAG,
    PARENT_TAG,
    RUNNING,
    SWEEP_TAG,
    RunRecord,
    outcome_of,
)
from orchestrator.record.spool import CorruptRecord, Spool, Spooled
from orchestrator.record.store import Store
from orchestrator.record.summaries import summary_of
from orchestrator.record.writer import Writer

LOST = "the driver died before the attempt could report"
UNHEARD = "the driver died before it heard whether the attempt had begun"


@dataclass
class SyncSummary:
    """What :func:`sync` did.

    Attributes
    ----------
    written, lost : int
        Attempts recorded, and of those the ones that were begun but never reported.
    in_use : int
        Spools that belong to a living driver, which drains them itself.
    messages : list of str
        One line for each record that was set aside, or that the store does not take now.
    """

    written: int = 0
    lost: int = 0
    in_use: int = 0
    messages: list[str] = field(default_factory=list)


def sync(store: Store, *, message: Callable[[str], None] | None = None) -> SyncSummary:
    """Record what dead drivers spooled; safe to repeat, and while other drivers run.

    Raises
    ------
    StoreUnavailable
        The store is away; what waits goes on waiting.
    StoreError
        It can never be written.
    """
    summary = SyncSummary()

    def say(text: str) -> None:
        summary.messages.append(text)
        if message is not None:
            message(text)

    writer: Writer | None = None
    for directory in spool.spool_directories(store.spool_root):
        if not os.access(directory, os.W_OK):
            say(f"{directory}: cannot be written, what waits there is not recorded")
            continue
        with spool.abandoned(directory) as waiting:
            if waiting is None:
                summary.in_use += 1
                continue
            if waiting.pending():
                writer = writer or Writer(store.backend(), replay=True)
                _drain(waiting, writer, summary, say)
    return summary


def _drain(
    waiting: Spool, writer: Writer, summary: SyncSummary, say: Callable[[str], None]
) -> None:
    paths = waiting.pending() + waiting.submitted()
    reported = {_key_of(path) for path in paths if path.name.endswith(".finish")}
    begun = {_key_of(path) for path in paths if path.name.endswith(".begin")}
    now = time.time()
    sweep: RunRecord | None = None
    ended = False
    done: list[Path] = []
    failures: list[Failed] = []
    for path in paths:
        item = read_or_set_aside(path, say)
        if item is None:
            continue
        record, digest, guess = item.record, item.digest, False
        if record.key_tag == SWEEP_TAG:
            if record.status == RUNNING:
                sweep = record
            else:
                ended = True
        elif record.status == RUNNING:
            heard = path.name.endswith(".begin")
            if _key_of(path) in (reported if heard else reported | begun):
                waiting.remove(path)
                continue
            record = lost_record(record, ended_at=now, reason=LOST if heard else UNHEARD)
            guess = True
            summary.lost += 1
        try:
            writer.apply(record, digest, only_if_open=guess)
            summary.written += record.key_tag == ATTEMPT_TAG
        except Rejected as error:
            say(spool.set_aside(path, str(error)))
            continue
        except Failed as error:
            failures.append(error)
            continue
        done.append(path)
    if sweep is not None and not ended:
        tags = {**sweep.tags, "reason": "the driver died"}
        end = replace(sweep, status="KILLED", end_ms=round(now * 1000), tags=tags)
        with contextlib.suppress(Failed):  # of its own beginning it has been said
            writer.apply(end, "", only_if_open=True)
    if failures:
        say(f"{failures[0]} ({counted(len(failures), 'record')} of {waiting.directory} left there)")
    writer.settle()
    # The sweep's beginning goes last: should we die here, who drains next needs it for the rest.
    for path in reversed(done):
        waiting.remove(path)


def read_or_set_aside(path: Path, say: Callable[[str], None]) -> Spooled | None:
    """A record, or None and a message if it is corrupt; the others must not wait for it."""
    try:
        return spool.read(path)
    except FileNotFoundError:
        return None
    except CorruptRecord as error:
        say(spool.set_aside(path, str(error)))
        return None


def _key_of(path: Path) -> str:
    return path.name.split(".")[1]


@dataclass(frozen=True)
class ReapSummary:
    """How many runs of dead drivers :func:`reap` ended."""

    attempts: int = 0
    sweeps: int = 0


def reap(store: Store, *, now: float | None = None) -> ReapSummary:
    """End RUNNING runs whose driver is dead: KILLED, outcome ``lost``.

    Attempts whose report still waits in a spool are left to :func:`sync`. A driver on another host
    is dead when it has not been heard of for :data:`~orchestrator.record.liveness.STALE_AFTER_S`;
    should it live after all, its own later report replaces what is written here.

    Raises
    ------
    StoreUnavailable, StoreError
        As :func:`sync`.
    """
    now = time.time() if now is None else now
    running = store.running()
    if not running:
        return ReapSummary()
    beats = {run.run_id: _heartbeat(run) for run in running}
    waiting = {
        item.record.key
        for item in spool.unread(store.spool_root)
        if item.record.key_tag == ATTEMPT_TAG and item.record.status != RUNNING
    }
    attempts = sweeps = 0
    for run in running:
        # An attempt beats through its parent. A parent that ended no longer beats.
        beat = beats.get(run.tags.get(PARENT_TAG, run.run_id)) or _heartbeat(run)
        if is_alive(run.tags["driver_id"], beat, now=now):
            continue
        if run.tags.get(ATTEMPT_TAG) in waiting:
            continue
        if ATTEMPT_TAG in run.tags:
            if outcome := outcome_of(run.run_id, run.tags):
                # Whole but for its status, which a server is told last.
                store.backend().end(run.run_id, status_of(Outcome(outcome)), round(now * 1000))
            else:
                _end_as_lost(store, run, now)
            attempts += 1
        elif SWEEP_TAG in run.tags:
            backend = store.backend()
            backend.tag(run.run_id, {"reason": "the driver died"})
            backend.end(run.run_id, "KILLED", round(now * 1000))
            sweeps += 1
    return ReapSummary(attempts, sweeps)


def _end_as_lost(store: Store, run: RunRow, now: float) -> None:
    tags, files = lost_attempt(summary_of(run), ended_at=now, reason=LOST)
    backend = store.backend()
    backend.put_files(run, files)
    backend.tag(run.run_id, {**tags, DIGEST_TAG: "reaped"})
    backend.end(run.run_id, status_of(Outcome.LOST), round(now * 1000))


def _heartbeat(run: RunRow) -> float | None:
    try:
        return float(run.tags["heartbeat"])
    except (KeyError, ValueError):
        # Never beaten: it began when its run did.
        return run.start_ms / 1000
