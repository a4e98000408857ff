"""Arithmetic of sampled series over time windows: what was read inside them, what a counter gained.

Pure. Where a figure cannot be had the answer is a :class:`Missing` with the reason, never 0.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from orchestrator.measure.metric import ATTEMPT, MEASURED, Phase
from orchestrator.measure.series import Series

Window = tuple[int, int]  # begin, end in ns on CLOCK_MONOTONIC

_MIN_COVERED = 0.9
_WRAP_EDGE = 0.02
_GAP = 20  # readings so many times further apart than usual leave a gap


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be had, and why."""

    reason: str


Figure = float | Missing


def merged(windows: Iterable[Window]) -> list[Window]:
    """Union of windows: sorted, disjoint."""
    result: list[Window] = []
    for begin, end in sorted(windows):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((begin, end))
    return result


def total_s(windows: Sequence[Window]) -> float:
    """Seconds covered by disjoint windows."""
    return sum(end - begin for begin, end in windows) / 1e9


def widened(windows: Sequence[Window], least_s: float) -> list[Window]:
    """The windows and as much of what is around them as makes them ``least_s`` in all."""
    found, pad_s = list(windows), 0.0
    while found and (lacking_s := least_s - total_s(found)) > 0:
        # Those of neighbours overlap, so once may not be enough.
        pad_s += lacking_s / 2 / len(windows) + 1e-6
        pad = round(pad_s * 1e9)
        found = merged((begin - pad, end + pad) for begin, end in windows)
    return found


def windows_by_phase(phases: Sequence[Phase], attempt: Window) -> dict[str, list[Window]]:
    """Windows of every phase name, of all measured ones together and of the attempt.

    Those two are the pseudo-phases ``measured``, where overlaps count once, and ``attempt``. A
    phase that was cut short ends with the attempt. Of a name with measured windows only those
    count, so warm-up repetitions of ``decode`` do not mix into it.
    """
    named: dict[str, list[tuple[bool, Window]]] = {}
    for phase in phases:
        end = attempt[1] if phase.end_ns is None else phase.end_ns
        if end >= phase.begin_ns:
            window = (phase.begin_ns, end)
            named.setdefault(phase.name, []).append((phase.measured, window))
    result = {}
    measured: list[Window] = []
    for name, found in named.items():
        counted = [w for is_measured, w in found if is_measured]
        measured += counted
        result[name] = merged(counted or [w for _, w in found])
    result[MEASURED] = merged(measured)
    result[ATTEMPT] = [attempt]
    return result


def inside(series: Series, windows: Sequence[Window]) -> array[float]:
    """Readings taken inside the windows."""
    found = array("d")
    for begin, end in windows:
        found.extend(series.between(begin, end))
    return found


def of_readings(
    series: Series | None,
    windows: Sequence[Window],
    how: Callable[[Sequence[float]], float],
    *,
    period_s: float,
    throughout: bool = False,
) -> Figure:
    """``how`` (mean, max, min) of the readings inside the windows.

    ``throughout``: none of windows that reading did not cover (a GPU lost half-way, a driver that
    did not answer for a while).
    """
    if series is None or not len(series):
        return Missing("was never read")
    found = inside(series, windows)
    if throughout and found:
        length_s = total_s(windows)
        covered_s = total_s(_common(windows, _read_throughout(series)))
        if _uncovered(length_s, covered_s, 2 * period_s):
            return Missing(f"readings cover {covered_s:.2f} s of {length_s:.2f} s")
    if not found:
        return _too_short(windows, period_s)
    return how(found)


