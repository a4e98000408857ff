"""What every benchmark shares: the machine in words, and one JSON line a figure."""

from __future__ import annotations

import json
import operator
import platform
import resource
import sys
from functools import cache

from orchestrator.host import cpu
from orchestrator.host.memory import physical_bytes

_HOLDS = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
}


@cache
def machine() -> str:
    """Processor, cores and memory of this machine, in one line."""
    name = cpu.model() or platform.machine()
    size = f"{len(cpu.usable_cores())} cores, {physical_bytes() / 2**30:.0f} GiB"
    return f"{name}, {size}, Python {platform.python_version()}"


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def emit(
    name: str, value: float, unit: str, *, required: str | None = None, n: int | None = None
) -> bool:
    """Print one figure as one JSON line, and say whether it keeps its limit.

    Parameters
    ----------
    required : str, optional
        The limit it is held to, as text: ``"<= 10"``.
    n : int, optional
        How many it was taken from.
    """
    line: dict[str, object] = {"name": name, "value": value, "unit": unit}
    if required is not None:
        line["required"] = required
    if n is not None:
        line["n"] = n
    line["machine"] = machine()
    print(json.dumps(line), flush=True)
    if required is None:
        return True
    sign, limit = required.split()
    return bool(_HOLDS[sign](value, float(limit)))
