"""Sees to it that an attempt's GPUs have given back what earlier work held before it begins.

A process that has ended may leave its memory with the driver for a while, or for ever where
something of it still lives. What is measured next to it is another figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.measure.wording import gib
from orchestrator.telemetry.nvml import NvmlError, NvmlSession, answered, shared_session

ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Held:
    """Memory of a GPU that is still in use, and who computes there.

    Attributes
    ----------
    pids : tuple of int
        In the driver's namespace; empty where it lists nobody.
    """

    uuid: str
    used_bytes: int
    pids: tuple[int, ...] = ()

    def __str__(self) -> str:
        by = f" by process {', '.join(map(str, self.pids))}" if self.pids else ""
        return f"{gib(self.used_bytes)} of {self.uuid} in use{by}"


class Vacancy:
    """The GPUs of an attempt; ask :meth:`is_free` until they are.

    Parameters
    ----------
    limit_bytes : float
        In use at most. A GPU that cannot be asked passes: the verdict will say that nobody knows.

    Attributes
    ----------
    held : tuple of Held
        What was over the limit when last asked.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        limit_bytes: float,
        *,
        session: Callable[[], NvmlSession] = shared_session,
    ) -> None:
        self.held: tuple[Held, ...] = ()
        self._uuids, self._limit_bytes, self._session = uuids, limit_bytes, session

    def is_free(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
        """Whether every GPU holds no more than the limit now; never raises."""
        self.held = answered(self._look, timeout_s) or ()
        return not self.held

    def _look(self) -> tuple[Held, ...]:
        held = []
        for uuid in self._uuids:
            try:
                session = self._session()
                handle = session.handle(uuid)
                used_bytes = session.left_bytes(handle)
                if used_bytes > self._limit_bytes:
                    pids = tuple(p.pid for p in session.processes(handle) if p.compute)
                    held.append(Held(uuid, used_bytes, pids))
            except NvmlError:
                continue
        return tuple(held)
