"""Claims: of several drivers on one store, only one measures a trial at a time in one class.

::

    ask ── lock of this host ── tag on the server (if any) ── what others recorded meanwhile
             kernel lets go        lease: a beating heart
                                                  recorded ──> the claim is given up

A trial is claimed before it is submitted and until its result can be read by others, so whoever
gets the claim next sees that result and does not measure again. On one host a claim is a byte of a
file, locked: the kernel frees it the moment its holder is gone, and no clock is asked. Between
hosts it is a tag of the holder's sweep run (:mod:`.shared_claims`).

What is claimed is named ``HASH/CLASS``: a config hash, and the conditions of the measurement where
they matter. What another kind of machine measures is no reason to wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.measure.grouping import grouped
from orchestrator.record import spool
from orchestrator.record.drivers import drivers_directory
from orchestrator.record.runrecord import ATTEMPT_TAG, RUNNING
from orchestrator.record.shared_claims import SharedClaims
from orchestrator.record.store import Store
from orchestrator.record.summaries import AttemptSummary, each_once, summary_of_record

# A local disk answers, however late; a server may be away without saying so.
PATIENCE_S, SHARED_PATIENCE_S = 120.0, 30.0
_FILE = "claims"
# struct flock of Linux on 64 bits: type, whence, (padding), start, length, pid.
_FLOCK = "hhqqi4x"


@dataclass(frozen=True)
class Standing:
    """A claimed trial: what is known of it now that nobody else can change it.

    Attributes
    ----------
    attempts : sequence of AttemptSummary or None
        Everybody's finished attempts; None where the store could not be asked, or nobody but this
        driver has used it since the sweep was planned.
    own : int
        Attempts of this driver that ``attempts`` may or may not hold yet.
    """

    attempts: Sequence[AttemptSummary] | None
    own: int


class HostLocks:
    """Exclusive locks on trials among the processes of this host that use the same spool root.

    Locks of an open file description (``F_OFD_SETLK``): one descriptor whatever their number, gone
    with the process, and no file to remove afterwards.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, claim: str) -> bool:
        """Whether it is ours now; returns at once."""
        try:
            self._set(fcntl.F_WRLCK, claim)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def release(self, claim: str) -> None:
        """Let others have it."""
        self._set(fcntl.F_UNLCK, claim)

    def close(self) -> None:
        """Release everything."""
        os.close(self._file)

    def _set(self, kind: int, claim: str) -> None:
        # 60 bits of a digest: two claims on one byte would only wait for each other.
        where = int(hashlib.sha256(claim.encode()).hexdigest()[:15], 16)
        wish = struct.pack(_FLOCK, kind, os.SEEK_SET, where, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, wish)


class Claims:
    """This driver's claims. ``ask`` from one thread, ``drop`` from any.

    Parameters
    ----------
    store : Store
    own_spool : Path
        This driver's directory in the spool.
    shared : SharedClaims, optional
        For a store that other hosts use too.
    say : callable
        Takes one line for the person.

    Attributes
    ----------
    patience_s : float
        After this long without an answer it is better to measure without a claim.
    """

    def __init__(
        self,
        store: Store,
        own_spool: Path,
        *,
        shared: SharedClaims | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.patience_s = PATIENCE_S if shared is None else SHARED_PATIENCE_S
        self._store = store
        self._own_spool = own_spool
        self._shared = shared
        self._say = say
        self._host = HostLocks(drivers_directory(store.spool_root))
        self._lock = threading.Lock()
        self._holders: dict[str, set[str]] = {}  # claim to our attempts
        self._claims: dict[str, str] = {}  # the other way round
        self._company = shared is None  # reading SQLite costs less than finding out
        self._said = False

    @property
    def met_others(self) -> bool:
        """Whether another driver has left its spool here, alive or dead."""
        return bool(self._other_spools())

    def ask(self, wishes: Mapping[str, str]) -> dict[str, Standing | None]:
        """Claim what some attempts measure.

        Parameters
        ----------
        wishes : mapping of attempt id to claim
            Each ``HASH`` or ``HASH/CLASS``.

        Returns
        -------
        dict of attempt id to Standing or None
            None: another driver has it now.
        """
        with self._lock:
            own = {claim: len(self._holders.get(claim, ())) for claim in wishes.values()}
            mine = {claim for claim in own if claim in self._holders or self._host.take(claim)}
            for attempt_id, claim in wishes.items():
                if claim in mine:
                    self._holders.setdefault(claim, set()).add(attempt_id)
                    self._claims[attempt_id] = claim
        others = self._other_spools()
        # Spools first: what is drained in between is then seen in the store.
        waiting = _spooled(others, frozenset(map(_trial_of, mine)))
        lost: set[str] = set()
        known: dict[str, list[AttemptSummary]] | None = None
        try:
            if self._shared is not None:
                lost = self._shared.take(mine)
            known = self._recorded(frozenset(map(_trial_of, mine - lost)), others)
            self._said = False
        except StoreError as error:
            # Better measured twice than not at all: the store may be away for the whole sweep.
            if not self._said:
                self._said = True
                self._say(f"{error} (other drivers' claims cannot be seen meanwhile)")
        found: dict[str, Standing | None] = {}
        for attempt_id, claim in wishes.items():
            found[attempt_id] = None
            if claim in lost:
                self.drop(attempt_id)
            elif claim in mine:
                config_hash = _trial_of(claim)
                recorded = [] if known is None else known.get(config_hash, [])
                there = each_once([*recorded, *waiting.get(config_hash, ())])
                nothing_new = known is None and not there
                attempts = None if nothing_new else list(there.values())
                found[attempt_id] = Standing(attempts, own[claim])
        return found

    def drop(self, attempt_id: str) -> None:
        """This attempt will not be made, or others can read its result now; from any thread."""
        with self._lock:
            claim = self._claims.pop(attempt_id, None)
            if claim is None:
                return
            holders = self._holders[claim]
            holders.discard(attempt_id)
            if holders:
                return
            del self._holders[claim]
            if self._shared is not None:
                self._shared.release(claim)
            self._host.release(claim)

    def tend(self) -> None:
        """Tell the server what was given up; call it now and then, and from the thread of ask."""
        if self._shared is not None:
            with contextlib.suppress(StoreError):
                self._shared.flush()

    def close(self) -> None:
        """Give everything up; the sweep's run, which carries the shared claims, ends by itself."""
        with self._lock:
            self._holders.clear()
            self._claims.clear()
            self._host.close()

    def _recorded(
        self, wanted: frozenset[str], others: Sequence[Path]
    ) -> dict[str, list[AttemptSummary]] | None:
        """What the store has of these trials; None where nobody else can have added to it."""
        self._company = self._company or bool(others) or bool(self._shared and self._shared.company)
        if not self._company:
            return None
        return grouped(self._store.recorded(wanted), lambda summary: summary.config_hash)

    def _other_spools(self) -> list[Path]:
        every = spool.spool_directories(self._store.spool_root)
        return [directory for directory in every if directory != self._own_spool]


def _trial_of(claim: str) -> str:
    return claim.partition("/")[0]


def _spooled(
    directories: Iterable[Path], wanted: frozenset[str]
) -> dict[str, list[AttemptSummary]]:
    """Finished attempts of these trials that wait in other drivers' spools."""
    found = [
        summary_of_record(str(item.path), item.record)
        for directory in directories
        for item in spool.unread_in(directory)
        if item.record.key_tag == ATTEMPT_TAG and item.record.status != RUNNING
    ]
    return grouped((s for s in found if s.config_hash in wanted), lambda s: s.config_hash)
