"""How fast what is recorded becomes a table: ``orchestrator.results`` of many attempts.

    python benchmarks/results.py [--attempts 10000]

The attempts are recorded first (minutes): four sampled metrics with nine statistics each, one size
and forty telemetry aggregates an attempt. Each figure is of a new Python, imports included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._machine import arguments, emit, finish
from benchmarks.recording import record_runs

READ = """
import json, time
began_s = time.perf_counter()
import orchestrator
imported_s = time.perf_counter() - began_s
found = orchestrator.results("benchmark", tracking={place!r}, samples={samples})
print(json.dumps([imported_s, time.perf_counter() - began_s, len(found)]))
"""
TIMES = 3


def read(place: str, *, samples: bool) -> tuple[float, float, int]:
    """Seconds until the package was imported and until the table was there, and its rows."""
    code = READ.format(place=place, samples=samples)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported_s, whole_s, rows = json.loads(done.stdout)
    return imported_s, whole_s, rows


def main() -> None:
    """Measure and print; exit 1 if a limit was not kept."""
    options = arguments(__doc__, attempts=10_000)
    count = options.attempts
    with tempfile.TemporaryDirectory(prefix="orchestrator-benchmark-") as directory:
        record_runs(Path(directory), count, full=True)
        every = [read(directory, samples=False) for _ in range(TIMES)]
        imported_s, medians_s, rows = min(every, key=lambda one: one[1])
        emit("results.import_s", imported_s, "s", required="<= 0.1")
        emit("results.medians_s", medians_s, "s", required="<= 3", n=count)
        emit("results.medians_rows", rows, "1", n=count)
        _, samples_s, rows = read(directory, samples=True)
        emit("results.samples_s", samples_s, "s", n=count)
        emit("results.samples_rows", rows, "1", n=count)
    finish()


if __name__ == "__main__":
    main()
