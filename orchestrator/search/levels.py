"""The levels a search may look at: few and always the same, so that they are looked at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Levels to each width of the interval that is wanted.
_STEPS = 4


@dataclass(frozen=True)
class Scale:
    """Levels apart by a ratio, or whole numbers; positions are logarithms in units of the width.

    Parameters
    ----------
    width : float
        Relative width of the interval that is wanted, positive.
    integer : bool
        Whole numbers from 1 on, as of concurrency.
    lowest, highest : float or None
        No level is outside.
    origin : float
        A level; the others are so many steps above and below it.
    """

    width: float
    integer: bool = False
    lowest: float | None = None
    highest: float | None = None
    origin: float = 1.0

    def position(self, level: float) -> float:
        """Of a level; a level with a position greater by 1 is higher by the width."""
        return self.apart_by(level / self.origin)

    def apart_by(self, ratio: float) -> float:
        """Distance of two positions whose levels have this ratio."""
        return math.log(ratio) / math.log1p(self.width)

    def nearest(self, position: float) -> float:
        """The level closest to a position."""
        if self.integer:
            return self._within(round(self._level(position)))
        return self._rung(round(position * _STEPS))

    def above(self, position: float) -> float:
        """The lowest level at a position or higher."""
        if self.integer:
            return self._within(math.ceil(self._level(position) * (1.0 - 1e-9)))
        return self._rung(math.ceil(position * _STEPS - 0.25))

    def below(self, position: float) -> float:
        """The highest level at a position or lower."""
        if self.integer:
            return self._within(math.floor(self._level(position) * (1.0 + 1e-9)))
        return self._rung(math.floor(position * _STEPS + 0.25))

    def next_to(self, level: float, direction: int) -> float:
        """The next level up (1) or down (-1)."""
        if self.integer:
            return self._within(level + direction)
        return self._rung(self._step(level) + direction)

    def apart(self, low: float, high: float) -> float:
        """Width of the interval between two levels, in those that are wanted."""
        if self.integer:
            return self.position(high) - self.position(low) - 1e-9
        return (self._step(high) - self._step(low)) / _STEPS

    def _step(self, level: float) -> int:
        return round(self.position(level) * _STEPS)

    def _level(self, position: float) -> float:
        return self.origin * math.exp(position * math.log1p(self.width))

    def _rung(self, step: int) -> float:
        digits = 2 + max(1, math.ceil(-math.log10(self.width)))
        return self._within(float(f"{self._level(step / _STEPS):.{digits}g}"))

    def _within(self, level: float) -> float:
        low = max(1.0, self.lowest or 1.0) if self.integer else self.lowest
        level = level if low is None else max(low, level)
        level = level if self.highest is None else min(self.highest, level)
        return int(level) if self.integer else level
