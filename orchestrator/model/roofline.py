"""From operations to time: the slower of computing and moving, and what a launch costs.

Where a device was measured on operations like these, each takes as long as it took there. The sum
over operator classes is a lower bound of what hardware with these ceilings can do, as long as
nothing overlaps between operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.model.architecture import ATTENTION, PROJECTION
from orchestrator.model.operations import Operation


class Ceilings(Protocol):
    """What a device can do at most."""

    def timed_s(self, operation: Operation) -> float | None:
        """Seconds of one such operation where it was measured as it is run; None: bound it."""
        ...

    @property
    def launch_s(self) -> float:
        """Seconds that starting one kernel costs; 0 where it is not known."""
        ...

    def flops_per_s(self, dtype: str, rows: float, *, packed: bool = False) -> float:
        """Peak of products in ``dtype`` with so many rows; raises where there is none.

        ``packed`` weights are unpacked on the way, so that reading them in ``dtype`` is no part of
        it.
        """
        ...

    def bytes_per_s(self, working_bytes: float, part: str = "") -> float:
        """Bandwidth for data of which so much is gone through in turn."""
        ...


@dataclass(frozen=True)
class Estimate:
    """Time of a step and where it goes.

    Attributes
    ----------
    time_s : float
    parts_s : dict of str to float
        By operator class, in order; they add up to ``time_s`` without launches.
    launch_s : float
        All launches together.
    compute_bound_s : float
        Time in operations that compute longer than they move.
    """

    time_s: float
    parts_s: dict[str, float] = field(default_factory=dict)
    launch_s: float = 0.0
    compute_bound_s: float = 0.0

    @property
    def bound(self) -> str:
        """What most of the time goes into: ``compute``, ``memory`` or ``launch``."""
        memory_s = self.time_s - self.launch_s - self.compute_bound_s
        kinds = {"compute": self.compute_bound_s, "memory": memory_s, "launch": self.launch_s}
        return max(kinds, key=lambda kind: kinds[kind])

    @property
    def attention_share(self) -> float:
        """Share of the time, launches left out, in attention and its projections."""
        busy_s = sum(self.parts_s.values())
        spent_s = self.parts_s.get(ATTENTION, 0.0) + self.parts_s.get(PROJECTION, 0.0)
        return spent_s / busy_s if busy_s else 0.0

    def __add__(self, other: Estimate) -> Estimate:
        parts = dict(self.parts_s)
        for part, seconds in other.parts_s.items():
            parts[part] = parts.get(part, 0.0) + seconds
        return Estimate(
            self.time_s + other.time_s,
            parts,
            self.launch_s + other.launch_s,
            self.compute_bound_s + other.compute_bound_s,
        )

    def times(self, factor: float) -> Estimate:
        """The same step so many times."""
        return Estimate(
            self.time_s * factor,
            {part: seconds * factor for part, seconds in self.parts_s.items()},
            self.launch_s * factor,
            self.compute_bound_s * factor,
        )


def estimate(operations: Iterable[Operation], ceilings: Ceilings) -> Estimate:
    """Time of a step on a device.

    Raises
    ------
    ConfigError
        If the device has no peak for a dtype that is computed in.
    """
    parts: dict[str, float] = {}
    launch_s = compute_bound_s = 0.0
    for operation in operations:
        part = operation.part
        move_s = operation.bytes / ceilings.bytes_per_s(operation.working_bytes, part)
        compute_s = 0.0
        if operation.flops:
            peak = ceilings.flops_per_s(operation.dtype, operation.rows, packed=operation.packed)
            compute_s = operation.flops / peak
        timed_s = ceilings.timed_s(operation)
        busy_s = max(compute_s, move_s) if timed_s is None else timed_s
        if compute_s > move_s:
            compute_bound_s += operation.count * busy_s
        parts[part] = parts.get(part, 0.0) + operation.count * busy_s
        if timed_s is None:
            # What was timed was so with the program around it.
            launch_s += operation.count * operation.launches * ceilings.launch_s
    return Estimate(sum(parts.values()) + launch_s, parts, launch_s, compute_bound_s)
