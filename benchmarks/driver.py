"""What the driver costs, and whether it keeps slots busy: the real one, on a simulated cluster.

1,000 nodes with 8 GPUs each in virtual time, log-normal durations, one attempt in twenty failing.
CPU time is the whole process's, the simulated cluster's included: the driver's share is smaller.
``--trials`` takes other sizes, ``--real N`` adds N empty trials through Ray on this machine.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit, peak_rss_bytes
from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Resources, Slot
from orchestrator.plan.schema import Settings
from orchestrator.plan.trial import Trial
from orchestrator.schedule import (
    Attempt,
    Fate,
    Node,
    SimulatedCluster,
    SweepResult,
    run_sweep,
    start_async,
)

NODES = 1_000
GPUS = 8
MEDIAN_S = 60.0
SPREAD = 0.6  # sigma of the log-normal durations
FAILURES = ((Outcome.LOST, 0.02), (Outcome.CRASHED, 0.01), (Outcome.ERROR, 0.02))


@dataclass
class Sink:
    """A recording and a view that keep nothing but when slots were busy."""

    clock: Callable[[], float] = time.monotonic
    queue_empty_at: float = 0.0
    started_at: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)

    def begin(self, spec: AttemptSpec, trial: Trial, slot: Slot) -> None:
        return None

    def finish(self, report: AttemptReport, trial: Trial) -> None:
        began = self.started_at.pop(report.attempt_id, None)
        if began is not None:
            self.busy.append((began, self.clock()))

    def submitted(self, spec: AttemptSpec, trial: Trial) -> None:
        if spec.number == 1:
            self.queue_empty_at = self.clock()

    def started(self, spec: AttemptSpec, trial: Trial, slot: Slot) -> None:
        self.started_at[spec.attempt_id] = self.clock()

    def phase(self, spec: AttemptSpec, name: str) -> None:
        return None

    def finished(self, report: AttemptReport, trial: Trial) -> None:
        return None

    def message(self, text: str) -> None:
        print(text, file=sys.stderr)


def trials(count: int, resources: Resources) -> list[Trial]:
    """Distinct empty trials."""
    common = {"model": {}, "quant": {}, "protocol": {}, "device": {"kind": "cpu", "threads": None}}
    return [
        Trial(
            hash=hashlib.sha256(str(value).encode()).hexdigest(),
            identity={
                "schema": 1,
                "task": {"name": "noop", "value": value, "sleep_s": 0.0},
                **common,
                "seed": 0,
            },
            resources=resources,
        )
        for value in range(count)
    ]


def sweep(made: list[Trial], cluster: Any, sink: Sink) -> SweepResult:
    """Run every trial once."""
    plan: Any = SimpleNamespace(sweep="driver", settings=Settings(), trials=tuple(made))
    return run_sweep(
        plan,
        [Attempt(trial, 1) for trial in made],
        recording=sink,
        view=sink,
        seed=0,
        stop=threading.Event(),
        cluster=cluster,
    )


def simulated(count: int) -> None:
    """One size on the simulated cluster."""
    generator = random.Random(0)
    outcomes = [outcome for outcome, _ in FAILURES] + [Outcome.OK]
    weights = [share for _, share in FAILURES]
    weights.append(1.0 - sum(weights))
    scale = MEDIAN_S

    def fate(spec: AttemptSpec, node: Node) -> Fate:
        duration_s = scale * generator.lognormvariate(0.0, SPREAD)
        return Fate(duration_s, generator.choices(outcomes, weights)[0])

    nodes = [Node(f"n{i}", f"host{i}", 64, GPUS, 1 << 40) for i in range(NODES)]
    cluster = SimulatedCluster(nodes, fate)
    cluster.keep_order = False
    made = trials(count, Resources(gpus=1))
    sink = Sink(cluster.now)
    gc.collect()
    before_s = time.process_time()
    result = sweep(made, cluster, sink)
    cpu_s = time.process_time() - before_s
    assert len(result.final) == count
    assert result.unmade == 0
    emit("driver_cpu_per_trial_s", cpu_s / count, "s", required="< 0.002", n=count)
    emit("driver_peak_rss_bytes", float(peak_rss_bytes()), "bytes", n=count)
    slots = NODES * GPUS
    if count > 2 * slots:
        # While trials wait, a slot has no reason to be idle; the tail after that is the longest
        # durations' and not the driver's. Both are shown.
        end = sink.queue_empty_at
        busy_s = sum(min(until, end) - began for began, until in sink.busy if began < end)
        name = "slot_utilisation_while_work_waits"
        emit(name, busy_s / (slots * end), "1", required=">= 0.97", n=count)
        emit("slot_utilisation_overall", result.busy_s / (slots * cluster.now()), "1", n=count)


def real(count: int) -> None:
    """Empty trials through Ray, isolation and telemetry here, without a recording."""
    began_s = time.monotonic()
    with start_async(Settings().cluster) as pending:
        cluster = pending.ready()
        emit("ray_up_s", time.monotonic() - began_s, "s")
        sweep(trials(4, Resources(cpus=1)), cluster, Sink())
        emit("first_trials_recorded_s", time.monotonic() - began_s, "s", n=4)
        before_s = time.process_time()
        result = sweep(trials(count, Resources(cpus=1)), cluster, Sink())
        cpu_s = time.process_time() - before_s
        assert result.outcomes == {"ok": count}, result.outcomes
        emit("isolated_trials_per_s", count / result.wall_s, "1/s", required=">= 12", n=count)
        emit("driver_cpu_per_real_trial_s", cpu_s / count, "s", n=count)
        before_s = time.monotonic()
    emit("ray_down_s", time.monotonic() - before_s, "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--real", type=int, default=0, metavar="N")
    options = parser.parse_args()
    for count in options.trials:
        simulated(count)
    if options.real:
        real(options.real)


if __name__ == "__main__":
    main()
