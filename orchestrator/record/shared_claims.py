"""Claims between hosts: tags on each driver's own sweep run, on a store that all of them read.

A driver writes its claim, *then* looks who else claims the trial. It holds the trial only after a
look, made after its own write, that showed nobody else. Of two drivers the one that writes second
therefore always sees the first; should both see each other, one steps back. Nothing has to be
compared and set in one step, which an MLflow server has no call for.

A claim counts while its run is RUNNING and its driver lives: on this host while that process does,
on another while the run's heartbeat moves. That is watched on our own monotonic clock, for
``STALE_AFTER_S``; clocks of different hosts are never compared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice

from orchestrator.errors import StoreError, StoreUnavailable
from orchestrator.record.backend import Backend, RunRow
from orchestrator.record.liveness import STALE_AFTER_S, is_alive, is_of_this_host
from orchestrator.record.runrecord import SWEEP_TAG

PREFIX = "claim."
# How long the driver whose turn it is waits for another to step back.
LOOKS, LOOK_PERIOD_S = 5, 0.2
# The sweep's run is made in the background; with a store that is away it is not made at all.
RUN_PATIENCE_S = 5.0
# A sweep that ended so long before this one began recorded nothing since this one was planned,
# whatever the two hosts' clocks say.
CLOCKS_DIFFER_MS = 3_600_000
NEWEST = 20


class SharedClaims:
    """Claims as tags ``claim.0``, ``claim.1`` … of one run; values are claims, or empty.

    Tags are used again: a run has as many as were ever held at once.

    Parameters
    ----------
    backend : callable
        Returns the store for writing.
    run_id : callable
        Returns the id of this driver's sweep run; None until the store has it.
    clock, sleep : callable
        Seconds, monotonic; for tests.

    Attributes
    ----------
    company : bool
        Whether another driver may have used the store since this sweep was planned.
    """

    def __init__(
        self,
        backend: Callable[[], Backend],
        run_id: Callable[[], str | None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.company = False
        self._backend = backend
        self._run_id = run_id
        self._clock = clock
        self._sleep = sleep
        self._began_ms = round(time.time() * 1000)
        self._lock = threading.Lock()
        self._tags: list[str] = []  # what each tag holds, or is to hold
        self._place: dict[str, int] = {}
        self._dirty: set[int] = set()
        self._given_up: set[str] = set()
        self._beats: dict[str, tuple[str, float]] = {}

    def take(self, claims: Iterable[str]) -> set[str]:
        """Claim trials that are not claimed yet; returns those that other drivers have.

        Raises
        ------
        StoreError
            Nothing is claimed, and nothing known.
        """
        run_id = self._own_run()
        with self._lock:
            wanted = set(claims)
            self._given_up -= wanted  # the server has not heard of it: still ours
            new = wanted - self._place.keys()
        lost = new & self._claimed_by_others(run_id).keys() if self.company else set()
        new -= lost
        if not new:
            return lost
        with self._lock:
            for claim in sorted(new):
                self._claim(claim)
        try:
            self._write(run_id)
            lost |= self._contest(run_id, new)
        except StoreError:
            with self._lock:
                for claim in new & self._place.keys():
                    self._clear(claim)
            raise
        return lost

    def release(self, claim: str) -> None:
        """Give a trial up; the server hears of it with the next :meth:`flush` or :meth:`take`."""
        with self._lock:
            if claim in self._place:
                self._given_up.add(claim)

    def flush(self) -> None:
        """Tell the server what was given up."""
        with self._lock:
            for claim in list(self._given_up):
                self._clear(claim)
        if self._dirty:
            self._write(self._own_run())

    def _contest(self, run_id: str, new: set[str]) -> set[str]:
        """Look until each of ``new`` is nobody else's, or given up; returns the latter."""
        lost: set[str] = set()
        for look in range(LOOKS):
            if look:
                self._sleep(LOOK_PERIOD_S)
            claimed = self._claimed_by_others(run_id)
            contested = (new - lost) & claimed.keys()
            # The lowest run id may hope that the others step back; it is the only one that does.
            back = {h for h in contested if look == LOOKS - 1 or min(claimed[h]) < run_id}
            if back:
                with self._lock:
                    for claim in back:
                        self._clear(claim)
                self._write(run_id)
                lost |= back
            if contested == back:
                break
        return lost

    def _claimed_by_others(self, run_id: str) -> dict[str, list[str]]:
        """Claimed trials, and the sweep runs of the living drivers that claim them."""
        running = f"tags.{SWEEP_TAG} LIKE '%' AND attributes.status = 'RUNNING'"
        found: dict[str, list[str]] = {}
        for run in self._backend().search(running):
            if run.run_id == run_id or not self._lives(run):
                continue
            self.company = True
            for key, value in run.tags.items():
                if key.startswith(PREFIX) and value:
                    found.setdefault(value, []).append(run.run_id)
        if not self.company:
            every = self._backend().search(f"tags.{SWEEP_TAG} LIKE '%'", page_size=NEWEST)
            since_ms = self._began_ms - CLOCKS_DIFFER_MS
            self.company = any(
                run.run_id != run_id and (run.end_ms is None or run.end_ms > since_ms)
                for run in islice(every, NEWEST)
            )
        return found

    def _lives(self, run: RunRow) -> bool:
        driver = run.tags.get("driver_id", "")
        if is_of_this_host(driver):
            return is_alive(driver, None)
        beat = run.tags.get("heartbeat", "")
        before, since = self._beats.get(run.run_id, ("", 0.0))
        if before != beat:
            self._beats[run.run_id] = (beat, self._clock())
            return True
        return self._clock() - since < STALE_AFTER_S

    def _own_run(self) -> str:
        deadline = self._clock() + RUN_PATIENCE_S
        while (run_id := self._run_id()) is None:
            if self._clock() > deadline:
                raise StoreUnavailable("the tracking server does not answer")
            self._sleep(0.05)
        return run_id

    def _claim(self, claim: str) -> None:
        if self._given_up:
            place = self._place[next(iter(self._given_up))]
            self._clear(self._tags[place])
        elif "" in self._tags:
            place = self._tags.index("")
        else:
            place = len(self._tags)
            self._tags.append("")
        self._tags[place] = claim
        self._place[claim] = place
        self._dirty.add(place)

    def _clear(self, claim: str) -> None:
        place = self._place.pop(claim)
        self._given_up.discard(claim)
        self._tags[place] = ""
        self._dirty.add(place)

    def _write(self, run_id: str) -> None:
        with self._lock:
            changed = {place: self._tags[place] for place in self._dirty}
        self._backend().tag(run_id, {f"{PREFIX}{place}": h for place, h in changed.items()})
        with self._lock:
            self._dirty -= {place for place, h in changed.items() if self._tags[place] == h}
