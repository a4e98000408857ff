"""What telemetry costs the measurement: decode with it on against off, and reading eight GPUs.

Three figures:

- attempts: pairs of whole attempts of ``task=inference``, one watched and one not, in random order.
  What a person gets; between two processes decode differs by more than telemetry costs.
- blocks: one attempt during which sampling is switched on and off every second; decode windows of
  neighbouring seconds are compared. The same cost without the noise between processes.
- eight simulated GPUs read every 50 ms: the supervisor's CPU time, as a share of one core.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.isolate import Isolation
from orchestrator.measure import Phase, Samples
from orchestrator.plan import build
from orchestrator.telemetry import Telemetry, Watched
from orchestrator.telemetry.gpu import GpuSampler
from orchestrator.telemetry.host import HostSampler
from orchestrator.telemetry.pacer import Pacer
from orchestrator.telemetry.simulate import simulated

REQUIRED_SLOWDOWN = "< 0.005"
REQUIRED_SHARE = "< 0.03"
BLOCK_S = 1.0
RESAMPLES = 10_000


class Blocks:
    """A watch that samples the host in every second block only, and remembers when."""

    def __init__(self) -> None:
        self.edges_ns: list[int] = []
        self.phases: list[Phase] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._host: HostSampler | None = None

    def start(self, slot: Slot) -> None:
        """Open what the sampler reads."""
        self._host = HostSampler(slot.cpus)

    def attach(self, pid: int) -> None:
        """Begin the alternation."""
        assert self._host is not None
        self._host.attach(pid)
        self._thread = threading.Thread(target=self._alternate, daemon=True)
        self._thread.start()

    def finish(self, phases: list[Phase]) -> Watched:
        """End it; the phases tell which decode windows lay in which block."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.phases = phases
        return Watched()

    def _alternate(self) -> None:
        host = self._host
        assert host is not None
        on = False
        while not self._ended.is_set():
            self.edges_ns.append(time.perf_counter_ns())
            pacer = Pacer("telemetry-host", host.tick, lambda: host.period_s) if on else None
            if pacer:
                pacer.start()
            self._ended.wait(BLOCK_S)
            if pacer:
                pacer.stop()
            on = not on

    def pairs(self) -> list[float]:
        """Slowdown of each block with telemetry against its two neighbours without."""
        # By position: even blocks are off. The first two hold the load and the warm-up.
        windows: dict[int, list[float]] = {}
        for phase in self.phases:
            if phase.name != "decode" or phase.end_ns is None or not phase.measured:
                continue
            for block, (begin, end) in enumerate(
                zip(self.edges_ns, self.edges_ns[1:], strict=False)
            ):
                if begin <= phase.begin_ns and phase.end_ns <= end:
                    windows.setdefault(block, []).append((phase.end_ns - phase.begin_ns) / 1e9)
        medians = {block: statistics.median(found) for block, found in windows.items()}
        return [
            medians[block] / statistics.mean((medians[block - 1], medians[block + 1])) - 1
            for block in medians
            if block % 2 and block - 1 in medians and block + 1 in medians
        ]


def identity_of(model: str, *, new_tokens: int, repetitions: int) -> dict[str, Any]:
    """A trial that decodes, a fixed number of times."""
    plan = build(
        [
            *("task=inference", f"model={model}", "quant=fp32", "device=cpu"),
            *("task.prompt_tokens=16", f"task.new_tokens={new_tokens}", "protocol=quick"),
            *(f"protocol.min_repetitions={repetitions}", "protocol.max_time_s=100000"),
            *(
                f"protocol.max_repetitions={repetitions}",
                "protocol.ci_relative_half_width=0.000001",
            ),
        ],
        device_kind=lambda cluster: "cpu",
    )
    return plan.trials[0].identity


def attempt(isolation: Isolation, identity: dict[str, Any], watch: Any) -> AttemptReport:
    """One attempt on every core, which is where a sampler hurts most."""
    slot = Slot("node", "host", tuple(sorted(os.sched_getaffinity(0))))
    spec = AttemptSpec(f"bench-{time.time_ns()}", "0" * 64, identity, timeout_s=3600.0)
    *_, report = isolation.run(spec, slot, watch)
    if not isinstance(report, AttemptReport) or report.outcome is not Outcome.OK:
        raise SystemExit(f"the attempt ended badly: {getattr(report, 'reason', report)}")
    return report


