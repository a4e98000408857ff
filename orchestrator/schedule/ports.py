"""What the driver needs from the rooms around it, as narrow protocols.

::

    driver --submit/cancel--> ClusterPort --events--> driver --begin/finish--> RecordingPort
                                                        `-----shows----------> ViewPort
           ClaimsPort stands before ClusterPort where several drivers share a store

Besides Ray (:mod:`.cluster`) ``testing`` has a ``ClusterPort`` in virtual time and one without Ray:
the driver cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from orchestrator.attempt import AttemptReport, PlannedAttempt, Slot, Trial

if TYPE_CHECKING:
    from orchestrator.record.claims import Standing
    from orchestrator.schedule.events import ClusterEvent
    from orchestrator.schedule.placement import Node


class RecordingPort(Protocol):
    """Keeps what happened; all calls return at once (the recording queues and spools)."""

    def submit(self, attempt: PlannedAttempt) -> None:
        """An attempt may begin from now on; kept for the case that this driver dies."""
        ...

    def withdraw(self, attempt_id: str) -> None:
        """An attempt that was submitted will not be made."""
        ...

    def begin(self, attempt: PlannedAttempt, slot: Slot) -> None:
        """An attempt has its slot and starts."""
        ...

    def finish(self, report: AttemptReport, trial: Trial) -> None:
        """An attempt ended. One that never started (infeasible, lost early) has no ``begin``."""
        ...


class ViewPort(Protocol):
    """Shows a person what happens."""

    def submitted(self, attempt: PlannedAttempt) -> None: ...

    def withdrawn(self, attempt: PlannedAttempt, *, made: bool) -> None:
        """Another driver makes what was submitted, or has ``made`` it."""
        ...

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None: ...

    def phase(self, attempt: PlannedAttempt, name: str) -> None: ...

    def finished(self, report: AttemptReport, trial: Trial) -> None: ...

    def message(self, text: str) -> None: ...


class ClaimsPort(Protocol):
    """Keeps other drivers on the same store from measuring the same trial at the same time.

    Called from one thread. Claims are given up by the recording, once a result can be read.
    """

    @property
    def patience_s(self) -> float:
        """How long an answer is waited for; then the attempt is made without a claim."""
        ...

    def ask(self, wishes: Mapping[str, str]) -> Mapping[str, Standing | None]:
        """Claim what some attempts measure; None for those another driver is at."""
        ...

    def drop(self, attempt_id: str) -> None:
        """The attempt will not be made; from any thread."""
        ...

    def tend(self) -> None:
        """Called about once a second."""
        ...


class ClusterPort(Protocol):
    """Runs attempts somewhere. Calls return at once but for ``wait``, which is bounded."""

    def now(self) -> float:
        """Seconds on the clock that ``wait`` waits by (monotonic, or virtual)."""
        ...

    def nodes(self) -> Sequence[Node]:
        """The nodes alive now."""
        ...

    def submit(self, attempt: PlannedAttempt) -> None:
        """Queue one attempt for a slot of its trial's resources.

        In the first of its ``places``, if it has any, and on no node it is to ``avoid``.
        """
        ...

    def wait(self, timeout_s: float) -> Sequence[ClusterEvent]:
        """What happened since the last call; waits at most ``timeout_s`` for the first event."""
        ...

    def cancel(self, attempt_id: str, *, force: bool) -> None:
        """End an attempt: with its partial report where it can be had, at once with ``force``."""
        ...
