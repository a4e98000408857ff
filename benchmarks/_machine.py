"""What every benchmark shares: the machine in words, and one JSON line a figure."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from functools import cache


@cache
def machine() -> str:
    """Processor, cores and memory of this machine, in one line."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    python = platform.python_version()
    return f"{_processor()}, {cores()} cores, {memory_bytes / 2**30:.0f} GiB, Python {python}"


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def emit(
    name: str, value: float, unit: str, *, required: str | None = None, n: int | None = None
) -> None:
    """Print one figure as one JSON line.

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
