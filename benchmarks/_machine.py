"""What every benchmark shares: its options, the machine in words, and one JSON line a figure."""

from __future__ import annotations

import argparse
import json
import operator
import platform
import resource
import sys
from functools import cache
from typing import Any

from orchestrator.host import cpu
from orchestrator.host.memory import physical_bytes

_HOLDS = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
}
_missed: list[str] = []


def arguments(about: str | None, **defaults: Any) -> argparse.Namespace:
    """What the command line says, by ``--name VALUE`` for each of ``defaults``.

    A default of False makes a switch, a sequence an option of several values.

    Parameters
    ----------
    about : str or None
        The benchmark's docstring; ``--help`` shows it, and every default.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
            continue
        several = isinstance(default, (list, tuple))
        parser.add_argument(
            flag,
            type=type(default[0] if several else default),
            nargs="*" if several else None,
            default=default,
            metavar="X",
            help="%(default)s where left out",
        )
    return parser.parse_args()


def finish(*, failed: bool = False) -> None:
    """End the program: with 1 where a figure missed its limit, or something else ``failed``."""
    sys.exit(bool(_missed) or failed)


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
    held = bool(_HOLDS[sign](value, float(limit)))
    if not held:
        _missed.append(name)
    return held
