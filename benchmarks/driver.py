"""What the driver costs, and whether it keeps slots busy: the real one, on a simulated cluster.

1,000 nodes with 8 GPUs each in virtual time, log-normal durations, one attempt in twenty failing.
Each trial's duration is known to within some percent, as from an earlier run. CPU time is the whole
process's, the simulated cluster's included: the driver's share is smaller. ``--trials`` takes other
sizes, ``--plot FILE.svg`` draws the cost over them. ``scale.py`` measures the same driver on Ray.

No order can beat the makespan bound: all slot time divided by the slots, or the one trial whose
attempts (the lost ones too) take longest. Utilisation over the whole sweep is held to 97 % at sizes
where the bound itself allows it.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from benchmarks._machine import arguments, emit, peak_rss_bytes
from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Resources, Slot, Trial
from orchestrator.plan.schema import Settings
from orchestrator.schedule.driver import run_sweep
from orchestrator.schedule.placement import Node
from testing.simulated_cluster import Fate, SimulatedCluster

NODES = 1_000
GPUS = 8
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
MEDIAN_S = 60.0
SPREAD = 1.0  # sigma of the log-normal durations
TIMEOUT_S = 480.0  # which ends the longest of them
HISTORY_NOISE = 0.05  # sigma of what a duration differs from the expected one by
UTILISATION = 0.97
FAILURES = ((Outcome.LOST, 0.01), (Outcome.CRASHED, 0.01), (Outcome.ERROR, 0.03))


@dataclass
class Sink:
    """A recording and a view that keep nothing but when slots were busy."""

    clock: Callable[[], float]
    queue_empty_at: float = 0.0
    started_at: dict[str, float] = field(default_factory=dict)
    busy: list[tuple[float, float]] = field(default_factory=list)
    chains_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def finish(self, report: AttemptReport, trial: Trial) -> None:
        began = self.started_at.pop(report.attempt_id, None)
        if began is not None:
            self.busy.append((began, self.clock()))
            # A trial's attempts come one after another, whatever the order of trials.
            self.chains_s[trial.hash] += self.clock() - began

    def submitted(self, attempt: PlannedAttempt) -> None:
        if attempt.number == 1:
            self.queue_empty_at = self.clock()

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None:
        self.started_at[attempt.attempt_id] = self.clock()

    def message(self, text: str) -> None:
        print(text, file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return lambda *told, **more: None


def trials(count: int) -> list[Trial]:
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
            resources=Resources(gpus=1),
        )
        for value in range(count)
    ]


def simulated(count: int, *, failing: bool = True) -> float:
    """One size on the simulated cluster; returns the CPU time a trial (s)."""
    suffix = "" if failing else "_without_failures"
    generator = random.Random(0)
    outcomes = [outcome for outcome, _ in FAILURES] + [Outcome.OK]
    weights = [share if failing else 0.0 for _, share in FAILURES]
    weights.append(1.0 - sum(weights))
    made = trials(count)
    usual_s = {
        trial.hash: min(TIMEOUT_S, MEDIAN_S * generator.lognormvariate(0.0, SPREAD))
        for trial in made
    }

    def fate(attempt: PlannedAttempt, node: Node) -> Fate:
        lasts_s = usual_s[attempt.trial.hash] * generator.lognormvariate(0.0, HISTORY_NOISE)
        (outcome,) = generator.choices(outcomes, weights)
        if lasts_s >= TIMEOUT_S:
            return Fate(TIMEOUT_S, Outcome.TIMEOUT)
        # What goes wrong does so at any moment of an attempt.
        share = 1.0 if outcome is Outcome.OK else generator.random()
        return Fate(lasts_s * share, outcome)

    nodes = [Node(f"n{i}", f"host{i}", 64, GPUS, 1 << 40) for i in range(NODES)]
    cluster = SimulatedCluster(nodes, fate)
    cluster.keep_order = False
    todo = [PlannedAttempt(trial, 1, expected_s=usual_s[trial.hash]) for trial in made]
    plan: Any = SimpleNamespace(sweep="driver", settings=Settings(), trials=tuple(made))
    stop, sink = threading.Event(), Sink(cluster.now)
    gc.collect()
    before_s = time.process_time()
    result = run_sweep(plan, todo, recording=sink, view=sink, seed=0, stop=stop, cluster=cluster)
    cpu_s = time.process_time() - before_s
    assert len(result.final) == count
    assert result.unmade == 0
    emit("driver_cpu_per_trial_s", cpu_s / count, "s", required="< 0.002", n=count)
    emit("driver_peak_rss_bytes", float(peak_rss_bytes()), "bytes", n=count)
    slots = NODES * GPUS
    makespan_s = cluster.now()
    bound_s = max(max(sink.chains_s.values()), result.busy_s / slots)
    emit(f"makespan{suffix}_s", makespan_s, "s", n=count)
    emit(f"makespan_bound{suffix}_s", bound_s, "s", n=count)
    if count > 2 * slots:
        end = sink.queue_empty_at
        busy_s = sum(min(until, end) - began for began, until in sink.busy if began < end)
        required = f">= {UTILISATION}"
        name = f"slot_utilisation_while_work_waits{suffix}"
        emit(name, busy_s / (slots * end), "1", required=required, n=count)
        reachable = result.busy_s / (slots * bound_s)
        name = f"slot_utilisation_overall{suffix}"
        emit(
            name,
            result.busy_s / (slots * makespan_s),
            "1",
            required=required if reachable > UTILISATION else None,
            n=count,
        )
        emit(f"slot_utilisation_reachable{suffix}", reachable, "1", n=count)
    return cpu_s / count


def plot(cost_s: dict[int, float], path: str) -> None:
    """Draw the cost of a trial over the size of the sweep."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 3.0), layout="constrained")
    sizes = sorted(cost_s)
    axes.plot(sizes, [1e3 * cost_s[size] for size in sizes], marker="o", color="#1f77b4")
    axes.axhline(2.0, color="#888888", linestyle="--", linewidth=1)
    axes.text(sizes[0], 1.9, "limit", color="#666666", va="top")
    axes.set_xscale("log")
    axes.set_ylim(0, 2.2)
    axes.set_xlabel("trials in the sweep")
    axes.set_ylabel("driver CPU per trial (ms)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    options = arguments(__doc__, trials=SIZES, plot="")
    cost_s = {count: simulated(count) for count in options.trials}
    # What fails late is made again when the rest has ended: that tail is shown, not hidden.
    simulated(max(options.trials), failing=False)
    if options.plot:
        plot(cost_s, options.plot)


if __name__ == "__main__":
    main()
