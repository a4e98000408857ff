"""How often ``history`` is wrong about steps, and how fast 10,000 attempts become a page.

    python benchmarks/history.py [--series 1000] [--attempts 10000]

Series are generated: log-normal medians of runs with a spread of 1, 2 and 3 %, four fifths of it
between runs and the rest the medians' own error, which is given. Flat series of 50 runs, and series
with a step of 10 % with five runs after it (45 before). Told apart are a step that is found at all
(within five runs of its place) and one found within one run of it.

Besides what is required, to know the limits: a job that asks after every run of a flat series of
50, and of one with a step of 10 % after 40 runs: how often it is told of a new regression, and how
many runs after the step; flat series of 6 to 200 runs; flat series in which one
run in 25 is slower by an exponential 30 %; flat series whose runs depend on the one before (an
autoregression with the coefficient 0.3); a step with a single run after it.

Then attempts are recorded (minutes): ten trials, a run a night, five attempts of a trial in each;
the packages move every fifth night. Measured is the command with ``--site`` in a new Python.
``--attempts 0`` for the series alone.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks._machine import arguments, emit, finish
from benchmarks.recording import report_of, trial_of
from orchestrator.attempt import PlannedAttempt, Slot, Trial
from orchestrator.conditions import Conditions
from orchestrator.measure.metric import MetricSpec, Samples
from orchestrator.plan.identity import config_hash
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.record import Recording, open_store
from orchestrator.report.analyse.history import History, Taken, series_of
from orchestrator.statistics.changes import Changes, find_changes
from orchestrator.statistics.medians import FloatArray

SPREADS = (0.01, 0.02, 0.03)
RUNS, AFTER = 50, 5
STEP = 0.10
BETWEEN = 0.8  # of the spread, what differs from run to run
TRIALS, ATTEMPTS_A_RUN, NIGHTS_A_LOCK = 10, 5, 5
MOST_PAGE_S = 10.0


def noise_of(runs: int, spread: float, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Log deviations of so many runs, and the own error of each; both of shape ``(runs,)``."""
    own = spread * math.sqrt(1.0 - BETWEEN**2) * rng.uniform(0.6, 1.3, runs)
    return rng.normal(0.0, BETWEEN * spread, runs) + rng.normal(0.0, own), own


def changes(
    spread: float, rng: np.random.Generator, *, runs: int = RUNS, after: int = 0, step: float = STEP
) -> Changes:
    """What is found in one generated series; ``after`` runs lie after a step."""
    noise, own = noise_of(runs, spread, rng)
    noise[runs - after :] += math.log1p(step) * bool(after)
    return find_changes(np.exp(noise).tolist(), own.tolist())


def is_found(found: Changes, place: int, within: int) -> bool:
    """Whether a step lies so near to its place."""
    return any(abs(start - place) <= within for start in found.starts[1:])


def _with_strays(spread: float, rng: np.random.Generator) -> Changes:
    noise, own = noise_of(RUNS, spread, rng)
    noise += (rng.random(RUNS) < 0.04) * rng.exponential(0.3, RUNS)
    return find_changes(np.exp(noise).tolist(), own.tolist())


def _dependent(spread: float, rng: np.random.Generator) -> Changes:
    noise, own = noise_of(RUNS + 20, spread, rng)
    for at in range(1, noise.size):
        noise[at] = 0.3 * noise[at - 1] + math.sqrt(1.0 - 0.09) * noise[at]
    return find_changes(np.exp(noise[20:]).tolist(), own[20:].tolist())


def alarms(spread: float, rng: np.random.Generator, *, after: int = 0) -> list[int]:
    """After which runs a job that asks each night is told of a new regression."""
    noise, own = noise_of(RUNS, spread, rng)
    noise[RUNS - after :] += math.log1p(STEP) * bool(after)
    width = NormalDist().inv_cdf(0.975)
    medians = np.exp(noise)
    taken = [
        Taken(str(at), str(at), "", 86_400.0 * at, m, m * (1 - width * e), m * (1 + width * e))
        for at, (m, e) in enumerate(zip(medians.tolist(), own.tolist(), strict=True))
    ]
    spec = MetricSpec("tpot_s", "s", "lower")
    return [
        runs
        for runs in range(2, RUNS + 1)
        if History("", (series_of("", spec, "", taken[:runs]),)).exit_code
    ]


def simulate(count: int, seed: int) -> None:
    """Every rate of the docstring, of ``count`` series each."""
    for spread in SPREADS:
        _simulate(count, seed, spread)


