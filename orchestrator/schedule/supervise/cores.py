"""Which CPU cores are measured on, and which are left to us (supervisors, Ray, the driver)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.host import cgroup, cpu

CORES_VARIABLE = "ORCHESTRATOR_CORES"
# From this many cores on, one is worth giving up so that nothing of ours runs on measured ones.
ENOUGH_TO_RESERVE = 8
CORES_PER_RESERVED = 32


@dataclass(frozen=True)
class CoreSplit:
    """Cores of one host: ``measured`` in the order they are given out, ``ours`` for all else."""

    measured: tuple[int, ...]
    ours: tuple[int, ...] = ()


def allowed_cores(
    affinity: Iterable[int] | None = None, *, root: Path = cgroup.ROOT
) -> tuple[int, ...]:
    """The cores this process may use, threads of one core and cores of one package together.

    No more of them than the container's CPU quota pays for: the rest would only be throttled.
    """
    cores = sorted(cpu.usable_cores() if affinity is None else affinity)
    cores.sort(key=lambda core: cpu.place_of(core, root))
    quota = cgroup.cpu_limit(root)
    return tuple(cores if quota is None else cores[: max(1, math.floor(quota))])


def split(allowed: Sequence[int], measured: int | None = None) -> CoreSplit:
    """Reserve cores for ourselves where there are enough, or keep to ``measured`` of them."""
    if measured is None:
        enough = len(allowed) >= ENOUGH_TO_RESERVE
        reserved = max(1, len(allowed) // CORES_PER_RESERVED) if enough else 0
        measured = len(allowed) - reserved
    return CoreSplit(tuple(allowed[:measured]), tuple(allowed[measured:]))


def supervisor_cores(whole: CoreSplit, own: Sequence[int]) -> tuple[int, ...]:
    """Where a supervisor belongs whose slot is ``own``: off it, if there is anywhere else.

    Empty where the slot is all there is: the supervisor then shares it.
    """
    if whole.ours:
        return whole.ours
    return tuple(core for core in whole.measured if core not in set(own))


def pin_process(cores: Iterable[int]) -> None:
    """Move every thread of this process to ``cores`` (the system call moves one)."""
    wanted = set(cores)
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), wanted)
        except ProcessLookupError:
            continue  # it ended meanwhile
        except OSError:
            return  # not allowed here: an unpinned supervisor is better than none


def to_text(cores: Iterable[int]) -> str:
    """``0,1,5``: how a list of cores travels in the environment."""
    return ",".join(map(str, cores))


def from_text(text: str) -> tuple[int, ...]:
    """Inverse of :func:`to_text`."""
    return tuple(int(part) for part in text.split(",") if part.strip())