def together(figures: Sequence[Figure], how: Callable[[Sequence[float]], float]) -> Figure:
    """``how`` of several figures; missing, with its reason, where one of them is."""
    known = [figure for figure in figures if not isinstance(figure, Missing)]
    missing = [figure for figure in figures if isinstance(figure, Missing)]
    return missing[0] if missing else float(how(known))


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def gained(
    series: Series | None,
    windows: Sequence[Window],
    *,
    period_s: float,
    modulus: float | None = None,
    at_least_s: float | None = None,
) -> Figure:
    """What a cumulative counter gained over the windows, interpolated at their edges.

    Parameters
    ----------
    period_s : float
        Sampling period: windows of less in all are refused, as are windows that sampling did not
        cover (a process that ended, a GPU that was lost).
    modulus : float, optional
        Where the counter wraps. A fall from its last to its first 2 % is a wrap; any other fall
        means the counter was reset, and windows over it have no figure. (Between two readings no
        counter read here gains as much: 2 % of 32 bits of millijoules are 86 kJ.)
    at_least_s : float, optional
        Refuse windows shorter than this instead of ``period_s``.
    """
    if series is None or len(series) < 2:
        return Missing("was never read" if series is None or not len(series) else "was read once")
    length_s = total_s(windows)
    if length_s <= 0 or length_s < (period_s if at_least_s is None else at_least_s):
        return _too_short(windows, period_s if at_least_s is None else at_least_s)
    values, resets = unwrapped(series.values, modulus)
    times = series.t_ns
    gain = 0.0
    covered = _covered(series, windows)
    covered_s = total_s(covered)
    for begin, end in covered:
        first, last = bisect_right(times, begin), bisect_left(times, end)
        if any(first <= i <= last for i in resets):
            return Missing("the counter went backwards (reset by the driver?)")
        gain += _at(times, values, end) - _at(times, values, begin)
    if _uncovered(length_s, covered_s, period_s):
        return Missing(f"readings cover {covered_s:.2f} s of {length_s:.2f} s")
    return gain * length_s / covered_s


def unwrapped(values: Sequence[float], modulus: float | None) -> tuple[array[float], list[int]]:
    """The counter without its wraps, and the positions where it was reset instead."""
    result, resets, offset = array("d"), [], 0.0
    previous = None
    for i, value in enumerate(values):
        if previous is not None and value < previous:
            edge = _WRAP_EDGE * (modulus or 0.0)
            if modulus and previous >= modulus - edge and value <= edge:
                offset += modulus
            else:
                resets.append(i)
        result.append(value + offset)
        previous = value
    return result, resets


def refresh_s(series: Series) -> float:
    """How often the device refreshes a counter: the median time between its changes.

    Of a counter that was seen to change fewer than five times, the longest time it stood still.
    """
    times, values = series.t_ns, series.values
    changes = [times[i] for i in range(1, len(series)) if values[i] != values[i - 1]]
    if len(changes) >= 5:
        gaps = sorted(b - a for a, b in pairwise(changes))
        return gaps[len(gaps) // 2] / 1e9
    edges = [times[0], *changes, times[-1]]
    return max(b - a for a, b in pairwise(edges)) / 1e9


def edges_s(series: Series, windows: Sequence[Window]) -> float:
    """Seconds that cannot be told to lie inside the windows or outside, of at least two readings.

    For each window the time between the two readings around an edge of it, whichever is wider:
    what happened between them is shared out evenly.
    """
    times = series.t_ns

    def around(t: int) -> int:
        i = min(max(bisect_right(times, t), 1), len(times) - 1)
        return times[i] - times[i - 1]

    return sum(max(around(begin), around(end)) for begin, end in windows) / 1e9


def _read_throughout(series: Series) -> list[Window]:
    """When it was read at its pace; what lies between, nobody saw."""
    import numpy as np

    times = np.array(series.t_ns, dtype=np.int64)
    gaps = np.diff(times)
    breaks = np.flatnonzero(gaps > _GAP * np.median(gaps)) if len(gaps) else gaps
    begins, ends = times[[0, *(breaks + 1)]], times[[*breaks, -1]]
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def _common(windows: Sequence[Window], others: Sequence[Window]) -> list[Window]:
    """Where windows of both overlap; each of them sorted and disjoint."""
    found, rest = [], list(reversed(others))
    for begin, end in windows:
        while rest and rest[-1][1] <= begin:
            rest.pop()
        i = len(rest) - 1
        while i >= 0 and rest[i][0] < end:
            found.append((max(begin, rest[i][0]), min(end, rest[i][1])))
            i -= 1
    return found


def _covered(series: Series, windows: Sequence[Window]) -> list[Window]:
    return _common(windows, [(series.t_ns[0], series.t_ns[-1])])


def _uncovered(length_s: float, covered_s: float, period_s: float) -> bool:
    missing_s = length_s - covered_s
    return covered_s <= 0 or (covered_s < _MIN_COVERED * length_s and missing_s > period_s)


def _at(times: array[int], values: array[float], t: int) -> float:
    i = bisect_right(times, t)
    if i == 0:
        return values[0]
    if i == len(times):
        return values[-1]
    share = (t - times[i - 1]) / (times[i] - times[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])


def _too_short(windows: Sequence[Window], period_s: float) -> Missing:
    if not windows:
        return Missing("the attempt has no such window")
    length_s = total_s(windows)
    if length_s < period_s:
        return Missing(f"lasted {length_s:.3f} s, shorter than the {period_s:g} s it is read over")
    return Missing(f"no reading in its {length_s:.2f} s")
