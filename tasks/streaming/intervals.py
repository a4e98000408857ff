"""What a step's time went to: intervals of the foreground that must not overlap, and gaps.

::

    cut                                                            cut
     |--wait--|-create-|--forward--|free|  gap  |--wait--|...| gap  |
     |------------------------- one step, wall --------------------|

Foreground intervals and the gaps between them add up to the wall. What background threads were
busy with meanwhile is kept apart and is never a share of it.

What a streamed step could be at best, how well its stages overlapped, and which one binds. Pure.

::

    one after the other   |--disk--|--h2d--|--compute--|     wall = sum of busy    efficiency 0
    all at once           |-----compute-----|                wall = longest busy   efficiency 1
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from orchestrator.measure import Clock
from orchestrator.measure.clock import Mark

CATEGORIES = ("disk_read", "pin", "h2d", "wait", "create", "forward", "free")
UNATTRIBUTED = "unattributed"
_SAME_MOMENT_NS, _MOST_MARKS = 100_000, 5

# span(category, unit): a context manager that books its duration.
Span: TypeAlias = Callable[[str, str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Interval:
    """Time booked for a category and a unit, nanoseconds of the clock."""

    category: str
    unit: str
    begin_ns: int
    end_ns: int


class StepLedger:
    """Books foreground and background intervals of one sequence; thread-safe for appending."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Begin a new sequence; background work that is under way goes to it."""
        self._intervals: list[Interval] = []
        self._busy: list[Interval] = []
        self._cuts: list[int] = []

    def now_ns(self) -> int:
        """The clock's time."""
        return self._clock.now_ns()

    def add(self, category: str, unit: str, begin_ns: int, end_ns: int) -> None:
        """Book an interval of the foreground."""
        self._intervals.append(Interval(category, unit, begin_ns, end_ns))

    @contextmanager
    def foreground(self, category: str, unit: str) -> Iterator[None]:
        """Book what happens inside for the foreground."""
        begin_ns = self._clock.now_ns()
        yield
        self.add(category, unit, begin_ns, self._clock.now_ns())

    @contextmanager
    def background(self, category: str, unit: str) -> Iterator[None]:
        """Book what happens inside for a background thread."""
        begin_ns = self._clock.now_ns()
        yield
        self._busy.append(Interval(category, unit, begin_ns, self._clock.now_ns()))

    def cut(self, at_ns: int | None = None) -> None:
        """End a step here, or at a moment just passed, and begin the next."""
        self._cuts.append(self._clock.now_ns() if at_ns is None else at_ns)

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each category and ``unattributed``, step by step.

        Raises
        ------
        ValueError
            If two intervals overlap or one reaches over a cut: shares of them would be none.
        """
        found = []
        for step in self.step_units():
            sums = dict.fromkeys((*CATEGORIES, UNATTRIBUTED), 0.0)
            for parts in step.values():
                for category, seconds in parts.items():
                    sums[category] += seconds
            found.append(sums)
        return found

    def step_units(self) -> list[dict[str, dict[str, float]]]:
        """Seconds of each category by unit, step by step; all of a step add up to its wall.

        A gap belongs to the unit whose interval ends it; the last one of a step, in which the next
        token is chosen, to the unit ``""``. Raises as :meth:`steps` does.
        """
        booked = sorted(self._intervals, key=lambda interval: interval.begin_ns)
        found = []
        for begin_ns, end_ns in pairwise(self._cuts):
            spent_ns: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
            seen_ns = begin_ns
            for interval in booked:
                if interval.end_ns <= begin_ns or interval.begin_ns >= end_ns:
                    continue
                if interval.begin_ns < seen_ns or interval.end_ns > end_ns:
                    raise ValueError(f"{interval.category} of {interval.unit} overlaps another")
                parts_ns = spent_ns[interval.unit]
                parts_ns[UNATTRIBUTED] += interval.begin_ns - seen_ns
                parts_ns[interval.category] += interval.end_ns - interval.begin_ns
                seen_ns = interval.end_ns
            spent_ns[""][UNATTRIBUTED] += end_ns - seen_ns
            found.append(
                {
                    unit: {category: spent / 1e9 for category, spent in parts_ns.items()}
                    for unit, parts_ns in spent_ns.items()
                }
            )
        return found

    def background_units(self) -> dict[str, dict[str, float]]:
        """Seconds that threads beside the model's were busy, by unit and category, in all steps.

        Never a share of the wall: what two threads do at once counts twice here.
        """
        spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for interval in self._busy:
            if self._cuts and self._cuts[0] <= interval.end_ns <= self._cuts[-1]:
                seconds = (interval.end_ns - interval.begin_ns) / 1e9
                spent[interval.unit][interval.category] += seconds
        return {unit: dict(parts) for unit, parts in spent.items()}

    def busy_s(self, *categories: str) -> float:
        """Seconds between the first and the last cut in which any thread did one of these.

        Foreground and background together; what two threads do at once counts once.
        """
        if not self._cuts:
            return 0.0
        busy_ns, seen_ns = 0, self._cuts[0]
        for i in sorted((*self._intervals, *self._busy), key=lambda i: i.begin_ns):
            if i.category in categories:
                end_ns = min(i.end_ns, self._cuts[-1])
                busy_ns += max(0, end_ns - max(i.begin_ns, seen_ns))
                seen_ns = max(seen_ns, end_ns)
        return busy_ns / 1e9


class CuttingClock:
    """A clock whose marks also cut the ledger: steps are those that the generator times."""

    def __init__(self, clock: Clock, ledger: StepLedger) -> None:
        self._clock = clock
        self._ledger = ledger
        self.nvtx = clock.nvtx
        self.now_ns = clock.now_ns
        self.sync = clock.sync
        self.seconds_between = clock.seconds_between

    def mark(self) -> Mark:
        """Mark, and cut at the same moment: again, if this thread lost its core in between."""
        for _ in range(_MOST_MARKS):
            before_ns = self._ledger.now_ns()
            mark = self._clock.mark()
            cut_ns = self._ledger.now_ns()
            if cut_ns - before_ns <= _SAME_MOMENT_NS:
                break
        self._ledger.cut(cut_ns)
        return mark


def overlap_efficiency(busy_s: Mapping[str, float], wall_s: float) -> float | None:
    """``(sum of busy - wall) / (sum of busy - max busy)``; None where there is but one stage.

    1 where the wall is the longest stage, 0 where it is the sum of them, below 0 where time was
    lost beside them.
    """
    total_s = sum(busy_s.values())
    hidden_s = total_s - max(busy_s.values(), default=0.0)
    return (total_s - wall_s) / hidden_s if hidden_s > 0.0 else None


def best_step_s(
    bytes_of: Mapping[str, float], bandwidth_of: Mapping[str, float], compute_s: float
) -> float:
    """``max(bytes / bandwidth of each stage, compute)``: no overlap is better than this.

    Of the best that was seen of each, :func:`best_rate` and the shortest computing: a typical rate
    is exceeded half of the time, and then a step would beat what cannot be beaten.
    """
    return max([compute_s, *(bytes_of[stage] / bandwidth_of[stage] for stage in bandwidth_of)])


def best_rate(alone_per_s: float, step_bytes: float, tpots_s: Sequence[float]) -> float:
    """The most bytes a second that a path gave: by itself, or under a sequence's mean step."""
    return max(alone_per_s, step_bytes / min(tpots_s))


def bottleneck(busy_s: Mapping[str, float]) -> str:
    """The stage that was busy longest; the first of equals."""
    return max(busy_s, key=lambda stage: busy_s[stage])
