"""Holds an attempt back until its GPUs have given back what earlier work held there.

The verdict rule ``memory_before`` has the limit, ``verdict.memory_wait_s`` the patience. Where the
memory stays in use, the rule's state decides: ``invalid`` keeps the attempt from being measured at
all (a person would wait for a figure that nobody may believe), ``flagged`` only marks it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot
from orchestrator.errors import ConfigError
from orchestrator.schedule.events import Waiting

if TYPE_CHECKING:
    from orchestrator.telemetry.vacancy import Held

RULE = "memory_before"
POLL_S = 0.05
SILENCE_S = 2.0


class GpuMemoryGate:
    """The memory of one attempt's GPUs before it begins.

    Attributes
    ----------
    held : tuple of Held
        What was over the limit when last looked at.
    """

    def __init__(self, attempt: PlannedAttempt, slot: Slot) -> None:
        self.held: tuple[Held, ...] = ()
        self._attempt, self._slot = attempt, slot
        self._began_at, self._began_s = time.time(), time.monotonic()

    def wait(self, cancelled: Callable[[], bool]) -> Iterator[Waiting]:
        """Return once the GPUs are free, or patience is over; says once what it waits for."""
        from orchestrator.telemetry.vacancy import Vacancy
        from orchestrator.telemetry.verdict import limit_of

        try:
            limit = limit_of(self._attempt.verdict, RULE) if self._slot.gpus else None
        except ConfigError:
            return  # the verdict will say it; a broken rule must not cost the measurement
        if limit is None:
            return
        vacancy = Vacancy(self._slot.gpus, float(limit))
        patience_s = float(self._attempt.verdict.get("memory_wait_s", 0.0))
        said = False
        while not vacancy.is_free() and not cancelled():
            waited_s = time.monotonic() - self._began_s
            if waited_s >= patience_s:
                break
            if waited_s > SILENCE_S and not said:
                said = True
                yield Waiting(
                    self._attempt.attempt_id,
                    f"waiting for memory of earlier work: {vacancy.held[0]}",
                )
            time.sleep(POLL_S)
        self.held = vacancy.held

    @property
    def refuses(self) -> bool:
        """Whether nothing may be measured: memory is held, and the rule is no mere flag."""
        if not self.held:
            return False
        return str(self._attempt.verdict["rules"][RULE].get("state", "invalid")) == "invalid"

    def report(self) -> AttemptReport:
        """The report of an attempt that was not begun."""
        from orchestrator.telemetry.verdict import judge

        waited_s = time.monotonic() - self._began_s
        before = {one.uuid: float(one.used_bytes) for one in self.held}
        report = self._attempt.report(
            Outcome.INVALID,
            "not begun: " + "; ".join(map(str, self.held)),
            started_at=self._began_at,
            ended_at=self._began_at + waited_s,
            duration_s=waited_s,
            slot=self._slot,
            facts={"telemetry": {"device_memory_before_bytes": before}},
        )
        report.verdict = judge(report, {RULE: self._attempt.verdict["rules"][RULE]})
        return report
