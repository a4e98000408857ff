"""Many searches for a planted culprit, with noise that was recorded on a real machine replayed.

The record is one trial measured many times in a row: of each attempt the median. It is replayed in
stretches, each from a place drawn at random, so that drift and bursts stay as long as they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.search.coupled import Coupling, Set
from orchestrator.search.culprit import Answer, search
from orchestrator.search.rounds import Round, Terms
from testing.seeds import drawing_seed

Array = NDArray[np.float64]
RECORDED = Path(__file__).with_name("recorded_noise.json")
# Attempts of a stretch: some ten rounds.
STRETCH = 32
PACKAGES = "abcdefgh"
FREE = Coupling({name: frozenset() for name in PACKAGES})


def recorded() -> dict[str, Any]:
    """``medians_s`` of consecutive attempts, and in words what was measured, where and when."""
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


def spread(medians: Array) -> float:
    """Standard deviation of the logarithm: about the relative one."""
    return float(np.log(medians).std(ddof=1))


def replay(medians: Array, rng: np.random.Generator) -> Iterator[float]:
    """Factors of one attempt after another, without end; their median is 1."""
    factors = medians / np.median(medians)
    while True:
        start = int(rng.integers(len(factors) - STRETCH + 1))
        yield from factors[start : start + STRETCH].tolist()


@dataclass(frozen=True)
class Bisected:
    """One search and what it should have found; ``culprit`` is None where nothing was planted."""

    answer: Answer
    culprit: str | None
    rounds: int

    @property
    def right(self) -> bool:
        """Whether it named the culprit and nothing else; of none, whether it named nothing."""
        named = [culprit.changes for culprit in self.answer.culprits]
        wanted = [] if self.culprit is None else [(frozenset(self.culprit),)]
        return named == wanted

    @property
    def wrong(self) -> bool:
        """Whether it named an innocent."""
        named: Set = frozenset().union(
            *(each for culprit in self.answer.culprits for each in culprit.changes)
        )
        return bool(named - frozenset(self.culprit or ""))


def bisected(
    slower: float, planted: bool, medians: Array, terms: Terms, rng: np.random.Generator
) -> Bisected:
    """One search among eight packages that differ; one of them may make it ``slower``: 1.1."""
    culprit = PACKAGES[rng.integers(len(PACKAGES))] if planted else None
    noise, made = replay(medians, rng), 0
    known: dict[Set, list[Round]] = {}
    steps = search(FREE, terms)
    ask = next(steps)
    try:
        while True:
            have = known.setdefault(ask.changes, [])
            factors = {
                "good": 1.0,
                "bad": slower if culprit else 1.0,
                "candidate": slower if culprit in ask.changes else 1.0,
            }
            whole = len(ask.changes) == len(PACKAGES)
            names = ["good", "bad"] if whole else list(factors)
            for _ in range(ask.more):
                # As the command does it: who goes first changes from round to round.
                order = rng.permutation(names).tolist()
                seen = {name: (next(noise) * factors[name],) for name in order}
                have.append(Round(seen["good"], seen["bad"], seen.get("candidate", seen["bad"])))
                made += 1
            ask = steps.send(have)
    except StopIteration as ended:
        return Bisected(ended.value, culprit, made)


def searches(planted: bool, count: int, slower: float = 1.1) -> list[Bisected]:
    """So many with the command's own terms, each from a seed of its own, on all cores."""
    one = partial(_one, planted=planted, slower=slower)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(one, range(count), chunksize=4))


def _one(number: int, planted: bool, slower: float) -> Bisected:
    medians = np.array(recorded()["medians_s"])
    rng = np.random.default_rng([drawing_seed(), number, planted])
    return bisected(slower, planted, medians, Terms(), rng)


def at_least_expected(of: int, share: float) -> int:
    """The fewest successes among ``of`` that are not significantly (5 %) fewer than ``share``."""
    chance = 0.0
    for count in range(of + 1):
        chance += math.comb(of, count) * share**count * (1.0 - share) ** (of - count)
        if chance > 0.05:
            return count
    return of
