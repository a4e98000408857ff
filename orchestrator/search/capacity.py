"""The search for capacity: the highest level whose attainment is at least what was asked.

    start ─ double or halve until one level passes and one fails ─ halve the bracket
          ─ a level that stays undecided is close to the edge: estimate the edge,
            put levels just below and just above it, give them attempts until they decide

A level passes or fails only by a bound on its own attainment, from attempts of its own
(:mod:`orchestrator.statistics.attainment`). The search knows nothing of where attempts come from:
it asks, is answered, and with the same answers goes the same way. So what is recorded costs
nothing, a killed search goes on, and a repeat asks for nothing.

Error
-----
A wrong answer needs a level that passed or failed wrongly. Levels lie apart, so of those that are
too high only the lowest is at all likely to pass, and of the others only the highest to fail. These
two share 1 - confidence, so each level gets half of it, whichever it is; and its looks share that,
each by the attempts it adds, so that it is wrong with no greater chance (Bonferroni's inequality).
Intervals hold the capacity more often than they say: docs/capacity.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from orchestrator.search.edge import aims, estimated_edge
from orchestrator.search.levels import Scale
from orchestrator.search.probe import TYPICAL_ERROR, LevelAttempt, Probe, State
from orchestrator.statistics.attainment import Attainment

# So many attempts decide a level that is not close to the edge.
_PATIENCE = 8
# A bracket that narrow is halved no further: the edge in it is estimated.
_CLOSE_GAP = 2.0
# Widths of the interval, in those that are wanted: what the budget does not allow is sought wider.
_WIDTHS = (1.0, 2.0, 4.0)
# The edge is sharp where the odds of a miss grow so many times within the interval.
_SHARP_ODDS = 5.0


@dataclass(frozen=True)
class CapacitySettings:
    """What is searched for.

    Attributes
    ----------
    target : float
        The attainment that capacity keeps, between 0 and 1.
    start : float
        A guess, where the search begins.
    integer : bool
        Levels are whole numbers (concurrency, batch size, context).
    width : float
        Of the interval, relative to its lower end.
    confidence : float
        That the interval holds the capacity.
    growth : float
        From one level of the bracket to the next.
    most_attempts, most_levels : int
        Of one level, and in all.
    lowest, highest : float or None
        No level is outside.
    """

    target: float
    start: float
    integer: bool = False
    width: float = 0.1
    confidence: float = 0.95
    growth: float = 2.0
    most_attempts: int = 40
    most_levels: int = 24
    lowest: float | None = None
    highest: float | None = None

    @property
    def scale(self) -> Scale:
        """The levels there are."""
        return Scale(self.width, self.integer, self.lowest, self.highest, self.start)


@dataclass(frozen=True)
class Ask:
    """Attempts that the search needs before it can go on, and the answer if it gets none.

    Attributes
    ----------
    level : float
        A whole number where levels are.
    attempts : int
        That the level needs in all.
    more : int
        Of them, those that are missing.
    so_far : Undecided
        With what is known by now.
    """

    level: float
    attempts: int
    more: int
    so_far: Undecided


@dataclass(frozen=True)
class LevelFound:
    """One level that was looked at.

    Attributes
    ----------
    level : float
    state : str
        ``passed``, ``failed`` or ``undecided``.
    attainment : Attainment
    """

    level: float
    state: State
    attainment: Attainment


@dataclass(frozen=True)
class Found:
    """The capacity: between ``low`` and ``high``, at the confidence asked for.

    Attributes
    ----------
    low : float or None
        The highest level that passed; None where even the lowest failed.
    high : float or None
        The lowest level that failed; None where even the highest passed.
    sharp : bool or None
        Whether the odds of a miss grow fivefold from the target to ``high``; None without one.
    binding : str or None
        What most requests missed at ``high``: a limit or ``unanswered``; or ``saturated``,
        ``memory`` or ``impossible``.
    levels : tuple of LevelFound
        All that were looked at, from the lowest on.
    """

    low: float | None
    high: float | None
    sharp: bool | None
    binding: str | None
    levels: tuple[LevelFound, ...]


@dataclass(frozen=True)
class Undecided(Found):
    """The capacity lies between ``low`` and ``high`` where they are known, wider than asked for.

    Attributes
    ----------
    reason : str
        What it would take.
    """

    reason: str = ""


Steps: TypeAlias = Generator[Ask, Sequence[LevelAttempt], Found]


def capacity(
    known: Mapping[float, Sequence[LevelAttempt]], settings: CapacitySettings
) -> Ask | Found:
    """What to do next, given all that is known: more attempts at a level, or the answer.

    Parameters
    ----------
    known : mapping of float to sequence of LevelAttempt
        Of each level the attempts that are recorded, in the order they were made. Levels the search
        does not come by are not used.

    Returns
    -------
    Ask or Found or Undecided
        :class:`Undecided` is a :class:`Found` whose interval is wider than what was asked for.
    """
    steps = search(settings)
    ask = next(steps)
    try:
        while True:
            have = known.get(ask.level, ())
            if len(have) < ask.attempts and not any(each.stopped_by for each in have):
                return replace(ask, more=ask.attempts - len(have))
            ask = steps.send(have[: ask.attempts])
    except StopIteration as ended:
        answer: Found = ended.value
        return answer


def search(settings: CapacitySettings) -> Steps:
    """The search as a conversation: yields an :class:`Ask`, is sent all attempts of that level.

    Sent are exactly ``attempts`` of them, those of earlier answers first; fewer where one shows
    that the level cannot run. Returns the answer.
    """
    walk = _Walk(settings, {})
    while not isinstance(level := walk.next_level(), _End):
        if level not in walk.probes and len(walk.probes) >= settings.most_levels:
            level = _End(f"{settings.most_levels} levels were looked at: allow more")
            break
        probe = walk.probes.setdefault(level, Probe(level, settings.most_attempts))
        error = (1.0 - settings.confidence) / 2.0 * probe.next_share
        wanted = probe.next_look
        so_far = Undecided(*walk.known(), "the search was stopped")
        attempts = yield Ask(level, wanted, wanted - len(probe.attempts), so_far)
        probe.look(attempts, settings.target, error)
    return Undecided(*walk.known(), level.reason) if level.reason else Found(*walk.known())


@dataclass(frozen=True)
class _End:
    """No level needs attempts; why the answer is less than was asked for."""

    reason: str | None = None


@dataclass
class _Walk:
    """The levels looked at so far, and where to look next."""

    settings: CapacitySettings
    probes: dict[float, Probe]

    @property
    def passed(self) -> float | None:
        """The highest level that passed."""
        return max((v for v, probe in self.probes.items() if probe.state == "passed"), default=None)

    @property
    def failed(self) -> float | None:
        """The lowest level that failed."""
        return min((v for v, probe in self.probes.items() if probe.state == "failed"), default=None)

    def next_level(self) -> float | _End:
        """Where attempts are needed next."""
        scale, passed, failed = self.settings.scale, self.passed, self.failed
        if (failed is not None and passed == scale.next_to(failed, -1)) or self._width() <= 1.0:
            return _End()
        # What lies outside of levels that passed and failed no longer matters.
        probes = [
            self.probes[level]
            for level in sorted(self.probes)
            if (passed or 0.0) <= level <= (failed or math.inf)
        ]
        high = next((at for at, each in enumerate(probes) if each.leans == "failed"), len(probes))
        low = max((at for at in range(high) if probes[at].leans == "passed"), default=-1)
        for probe in probes[low + 1 : high]:
            if len(probe.attempts) < _PATIENCE and not probe.exhausted:
                return probe.level
        if low < 0 or high == len(probes):
            return self._outward(low < 0, high == len(probes))
        ends = [scale.position(probes[end].level) for end in (low, high)]
        middle = scale.nearest(sum(ends) / 2.0)
        if high == low + 1 and ends[1] - ends[0] > _CLOSE_GAP and middle not in self.probes:
            return middle
        for probe in (probes[low], probes[high]):
            if probe.only_glanced_at:
                return probe.level
        return self._towards(estimated_edge(probes[low : high + 1], self.settings.target, scale))

    def _towards(self, edge: float) -> float | _End:
        """An end of the interval around the edge, of the width wanted or of more if need be."""
        undecided = [
            level
            for level, probe in self.probes.items()
            if probe.state == "undecided" and not probe.exhausted
        ]
        for width in _WIDTHS:
            if self._width() <= width:
                break
            for levels in aims(
                self.passed, self.failed, undecided, edge, width, self.settings.scale
            ):
                looked_at = [self.probes[level] for level in levels if level in self.probes]
                if not any(probe.state != "undecided" or probe.exhausted for probe in looked_at):
                    return min(levels, key=self._attempts_at)
        return self._what_it_takes()

    def _width(self) -> float:
        """Of the interval, in widths wanted; infinite without one."""
        if self.passed is None or self.failed is None:
            return math.inf
        return self.settings.scale.apart(self.passed, self.failed)

    def _outward(self, down: bool, up: bool) -> float | _End:
        """A level above all, or below all, that were looked at."""
        settings, scale = self.settings, self.settings.scale
        if not self.probes:
            return scale.nearest(scale.position(settings.start))
        top, bottom = self.probes[max(self.probes)], self.probes[min(self.probes)]
        growth = scale.apart_by(settings.growth)
        ways = [(top, growth)] * up + [(bottom, -growth)] * down
        if len(ways) == 2 and top.attainment and top.attainment.share < settings.target:
            ways.reverse()
        for probe, step in ways:
            further = scale.nearest(scale.position(probe.level) + step)
            if further != probe.level:
                return further
            if probe.state == "undecided":
                # The end of the scale: it is the answer, if it passes or fails.
                return self._what_it_takes() if probe.exhausted else probe.level
        return _End()

    def _attempts_at(self, level: float) -> tuple[int, float]:
        return len(self.probes[level].attempts) if level in self.probes else 0, level

    def _what_it_takes(self) -> _End:
        most = self.settings.most_attempts
        needed, probe = min(
            (
                (len(probe.attempts) * probe.attainment.times_to_decide(TYPICAL_ERROR), probe)
                for probe in self.probes.values()
                if probe.attainment is not None and probe.state == "undecided" and probe.exhausted
            ),
            key=lambda each: each[0],
        )
        have = f"level {probe.level:g} is undecided after {len(probe.attempts)} attempts"
        if needed > 10 * most:
            return _End(f"{have} and too close to the target: allow a wider interval")
        return _End(
            f"{have}: it takes some {max(math.ceil(needed), most + 1)}, or a wider interval"
        )

    def known(
        self,
    ) -> tuple[float | None, float | None, bool | None, str | None, tuple[LevelFound, ...]]:
        """What is known of the capacity: the fields of :class:`Found`."""
        high = None if self.failed is None else self.probes[self.failed]
        sharp = binding = None
        if high is not None and high.attainment is not None:
            share, target = high.attainment.share, self.settings.target
            sharp = (1.0 - share) * target >= _SHARP_ODDS * share * (1.0 - target)
            binding = high.binding
        levels = tuple(
            LevelFound(probe.level, probe.state, probe.attainment)
            for _, probe in sorted(self.probes.items())
            if probe.attainment is not None
        )
        return self.passed, self.failed, sharp, binding, levels
