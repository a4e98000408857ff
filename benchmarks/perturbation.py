"""What telemetry costs the measurement: decode with it on against off, and reading eight GPUs.

Two figures:

- readings: within attempts of ``task=inference``, each round of the sampler is taken or skipped by
  the toss of a coin, and the decode window it falls into is held against its neighbours. Between
  two processes decode differs by more than telemetry costs; interleaved windows know no such noise.
- eight simulated GPUs read every 50 ms: the supervisor's CPU time, as a share of one core.

``--model`` is an entry of ``conf/model``, ``--readings`` how many are taken and how many skipped,
``--repetitions`` how often an attempt decodes.
"""

from __future__ import annotations

import bisect
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._attempts import attempt, fixed_repetitions, trial_of
from benchmarks._machine import arguments, emit
from orchestrator.attempt import Observations, Slot
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Phase
from orchestrator.telemetry.gpu import GpuSampler
from orchestrator.telemetry.host import HostSampler
from orchestrator.telemetry.pacer import Pacer
from orchestrator.telemetry.simulate.library import simulated

REQUIRED_SLOWDOWN = "< 0.005"
REQUIRED_SHARE = "< 0.03"
RESAMPLES = 10_000


class Readings:
    """A watch that takes or skips each of its rounds by the toss of a coin, and remembers when.

    A skipped round is the control of a taken one: the window that a random moment falls into is
    longer than most, and that is so for both.
    """

    def __init__(self, seed: int) -> None:
        self.rounds: list[tuple[int, bool]] = []
        self.phases: list[Phase] = []
        self._coin = random.Random(seed)
        self._host: HostSampler | None = None
        self._pacer: Pacer | None = None

    def start(self, slot: Slot) -> None:
        """Open what the sampler reads."""
        self._host = HostSampler(slot.cpus)

    def attach(self, pid: int) -> None:
        """Begin the rounds, at the sampler's own pace."""
        host = self._host
        assert host is not None
        host.attach(pid)
        self._pacer = Pacer("telemetry-host", self._round, lambda: host.period_s)
        self._pacer.start()

    def finish(self, phases: list[Phase]) -> Observations:
        """End them; the phases tell which decode window each fell into."""
        if self._pacer is not None:
            self._pacer.stop()
        self.phases = phases
        return Observations()

    def _round(self) -> None:
        assert self._host is not None
        taken = self._coin.random() < 0.5
        self.rounds.append((time.perf_counter_ns(), taken))
        if taken:
            self._host.tick()

    def windows(self) -> tuple[list[float], list[float], float]:
        """Decode windows with a taken and with a skipped round, each over its two neighbours.

        Also the mean share of the time between two readings that a window takes up: what one
        reading adds to one window is spread over as many windows as fit between two readings. The
        sampler slows itself down where a reading costs much, so that is what it came to.
        """
        spans = [
            (phase.begin_ns, phase.end_ns)
            for phase in self.phases
            if phase.name == "decode" and phase.measured and phase.end_ns is not None
        ]
        rounds: list[list[bool]] = [[] for _ in spans]
        starts = [begin for begin, _ in spans]
        for moment, taken in self.rounds:
            at = bisect.bisect_right(starts, moment) - 1
            if at >= 0 and moment <= spans[at][1]:
                rounds[at].append(taken)
        took = [(end - begin) / 1e9 for begin, end in spans]
        found: dict[bool, list[float]] = {True: [], False: []}
        for at in range(1, len(spans) - 1):
            if len(rounds[at]) == 1 and not any(rounds[at - 1]) and not any(rounds[at + 1]):
                usual = statistics.mean((took[at - 1], took[at + 1]))
                found[rounds[at][0]].append(took[at] / usual)
        between_s = (self.rounds[-1][0] - self.rounds[0][0]) / 1e9 / (len(self.rounds) - 1)
        return found[True], found[False], statistics.mean(took) / between_s


def identity_of(model: str, *, new_tokens: int, repetitions: int) -> dict[str, Any]:
    """A trial that decodes, a fixed number of times."""
    return trial_of(
        *("task=inference", f"model={model}", "quant=fp32", "task.prompt_tokens=4"),
        *(f"task.new_tokens={new_tokens}", "protocol=quick"),
        *fixed_repetitions(repetitions),
    ).identity


def by_readings(
    isolation: Isolation, identity: dict[str, Any], least: int
) -> tuple[float, float, float, int]:
    """The slowdown by readings, its 95 % interval and their number; as many attempts as it takes.

    Raises SystemExit where no decode window had neighbours without a reading.
    """
    import numpy as np

    taken: list[float] = []
    skipped: list[float] = []
    shares: list[float] = []
    while min(len(taken), len(skipped)) < least:
        watch = Readings(len(shares))
        attempt(isolation, identity, watch=watch)
        with_reading, without, share = watch.windows()
        print(
            f"{len(with_reading)} taken, {len(without)} skipped, a window is {share:.2%} of the "
            "time between two readings",
            file=sys.stderr,
        )
        if not with_reading or not without:
            raise SystemExit("no decode window stands alone between two readings: fewer tokens")
        taken += with_reading
        skipped += without
        shares.append(share)
    rng = np.random.default_rng(0)
    share = statistics.mean(shares)
    means = [
        np.array([rng.choice(values, len(values)).mean() for _ in range(RESAMPLES)])
        for values in (np.array(taken), np.array(skipped))
    ]
    found = float(np.mean(taken) - np.mean(skipped)) * share
    low, high = np.percentile((means[0] - means[1]) * share, (2.5, 97.5))
    return found, float(low), float(high), min(len(taken), len(skipped))


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
    options = arguments(
        __doc__, model="random", readings=100, new_tokens=3, repetitions=1600, gpu_seconds=20.0
    )
    share = eight_gpus(options.gpu_seconds)
    emit("nvml_eight_gpus_core_share", share, "1", required=REQUIRED_SHARE)
    with Isolation() as isolation:
        identity = identity_of(
            options.model, new_tokens=options.new_tokens, repetitions=options.repetitions
        )
        found, low, high, n = by_readings(isolation, identity, options.readings)
    name = "telemetry_slowdown_readings"
    emit(name, found, "1", required=REQUIRED_SLOWDOWN, n=n)
    emit(f"{name}_ci_low", low, "1", n=n)
    emit(f"{name}_ci_high", high, "1", required=REQUIRED_SLOWDOWN, n=n)


if __name__ == "__main__":
    main()
