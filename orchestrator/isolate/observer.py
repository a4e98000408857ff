"""What isolation asks of whoever watches an attempt from outside (telemetry satisfies it)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


class ForgivingObserver:
    """A :class:`AttemptObserver`, or none, whose failures are kept as text instead of raised.

    Attributes
    ----------
    error : str or None
        The first failure; later ones follow from it.
    result : Observations or None
        What ``finish`` returned.
    """

    def __init__(self, watch: AttemptObserver | None) -> None:
        self._watch = watch
        self._begun = False
        self.error: str | None = None
        self.result: Observations | None = None

    def start(self, slot: Slot) -> None:
        """See :meth:`AttemptObserver.start`."""
        if self._watch is not None:
            self._begun = True
            with self._forgiving():
                self._watch.start(slot)

    def attach(self, pid: int) -> None:
        """See :meth:`AttemptObserver.attach`."""
        if self._watch is not None:
            with self._forgiving():
                self._watch.attach(pid)

    def finish(self, phases: list[Phase]) -> None:
        """See :meth:`AttemptObserver.finish`; only the first call after ``start`` counts."""
        if self._watch is not None and self._begun:
            self._begun = False
            with self._forgiving():
                self.result = self._watch.finish(phases)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.error is None:
                self.error = f"{type(error).__name__}: {error}"
