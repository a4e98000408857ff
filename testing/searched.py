"""Many searches for a capacity that is known, in step, so that their attempts are one batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.search.capacity import CapacitySettings, Found, search
from orchestrator.search.probe import LevelAttempt

Array = NDArray[np.float64]
#: Rates and, of attempts in the order they are made, the search each is of; gives uses of limits.
Server = Callable[[Array, NDArray[np.int64], np.random.Generator], Mapping[str, Array]]


@dataclass(frozen=True)
class Searched:
    """One search and what it should have found."""

    answer: Found
    capacity: float

    @property
    def covered(self) -> bool:
        """Whether the interval holds the capacity."""
        low, high = self.answer.low or 0.0, self.answer.high or math.inf
        return low <= self.capacity <= high

    @property
    def passed_wrongly(self) -> bool:
        """Whether a level above the capacity passed."""
        levels = self.answer.levels
        return any(each.state == "passed" and each.level > self.capacity for each in levels)


def searches(
    server: Server, capacity: float, count: int, rng: np.random.Generator, **settings: Any
) -> list[Searched]:
    """``count`` searches, each from a start of its own.

    Each measures time in units of its own, so capacity lies anywhere between two levels.
    """
    units = np.exp(rng.uniform(0.0, math.log(10.0), count))
    starts = capacity * units * np.exp(rng.uniform(-1.0, 1.0, count))
    talks = [
        search(CapacitySettings(target=0.95, start=float(start), **settings)) for start in starts
    ]
    asks = dict(enumerate(next(talk) for talk in talks))
    made: list[dict[float, list[LevelAttempt]]] = [defaultdict(list) for _ in talks]
    answers: dict[int, Found] = {}
    while asks:
        of = np.repeat(list(asks), [ask.more for ask in asks.values()])
        rates = np.array([asks[index].level / units[index] for index in of.tolist()])
        used = server(rates, of, rng)
        for attempt, index in enumerate(of.tolist()):
            one = LevelAttempt({limit: each[attempt] for limit, each in used.items()})
            made[index][asks[index].level].append(one)
        for index, ask in list(asks.items()):
            try:
                asks[index] = talks[index].send(made[index][ask.level])
            except StopIteration as ended:
                answers[index] = ended.value
                del asks[index]
    return [Searched(answers[i], float(capacity * units[i])) for i in range(count)]