def median_itl_s(report: AttemptReport) -> float:
    """Median time between two tokens."""
    series = report.metrics["itl_s"]
    assert isinstance(series, Samples)
    return statistics.median(series.values)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    from orchestrator.measure.statistics import summarise

    found = summarise(values, resamples=RESAMPLES, seed=seed)
    assert found.median is not None
    assert found.ci_low is not None
    assert found.ci_high is not None
    return found.median, found.ci_low, found.ci_high


def report_slowdown(name: str, slowdowns: Sequence[float]) -> None:
    """Three lines: the median slowdown and its interval."""
    median, low, high = interval(slowdowns)
    emit(name, median, "1", required=REQUIRED_SLOWDOWN, n=len(slowdowns))
    emit(f"{name}_ci_low", low, "1", n=len(slowdowns))
    emit(f"{name}_ci_high", high, "1", required=REQUIRED_SLOWDOWN, n=len(slowdowns))


def by_attempts(isolation: Isolation, identity: dict[str, Any], pairs: int) -> list[float]:
    """Slowdown of the watched attempt in each pair, their order drawn at random."""
    order = random.Random(0)
    slowdowns = []
    for _ in range(pairs):
        took: dict[bool, float] = {}
        for watched in order.sample((True, False), 2):
            watch = Telemetry({"enabled": True}) if watched else None
            took[watched] = median_itl_s(attempt(isolation, identity, watch))
        slowdowns.append(took[True] / took[False] - 1)
    return slowdowns


def by_blocks(isolation: Isolation, identity: dict[str, Any], pairs: int) -> list[float]:
    """Slowdown of sampled seconds against their neighbours; as many attempts as it takes."""
    slowdowns: list[float] = []
    while len(slowdowns) < pairs:
        blocks = Blocks()
        attempt(isolation, identity, blocks)
        found = blocks.pairs()
        if not found:
            raise SystemExit("no decode window fits a block: fewer tokens, or more repetitions")
        slowdowns += found
    return slowdowns


def eight_gpus(seconds: float) -> float:
    """CPU time of reading eight simulated GPUs every 50 ms, as a share of one core."""
    with tempfile.TemporaryDirectory() as folder, simulated("eight", Path(folder)) as scenario:
        sampler = GpuSampler(scenario.uuids)
        sampler.open()
        sampler.attach(os.getpid())
        pacer = Pacer("nvml", sampler.tick, lambda: sampler.period_s, at_edges=sampler.edge)
        pacer.start()
        time.sleep(0.2)
        spent_s, began_s = time.process_time(), time.perf_counter()
        time.sleep(seconds)
        share = (time.process_time() - spent_s) / (time.perf_counter() - began_s)
        pacer.stop()
        sampler.close()
    return share


def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random", help="conf/model entry to decode with")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of whole attempts")
    parser.add_argument("--blocks", type=int, default=60, help="pairs of seconds")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=60, help="decode windows an attempt")
    parser.add_argument("--gpu-seconds", type=float, default=20.0)
    options = parser.parse_args()
    share = eight_gpus(options.gpu_seconds)
    emit("nvml_eight_gpus_core_share", share, "1", required=REQUIRED_SHARE)
    tokens = options.new_tokens
    with Isolation() as isolation:
        if options.blocks:
            repetitions = 4 * options.repetitions
            identity = identity_of(options.model, new_tokens=tokens, repetitions=repetitions)
            slowdowns = by_blocks(isolation, identity, options.blocks)
            report_slowdown("telemetry_slowdown_blocks", slowdowns)
        if options.pairs:
            identity = identity_of(
                options.model, new_tokens=tokens, repetitions=options.repetitions
            )
            slowdowns = by_attempts(isolation, identity, options.pairs)
            report_slowdown("telemetry_slowdown_attempts", slowdowns)


if __name__ == "__main__":
    main()
