"""What isolating an attempt costs beyond its body: empty attempts on a warm fork server.

The body is what the child times inside the task, here nothing. Everything else is
the cost: directory, fork of a process with torch and transformers loaded, slot, result, teardown.
"""

from __future__ import annotations

import statistics
import time

from benchmarks._attempts import attempt, trial_of
from benchmarks._machine import arguments, emit
from orchestrator.isolate.isolation import Isolation

PRELOAD = ("torch", "transformers")


def cost_s(isolation: Isolation, number: int, start: str) -> float:
    """Seconds from asking for an empty attempt to its report with nothing left, less its body."""
    identity = trial_of("task=noop", f"task.value={number}").identity
    began_s = time.perf_counter()
    report = attempt(isolation, identity, cores=(), start=start)
    took_s = time.perf_counter() - began_s
    return took_s - sum(
        (p.end_ns - p.begin_ns) / 1e9 for p in report.phases if p.end_ns is not None
    )


def main() -> None:
    """Print one JSON line a figure."""
    options = arguments(__doc__, attempts=100, spawned=3)
    with Isolation(preload=PRELOAD) as isolation:
        cold_s = cost_s(isolation, 0, "fork")
        costs_s = [cost_s(isolation, n, "fork") for n in range(1, options.attempts + 1)]
    costs_s.sort()
    emit("isolation_warm_up_s", cold_s, "s", n=1)
    median_s = statistics.median(costs_s)
    emit("isolated_attempt_cost_s", median_s, "s", required="<= 0.15", n=len(costs_s))
    worst_of_twenty_s = costs_s[int(0.95 * (len(costs_s) - 1))]
    emit("isolated_attempt_cost_p95_s", worst_of_twenty_s, "s", n=len(costs_s))
    if options.spawned:
        with Isolation(preload=PRELOAD) as isolation:
            spawned = [cost_s(isolation, n, "spawn") for n in range(options.spawned)]
        emit("spawned_attempt_cost_s", statistics.median(spawned), "s", n=len(spawned))


if __name__ == "__main__":
    main()