def _simulate(count: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng([seed, round(1000 * spread)])
    name = f"history.spread_{round(100 * spread)}_percent"

    def share(holds: Callable[[], bool]) -> float:
        return sum(holds() for _ in range(count)) / count

    def any_step(found: Changes) -> bool:
        return len(found.starts) > 1

    def any_short_step(runs: int) -> bool:
        return any_step(changes(spread, rng, runs=runs))

    place = RUNS - AFTER
    found = [changes(spread, rng, after=AFTER) for _ in range(count)]
    seen = sum(is_found(each, place, AFTER) for each in found) / count
    near = sum(is_found(each, place, 1) for each in found) / count
    # Not significantly less: one-sided, with a chance of 5 %.
    least = f">= {0.95 - 1.645 * math.sqrt(0.95 * 0.05 / count):.4f}"
    emit(f"{name}.found", seen, "1", required=least, n=count)
    limit = least if spread <= 0.02 else None
    emit(f"{name}.found_within_one_run", near, "1", required=limit, n=count)
    flat = share(lambda: any_step(changes(spread, rng)))
    emit(f"{name}.flat_with_a_step", flat, "1", required="<= 0.01", n=count)
    few = max(count // 4, 1)
    followed = [alarms(spread, rng) for _ in range(few)]
    rung = sum(bool(each) for each in followed) / few
    emit(f"{name}.flat_with_an_alarm_in_{RUNS}_nights", rung, "1", n=few)
    followed = [alarms(spread, rng, after=10) for _ in range(few)]
    true = [[run for run in each if run > RUNS - 10] for each in followed]
    emit(f"{name}.step_with_one_alarm", sum(len(t) == 1 for t in true) / few, "1", n=few)
    delays = [each[0] - (RUNS - 10) for each in true if each]
    emit(f"{name}.alarm_after_runs", float(np.median(delays)), "1", n=few)
    alone = share(lambda: is_found(changes(spread, rng, after=1), RUNS - 1, 0))
    emit(f"{name}.found_with_one_run_after", alone, "1", n=count)
    for runs in (6, 10, 20, 200):
        some = share(partial(any_short_step, runs))
        emit(f"{name}.flat_of_{runs}_with_a_step", some, "1", n=count)
    strays = share(lambda: any_step(_with_strays(spread, rng)))
    emit(f"{name}.flat_with_strays_with_a_step", strays, "1", n=count)
    dependent = share(lambda: any_step(_dependent(spread, rng)))
    emit(f"{name}.flat_dependent_with_a_step", dependent, "1", n=count)


def record_nights(
    root: Path,
    nights: range,
    *,
    slower_from: int,
    trials: int = TRIALS,
    attempts: int = ATTEMPTS_A_RUN,
    seed: int = 0,
) -> None:
    """A sweep a night; trials with an odd number take a tenth longer from a night on."""
    store = open_store({"kind": "embedded", "root": str(root)})
    for night in nights:
        rng = random.Random(f"{seed} {night}")
        version = f"2.{night // NIGHTS_A_LOCK}.0"
        made = [_nightly(number, version) for number in range(trials)]
        plan = Plan("nightly", "A sweep a night.", tuple(made), Settings())
        recording = Recording(store, plan, message=lambda text: print(text, file=sys.stderr))
        for number, trial in enumerate(made):
            slow = 1.1 if number % 2 and night >= slower_from else 1.0
            moved = slow * rng.lognormvariate(0.0, 0.01)
            for turn in range(1, attempts + 1):
                planned = PlannedAttempt(
                    trial, number=turn, attempt_id=uuid.uuid4().hex, sweep="nightly"
                )
                recording.finish(_report(planned, rng, night, version, moved), trial)
        recording.close()


def _nightly(number: int, version: str) -> Trial:
    known = trial_of(number)
    packages = {"torch": version} | {f"package-{i}": version for i in range(80)}
    environment = {"python": "3.11", "packages": packages}
    identity: dict[str, Any] = {**known.identity, "environment": environment}
    return replace(known, identity=identity, hash=config_hash(identity))


def _report(
    planned: PlannedAttempt, rng: random.Random, night: int, version: str, moved: float
) -> Any:
    report = report_of(planned, rng, full=True)
    values = tuple(moved * rng.lognormvariate(0, 0.02) for _ in range(10))
    at = 1_750_000_000.0 + 86_400.0 * night + 60.0 * rng.random()
    return replace(
        report,
        metrics={**report.metrics, "tpot_s": Samples("tpot_s", "s", values, (1.2,))},
        started_at=at,
        ended_at=at + 10.0,
        slot=Slot("node", "host", (0, 1)),
        conditions=Conditions({"CPU": "x", "cores": 2}, {"torch": version}, {"weights": "y"}),
    )


def main() -> None:
    """Measure and print; exit 1 if a limit was not kept."""
    options = arguments(__doc__, series=1_000, attempts=10_000, seed=0)
    if options.series:
        simulate(options.series, options.seed)
    if options.attempts:
        with tempfile.TemporaryDirectory(prefix="orchestrator-benchmark-") as directory:
            nights = range(options.attempts // (TRIALS * ATTEMPTS_A_RUN))
            slower_from = 2 * len(nights) // 3 // NIGHTS_A_LOCK * NIGHTS_A_LOCK
            record_nights(Path(directory), nights, slower_from=slower_from, seed=options.seed)
            words = ("nightly", "--metric", "tpot_s", "--site", f"{directory}/site")
            began_s = time.perf_counter()
            command = [sys.executable, "-m", "orchestrator", "history", *words]
            subprocess.run(
                [*command, f"tracking.root={directory}"], stdout=subprocess.DEVNULL, check=True
            )
            took_s = time.perf_counter() - began_s
            limit = f"<= {MOST_PAGE_S:g}"
            emit("history.page_s", took_s, "s", required=limit, n=options.attempts)
            size = (Path(directory) / "site" / "index.html").stat().st_size
            emit("history.page_bytes", size, "bytes")
    finish()


if __name__ == "__main__":
    main()
