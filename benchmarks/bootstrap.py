"""What the statistics cost, and whether their intervals hold what they say.

Run it as ``python benchmarks/bootstrap.py``; ``--series 200`` generated series a figure for a quick
look. It is not named
after what it measures: a ``statistics.py`` here would hide the standard library's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks._machine import arguments, emit, finish
from orchestrator.statistics.bootstrap import ratio_ci
from orchestrator.statistics.distribution import is_bimodal
from orchestrator.statistics.medians import median_ci
from orchestrator.statistics.summary import summarise

# Attempts, noise between and within them, samples an attempt.
REGIMES = (
    (2, 0.007, 0.03, 40),
    (3, 0.007, 0.002, 20),
    (5, 0.007, 0.03, 40),
    (5, 0.0, 0.03, 30),
    (10, 0.007, 0.002, 20),
)
CALLS = 20


def fastest_s(call: Callable[[], object]) -> float:
    """The shortest of several calls: what the arithmetic costs, without the neighbours'."""
    durations = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        durations.append(time.perf_counter() - begin)
    return min(durations)


def cost() -> None:
    """Seconds of the calls that are made most."""
    rng = np.random.default_rng(0)
    samples = rng.lognormal(0.0, 0.03, 200)
    many = rng.lognormal(0.0, 0.03, 100_000)
    sides = [[rng.lognormal(0.0, 0.03, 50) for _ in range(5)] for _ in range(2)]
    one = fastest_s(lambda: median_ci(samples))
    emit("bootstrap.median_ci_200_samples_s", one, "s", required="<= 0.05", n=CALLS)
    emit("bootstrap.summary_200_samples_s", fastest_s(lambda: summarise(samples)), "s", n=CALLS)
    emit("bootstrap.summary_100000_samples_s", fastest_s(lambda: summarise(many)), "s", n=CALLS)
    emit("bootstrap.ratio_5_by_5_attempts_s", fastest_s(lambda: ratio_ci(*sides)), "s", n=CALLS)


def coverage(series: int) -> None:
    """How often a one-sided 95 % bound of the ratio of two equal trials holds."""
    for k, between, within, n in REGIMES:
        rng = np.random.default_rng(k)
        held = 0
        for seed in range(series):
            new, base = (
                [rng.lognormal(rng.normal(0.0, between), within, n) for _ in range(k)]
                for _ in range(2)
            )
            found = ratio_ci(new, base, confidence=0.9, resamples=1_000, seed=seed)
            if found.ci_low is not None and found.ci_high is not None:
                held += (found.ci_low <= 1.0) + (found.ci_high >= 1.0)
        name = f"bootstrap.coverage_{k}_attempts_{between:.1%}_between_{within:.1%}_within"
        emit(name.replace("%", ""), held / (2 * series), "1", n=2 * series)


def modes(series: int) -> None:
    """How often one mode is called two, and two are found."""
    rng = np.random.default_rng(0)
    for n in (20, 50, 200):
        rates = [
            sum(is_bimodal(rng.normal(1.0, 0.03, n)) for _ in range(series)) / series,
            sum(is_bimodal(rng.lognormal(0.0, 0.3, n)) for _ in range(series)) / series,
        ]
        found = sum(
            is_bimodal(rng.normal(20.0, 1.0, n) + 5.0 * (rng.random(n) < 0.3))
            for _ in range(series)
        )
        false = f"bootstrap.bimodal_false_{n}_samples"
        emit(false, max(rates), "1", required="<= 0.02", n=2 * series)
        emit(f"bootstrap.bimodal_found_{n}_samples", found / series, "1", n=series)


def main() -> None:
    """Exit 0 if the required figures hold."""
    given = arguments(__doc__, series=1_000)
    cost()
    coverage(given.series)
    modes(given.series)
    finish()


if __name__ == "__main__":
    main()
