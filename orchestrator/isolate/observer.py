"""What isolation asks of whoever watches an attempt from outside (telemetry satisfies it)."""

from __future__ import annotations

from typing import Protocol

from orchestrator.attempt import Observations, Slot
from orchestrator.measure.metric import Phase


class AttemptObserver(Protocol):
    """Watches one attempt. ``start`` → ``attach`` (if a child came to be) → ``finish``, each once.

    None of them can spoil an attempt: what one raises becomes ``facts["telemetry_error"]``.
    """

    def start(self, slot: Slot) -> None:
        """Begin sampling the slot's devices, before the child exists."""
        ...

    def attach(self, pid: int) -> None:
        """The measured process is ``pid``."""
        ...

    def finish(self, phases: list[Phase]) -> Observations:
        """Stop sampling and aggregate over ``phases``; called however the attempt ended."""
        ...
