"""What isolating an attempt costs beyond its body: empty attempts on a warm fork server.

The body is what the child times inside the task, here nothing. Everything else is
the cost: directory, fork of a process with torch and transformers loaded, slot, result, teardown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.isolate.isolation import Isolation

PRELOAD = ("torch", "transformers")
REQUIRED_S = 0.15


def attempt(isolation: Isolation, number: int, start: str) -> tuple[float, AttemptReport]:
    """Seconds from asking for an empty attempt to its report with nothing left, less its body."""
    identity = {
        "schema": 1,
        "task": {"name": "noop", "value": number, "sleep_s": 0.0, "fault": ""},
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }
    spec = AttemptSpec(f"bench-{number}", "0" * 64, identity, start=start)
    began_s = time.perf_counter()
    *_, report = isolation.run(spec, Slot("node", "host", ()))
    took_s = time.perf_counter() - began_s
    if not isinstance(report, AttemptReport) or report.outcome is not Outcome.OK:
        raise SystemExit(f"attempt {number} ended badly: {report}")
    body_s = sum((p.end_ns - p.begin_ns) / 1e9 for p in report.phases if p.end_ns is not None)
    return took_s - body_s, report


def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=100)
    parser.add_argument("--spawned", type=int, default=3)
    options = parser.parse_args()
    with Isolation(preload=PRELOAD) as isolation:
        cold_s, _ = attempt(isolation, 0, "fork")
        costs_s = [attempt(isolation, n, "fork")[0] for n in range(1, options.attempts + 1)]
    costs_s.sort()
    emit("isolation_warm_up_s", cold_s, "s", n=1)
    median_s = statistics.median(costs_s)
    emit("isolated_attempt_cost_s", median_s, "s", required=f"<= {REQUIRED_S:g}", n=len(costs_s))
    worst_of_twenty_s = costs_s[int(0.95 * (len(costs_s) - 1))]
    emit("isolated_attempt_cost_p95_s", worst_of_twenty_s, "s", n=len(costs_s))
    if options.spawned:
        with Isolation(preload=PRELOAD) as isolation:
            spawned = [attempt(isolation, n, "spawn")[0] for n in range(options.spawned)]
        emit("spawned_attempt_cost_s", statistics.median(spawned), "s", n=len(spawned))


if __name__ == "__main__":
    main()
