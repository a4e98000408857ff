"""Searches on simulated queues of known capacity: how often the interval holds it.

Thresholds are binomial: a right search falls under one with a chance of 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.statistics import attainment
from testing.queues import batching, batching_capacity, md1, md1_capacity
from testing.searched import Searched, Server, searches
from testing.seeds import drawing_seed

Array = NDArray[np.float64]
REQUESTS = 400
LIMIT = 10.0
# Of the service time between attempts: its logarithm's standard deviation, and how much of it the
# next attempt of the same search keeps.
WANDER, KEPT = 0.03, 0.8


def steady(rates: Array, _: NDArray[np.int64], rng: np.random.Generator) -> Mapping[str, Array]:
    return md1(rates, REQUESTS, rng, limit=LIMIT)


def batches(rates: Array, _: NDArray[np.int64], rng: np.random.Generator) -> Mapping[str, Array]:
    return batching(rates, REQUESTS, rng)


def wandering() -> Server:
    """An M/D/1 queue whose service time wanders from attempt to attempt of a search."""
    last: dict[int, float] = {}

    def server(
        rates: Array, of: NDArray[np.int64], rng: np.random.Generator
    ) -> Mapping[str, Array]:
        steps = rng.normal(size=len(of))
        for at, index in enumerate(of.tolist()):
            if index in last:
                steps[at] = KEPT * last[index] + math.sqrt(1.0 - KEPT**2) * steps[at]
            last[index] = steps[at]
        return md1(rates, REQUESTS, rng, limit=LIMIT, service=np.exp(WANDER * steps))

    return server


# Each with its capacity, which takes a moment.
SERVERS: dict[str, tuple[Callable[[], Server], Callable[[], float]]] = {
    "md1": (lambda: steady, lambda: md1_capacity(0.95, LIMIT)),
    "batching": (lambda: batches, batching_capacity),
    "drift": (wandering, lambda: md1_capacity(0.95, LIMIT, WANDER)),
}


def at_most(share: float, cases: int) -> float:
    """So many of ``cases``, each with the chance ``share``."""
    return share * cases + 3.7 * math.sqrt(share * (1.0 - share) * cases)


def made(name: str, count: int, **settings: Any) -> list[Searched]:
    server, capacity = SERVERS[name]
    rng = np.random.default_rng([drawing_seed(), count, len(name)])
    return searches(server(), capacity(), count, rng, **settings)


def missed(found: list[Searched]) -> int:
    return sum(not each.covered for each in found)


@pytest.mark.parametrize(("name", "count"), [("md1", 24), ("drift", 12), ("batching", 8)])
def test_intervals_hold_the_capacity(name: str, count: int) -> None:
    found = made(name, count, width=0.2)
    assert missed(found) <= at_most(0.05, count)
    assert sum(each.passed_wrongly for each in found) <= at_most(0.05, count)
    assert np.median([len(each.answer.levels) for each in found]) <= 12


@pytest.mark.long
@pytest.mark.parametrize("name", SERVERS)
def test_intervals_of_400_searches_hold_the_capacity(name: str) -> None:
    found = made(name, 400)
    assert missed(found) <= at_most(0.05, 400)
    assert sum(each.passed_wrongly for each in found) <= at_most(0.05, 400)
    assert np.median([len(each.answer.levels) for each in found]) <= 12


def test_with_requests_taken_as_independent_they_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attainment, "_design_effect", lambda *_: 1.0)
    assert missed(made("md1", 60, width=0.05)) > at_most(0.05, 60)
