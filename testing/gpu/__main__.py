"""``python -m testing.gpu [NAME ...] [--device cpu]``: one JSON object a check on stdout.

::

    {"name": str, "state": "ok|failed|skipped", "seconds": float, "facts": {…}, "reason": str|null}

Exit code 1 where a check failed, else 0, also on a machine without a GPU. ``--device cpu`` is a
rehearsal of what a CPU can do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from orchestrator.telemetry.device import Device, inventory, resolve_visible
from testing.gpu.bench import Bench, Facts, Failure, Skip
from testing.gpu.checks import CHECKS

_LIMIT_S = 460.0  # what is left of eight minutes once the last attempt may be ended


def main(words: list[str]) -> int:
    """Run the checks that are named, all by default."""
    known = {check.__name__: check for check in CHECKS}
    parser = argparse.ArgumentParser(prog="python -m testing.gpu")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    asked = parser.parse_args(words)
    if unknown := sorted(set(asked.names) - known.keys()):
        parser.error(f"no check is called {', '.join(unknown)}")
    devices: tuple[Device, ...] = ()
    if asked.device == "cuda":
        here = inventory()
        devices = resolve_visible(os.environ.get("CUDA_VISIBLE_DEVICES"), here.devices)
        if not devices or here.simulated:
            reason = "it is simulated" if here.simulated else here.reason or "none is visible"
            say("gpu", "failed" if here.broken else "skipped", 0.0, reason=f"no GPU: {reason}")
            return int(here.broken)
    with tempfile.TemporaryDirectory(prefix="test-gpu-") as directory:
        bench = Bench(asked.device, devices, Path(directory), _LIMIT_S)
        with bench:
            states = [run(known[name], bench) for name in asked.names or known]
    return int("failed" in states)


def run(check: Callable[[Bench], Facts], bench: Bench) -> str:
    """Run one check and say what came of it; gives its state."""
    begin_s = time.monotonic()
    state, facts, reason = "ok", {}, None
    try:
        bench.left_s()
        facts = check(bench)
    except Skip as skip:
        state, reason = "skipped", str(skip)
    except Failure as failure:
        state, reason = "failed", str(failure)
    except Exception as error:
        traceback.print_exc()
        state, reason = "failed", f"{type(error).__name__}: {error}"
    say(check.__name__, state, time.monotonic() - begin_s, facts, reason)
    return state


def say(
    name: str, state: str, seconds: float, facts: Facts | None = None, reason: str | None = None
) -> None:
    """Print one check's line."""
    line = {"name": name, "state": state, "seconds": round(seconds, 3), "facts": facts or {}}
    print(json.dumps({**line, "reason": reason}, allow_nan=False, default=str), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
