"""A cluster that runs nothing another driver measures: asks for a claim, then submits.

::

    driver --submit--> wishes --a thread asks--> granted --------------> the cluster itself
                                          |----> another has it -------> Claimed: asked again
                                          `----> it has been measured -> MadeElsewhere

Asking may take as long as a tracking server takes to answer; nothing else waits for it. One that
does not answer in ``claims.patience_s`` is not waited for: better measured twice than not at all.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome, PlannedAttempt
from orchestrator.schedule.events import (
    Claimed,
    ClusterEvent,
    Ended,
    MadeElsewhere,
    Renumbered,
    Vanished,
)
from orchestrator.schedule.placement import Node
from orchestrator.schedule.ports import ClaimsPort, ClusterPort

if TYPE_CHECKING:
    from orchestrator.record.claims import Standing
    from orchestrator.record.summaries import AttemptSummary

TEND_S = 1.0
# So many at once: the first of a long queue shall not wait for the last.
MOST_ASKED = 20
# Between looks at the cluster while an answer is due.
SHORT_S = 0.02


class ClaimingCluster:
    """A :class:`~orchestrator.schedule.ports.ClusterPort` in front of another; a context manager.

    Parameters
    ----------
    cluster : ClusterPort
        Runs what is granted; stays its owner's to close.
    claims : ClaimsPort
    missing : callable
        Takes a config hash and everybody's attempts of it; returns how many are still to be made.
    claim : callable
        Takes an attempt and returns what is claimed for it: its trial, on its kind of machine.
    """

    def __init__(
        self,
        cluster: ClusterPort,
        claims: ClaimsPort,
        missing: Callable[[str, Sequence[AttemptSummary]], int],
        claim: Callable[[PlannedAttempt], str],
    ) -> None:
        self._cluster = cluster
        self._claims = claims
        self._missing = missing
        self._claim = claim
        self._changed = threading.Condition()
        self._wishes: dict[str, PlannedAttempt] = {}
        self._asked: frozenset[str] = frozenset()
        self._asked_at = 0.0
        self._granted: list[PlannedAttempt] = []
        self._unanswered: set[str] = set()
        self._given: defaultdict[str, set[int]] = defaultdict(set)  # numbers of a trial's attempts
        self._events: list[ClusterEvent] = []
        self._in_flight = 0
        self._closed = False
        self._thread = threading.Thread(target=self._ask_until_closed, name="claims", daemon=True)
        self._thread.start()

    # -- the port ---------------------------------------------------------------------------

    def now(self) -> float:
        return self._cluster.now()

    def nodes(self) -> Sequence[Node]:
        return self._cluster.nodes()

    def submit(self, attempt: PlannedAttempt) -> None:
        with self._changed:
            self._wishes[attempt.attempt_id] = attempt
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        with self._changed:
            if not self._in_flight and self._wishes:
                self._changed.wait_for(lambda: self._granted or self._events, timeout_s)
            if self._asked and time.monotonic() - self._asked_at > self._claims.patience_s:
                self._submit_unanswered()
            events, self._events = self._events, []
            granted, self._granted = self._granted, []
            due = bool(self._wishes)
        for wish in granted:
            self._cluster.submit(wish)
            self._in_flight += 1
        if events or granted:
            timeout_s = 0.0
        elif due:
            timeout_s = min(timeout_s, SHORT_S)
        if self._in_flight or not (due or events):
            found = self._cluster.wait(timeout_s)
            self._in_flight -= sum(isinstance(event, Ended | Vanished) for event in found)
            events.extend(found)
        return events

    def cancel(self, attempt_id: str, *, force: bool) -> None:
        with self._changed:
            waiting = self._wishes.pop(attempt_id, None) is not None
            granted = [w for w in self._granted if w.attempt_id != attempt_id]
            waiting = waiting or len(granted) < len(self._granted)
            self._granted = granted
            if waiting:
                self._events.append(Vanished(attempt_id, Outcome.CANCELLED, "cancelled"))
        if waiting:
            self._claims.drop(attempt_id)
        else:
            self._cluster.cancel(attempt_id, force=force)

    # -- its life ---------------------------------------------------------------------------

    def __enter__(self) -> ClaimingCluster:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(TEND_S)

    # -- inside -----------------------------------------------------------------------------

    def _ask_until_closed(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wishes, TEND_S)
                if self._closed:
                    return
                asked = dict(islice(self._wishes.items(), MOST_ASKED))
                self._asked = frozenset(asked)
                self._asked_at = time.monotonic()
            try:
                if asked:
                    self._ask(list(asked.values()))
                else:
                    self._claims.tend()
            except Exception:  # whatever is wrong with claims, measuring goes on
                self._submit_unanswered()
            with self._changed:
                self._asked = frozenset()

    def _ask(self, asked: Sequence[PlannedAttempt]) -> None:
        # One attempt of a trial at a time: the answer for the second counts the first.
        firsts = {self._claim(attempt): attempt for attempt in reversed(asked)}
        wishes = {attempt.attempt_id: claim for claim, attempt in firsts.items()}
        for attempt_id, standing in self._claims.ask(wishes).items():
            wish = firsts[wishes[attempt_id]]
            answer = self._judge(wish, standing)
            with self._changed:
                wanted = self._wishes.pop(attempt_id, None) is not None
                if wanted and isinstance(answer, PlannedAttempt):
                    if answer.number != wish.number:
                        self._events.append(Renumbered(attempt_id, answer.number))
                    self._granted.append(answer)
                elif attempt_id not in self._unanswered:  # refused, or cancelled meanwhile
                    self._claims.drop(attempt_id)
                    if wanted and not isinstance(answer, PlannedAttempt):
                        self._events.append(answer)
                self._changed.notify_all()

    def _judge(
        self, attempt: PlannedAttempt, standing: Standing | None
    ) -> PlannedAttempt | Claimed | MadeElsewhere:
        """The attempt as it is to be made, or why it is not."""
        if standing is None:
            return Claimed(attempt.attempt_id)
        if standing.attempts is None:
            self._given[attempt.trial.hash].add(attempt.number)
            return attempt
        missing = self._missing(attempt.trial.hash, standing.attempts)
        if missing <= 0:
            return MadeElsewhere(attempt.attempt_id)
        if missing <= standing.own:
            # Our own other attempts may be all that is missing: ask again when they ended.
            return Claimed(attempt.attempt_id)
        driver = attempt.attempt_id.rpartition("-")[0]
        others = [a.number for a in standing.attempts if not a.attempt_id.startswith(driver)]
        number = max(attempt.number, 1 + max(others, default=0))
        given = self._given[attempt.trial.hash]
        while number in given:
            number += 1
        given.add(number)
        return replace(attempt, number=number)

    def _submit_unanswered(self) -> None:
        """What is being asked for is submitted without a claim."""
        with self._changed:
            for attempt_id in self._asked & self._wishes.keys():
                self._granted.append(self._wishes.pop(attempt_id))
                self._unanswered.add(attempt_id)
            self._changed.notify_all()
