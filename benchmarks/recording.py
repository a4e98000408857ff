"""How fast attempts are recorded: the whole way of a report but for the attempt itself.

    python benchmarks/recording.py [--runs 400]

An empty attempt (``task=noop``) has thirty parameters, one metric and six artifacts; a full one has
four sampled metrics with their statistics, forty telemetry aggregates and nine artifacts besides.
The spool, the artifacts and SQLite are on a real disk.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks._machine import arguments, emit, peak_rss_bytes
from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot, Trial, Verdict
from orchestrator.measure.metric import Metric, Samples, Value
from orchestrator.plan.identity import config_hash
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.record import Recording, open_store

REQUIRED_RUNS_PER_S = ">= 20"
CALLS = 30


def trial_of(number: int) -> Trial:
    """A distinct trial with about thirty parameters."""
    identity = {
        "schema": 1,
        "task": {"name": "inference", "batch_size": 1, "prompt_tokens": number, "new_tokens": 128}
        | {f"option_{i}": i for i in range(12)},
        "model": {"source": "packaged", "id": "smollm2_135m", "revision": None, "path": None},
        "quant": {"scheme": "nf4", "dtype": "bfloat16", "double_quant": True},
        "protocol": {"warmup": 1, "min_repetitions": 5, "confidence": 0.95, "resamples": 10_000},
        "device": {"kind": "cpu", "threads": 2},
        "seed": 0,
    }
    axes: dict[str, str | int | float | bool | None] = {
        "quant": "nf4",
        "task.prompt_tokens": number,
    }
    return Trial(config_hash(identity), identity, axes)


def report_of(attempt: PlannedAttempt, rng: random.Random, *, full: bool) -> AttemptReport:
    """What an attempt leaves behind."""
    now = time.time()
    report = attempt.report(
        Outcome.OK,
        started_at=now - 1,
        ended_at=now,
        duration_s=1.0,
        metrics={"value": Value("value", "1", 1.0)},
        verdict=Verdict("valid"),
        provenance={"host": "node", "packages": {f"package-{i}": "1.0" for i in range(150)}},
        artifacts={"log.txt": b""},
    )
    if not full:
        return report
    metrics: dict[str, Metric] = {
        name: Samples(name, "s", tuple(rng.lognormvariate(0, 0.03) for _ in range(10)), (1.2,))
        for name in ("ttft_s", "tpot_s", "e2e_s", "decode_tokens_per_s")
    }
    metrics["weights_bytes"] = Value("weights_bytes", "bytes", 1e8)
    telemetry: dict[str, Metric] = {
        f"{phase}.{name}": Value(name, "1", rng.random())
        for phase in ("load", "warmup", "prefill", "decode")
        for name in ("cpu_s", "pss_bytes", "faults", "steal", "frequency_hz", *"abcde")
    }
    log = {"log.txt": b"a line of log\n" * 200, "trace.json": b"{}"}
    return dataclasses.replace(report, metrics=metrics, telemetry=telemetry, artifacts=log)


def record_runs(root: Path, count: int, *, full: bool) -> None:
    """Throughput of the whole way: queue, spool, artifacts, SQLite."""
    rng = random.Random(0)
    trials = [trial_of(number) for number in range(count)]
    plan = Plan("benchmark", "Recording measured by itself.", tuple(trials), Settings())
    store = open_store({"kind": "embedded", "root": str(root)})
    recording = Recording(store, plan, message=lambda text: print(text, file=sys.stderr))
    if not recording.flush(120):  # creating the database is not what is measured
        raise SystemExit("the store did not come up")
    slot = Slot("node", "host", (0, 1))
    waits_s: list[float] = []
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    for number, trial in enumerate(trials):
        attempt = PlannedAttempt(trial, attempt_id=uuid.uuid4().hex, sweep="benchmark")
        report = report_of(attempt, rng, full=full)
        called_s = time.perf_counter()
        recording.begin(attempt, slot)
        recording.finish(report, trial)
        waits_s.append(time.perf_counter() - called_s)
        if number == count // 10:
            early_bytes = peak_rss_bytes()
    recording.flush()
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    summary = recording.close()
    if summary.recorded != count:
        raise SystemExit(f"recorded {summary.recorded} of {count}: {summary.problems}")
    late_bytes = peak_rss_bytes()
    kind, required = ("full", None) if full else ("empty", REQUIRED_RUNS_PER_S)
    emit(f"recording.{kind}_runs_per_s", count / wall_s, "runs/s", required=required, n=count)
    # What another process on a busy machine cannot change; the rate is at best its inverse.
    emit(f"recording.{kind}_cpu_per_run_s", cpu_s / count, "s", n=count)
    # Before the queue is full: attempts do not come hundreds at once.
    early = sorted(waits_s[:CALLS])
    emit(f"recording.{kind}_caller_median_s", early[len(early) // 2], "s", n=len(early))
    emit(f"recording.{kind}_memory_growth_bytes", late_bytes - early_bytes, "bytes", n=count)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__, runs=400)
    with tempfile.TemporaryDirectory(prefix="orchestrator-benchmark-") as directory:
        record_runs(Path(directory), options.runs, full=False)
        record_runs(Path(directory), options.runs, full=True)


if __name__ == "__main__":
    main()
