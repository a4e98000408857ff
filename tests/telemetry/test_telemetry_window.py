"""Arithmetic of series over windows: gains, wraps, resets, coverage, short phases."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure import Phase
from orchestrator.measure.metric import ATTEMPT, MEASURED
from orchestrator.measure.series import Series
from orchestrator.telemetry.window import (
    Missing,
    edges_s,
    gained,
    mean,
    merged,
    of_readings,
    refresh_s,
    total_s,
    unwrapped,
    widened,
    windows_by_phase,
)

S = 1_000_000_000


def series(points: list[tuple[float, float]], *, counter: bool = True) -> Series:
    made = Series("gpu", "energy_j", "J", counter)
    for at_s, value in points:
        made.add(round(at_s * S), value)
    return made


def steady(rate: float, *, end_s: float = 10.0, step_s: float = 0.1) -> Series:
    count = round(end_s / step_s) + 1
    return series([(i * step_s, rate * i * step_s) for i in range(count)])


def windows(*pairs: tuple[float, float]) -> list[tuple[int, int]]:
    return [(round(b * S), round(e * S)) for b, e in pairs]


def test_gain_over_several_windows_is_interpolated_at_their_edges() -> None:
    gain = gained(steady(500.0), windows((1.03, 2.07), (4.55, 5.0)), period_s=0.1)
    assert gain == pytest.approx(500.0 * (1.04 + 0.45))


def test_window_shorter_than_the_sampling_period_has_no_figure() -> None:
    gain = gained(steady(500.0), windows((1.0, 1.02)), period_s=0.1)
    assert isinstance(gain, Missing)
    assert "0.020 s, shorter than the 0.1 s" in gain.reason


def test_many_short_windows_count_together() -> None:
    many = windows(*[(i + 0.5, i + 0.53) for i in range(8)])
    assert gained(steady(100.0), many, period_s=0.1) == pytest.approx(100 * 8 * 0.03)


def test_wrap_is_a_gain_and_a_reset_is_none() -> None:
    wraps = series([(0, 95), (1, 99), (2, 1), (3, 7)])
    assert gained(wraps, windows((0, 3)), period_s=0.1, modulus=100) == pytest.approx(12)
    # A driver loaded anew begins at 0 from wherever the counter was: no gain can be made of that.
    reset = series([(0, 80), (1, 84), (2, 3), (3, 7)])
    figure = gained(reset, windows((0, 3)), period_s=0.1, modulus=100)
    assert isinstance(figure, Missing)
    assert "backwards" in figure.reason
    # A phase that ended before the reset, or began after it, keeps its figure.
    assert gained(reset, windows((0, 0.9)), period_s=0.1) == pytest.approx(3.6)
    assert gained(reset, windows((2.1, 2.9)), period_s=0.1) == pytest.approx(3.2)


def test_window_that_sampling_did_not_cover_has_no_figure() -> None:
    figure = gained(steady(100.0, end_s=4), windows((3.0, 8.0)), period_s=0.1)
    assert figure == Missing("readings cover 1.00 s of 5.00 s")
    # Ending a fraction of a period after the last reading is normal: the rate carries on.
    assert gained(steady(100.0, end_s=4), windows((3.0, 4.05)), period_s=0.1) == pytest.approx(105)


def test_counter_never_read_or_read_once_has_no_figure() -> None:
    assert gained(None, windows((0, 1)), period_s=0.1) == Missing("was never read")
    assert gained(series([(0, 1)]), windows((0, 1)), period_s=0.1) == Missing("was read once")


@given(
    rate=st.floats(0.1, 1e4),
    cuts=st.lists(st.floats(0.2, 9.8), min_size=2, max_size=12, unique=True),
)
def test_gain_over_parts_is_gain_over_the_whole(rate: float, cuts: list[float]) -> None:
    counter, edges = steady(rate), sorted(cuts)
    whole = gained(counter, windows((edges[0], edges[-1])), period_s=0.0)
    parts = 0.0
    for begin, end in pairwise(edges):
        part = gained(counter, windows((begin, end)), period_s=0.0)
        parts += 0.0 if isinstance(part, Missing) else part
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-6 * rate)


@given(
    gains=st.lists(st.integers(0, 20), min_size=1, max_size=200),
    start=st.integers(0, 999),
)
def test_unwrapping_restores_what_a_wrapping_counter_lost(gains: list[int], start: int) -> None:
    true = [start]
    for gain in gains:
        true.append(true[-1] + gain)
    values, resets = unwrapped([float(v % 1000) for v in true], 1000)
    assert not resets
    assert [v - values[0] for v in values] == [v - start for v in true]


def test_readings_inside_windows() -> None:
    gauge = series([(i / 10, float(i)) for i in range(100)], counter=False)
    assert of_readings(gauge, windows((1.0, 2.0)), max, period_s=0.1) == 20
    assert of_readings(gauge, windows((1.0, 2.0), (3.0, 3.1)), mean, period_s=0.1) == pytest.approx(
        (sum(range(10, 21)) + 30 + 31) / 13
    )
    between = of_readings(gauge, windows((1.01, 1.04)), max, period_s=0.1)
    assert isinstance(between, Missing)


def test_a_source_lost_half_way_has_no_reading_throughout() -> None:
    gauge = series([(i / 10, 1.0) for i in range(21)], counter=False)
    lost = of_readings(gauge, windows((1.0, 5.0)), mean, period_s=0.1, throughout=True)
    assert lost == Missing("readings cover 1.00 s of 4.00 s")
    assert of_readings(gauge, windows((1.0, 5.0)), mean, period_s=0.1) == 1.0


def test_refresh_and_spacing() -> None:
    # Read every 50 ms, refreshed by the device every 200 ms.
    counter = series([(i * 0.05, float(i // 4)) for i in range(80)])
    assert refresh_s(counter) == pytest.approx(0.2)
    # Seen to change once: it may refresh as rarely as the longest time it stood still.
    assert refresh_s(series([(0, 1), (0.3, 1), (1.1, 2), (1.5, 2)])) == pytest.approx(1.1)


def test_merged_windows_count_overlaps_once() -> None:
    assert merged(windows((2, 3), (0, 1), (0.5, 1.5))) == windows((0, 1.5), (2, 3))
    assert total_s(merged(windows((0, 2), (1, 3)))) == pytest.approx(3)


def test_windows_of_phases() -> None:
    phases = [
        Phase("load", 0, 1 * S),
        Phase("decode", 1 * S, 2 * S, 0, measured=False),
        Phase("decode", 3 * S, 4 * S, 1),
        Phase("inner", 3 * S, round(3.5 * S), 0),
        Phase("cut", 5 * S, None),
        Phase("warmup", 2 * S, 3 * S, 0, measured=False),
    ]
    found = windows_by_phase(phases, (0, 6 * S))
    assert found["decode"] == windows((3, 4)), "warm-up repetitions do not mix into a phase"
    assert found["warmup"] == windows((2, 3)), "a phase that is never measured is still described"
    assert found["cut"] == windows((5, 6)), "a phase cut short ends with the attempt"
    assert found[MEASURED] == windows((0, 1), (3, 4), (5, 6))
    assert found[ATTEMPT] == windows((0, 6))


def test_what_was_not_read_for_a_while_has_no_mean() -> None:
    # A driver that did not answer from the 2nd to the 8th second.
    gappy = series([(i / 10, 1.0) for i in range(101) if not 20 < i < 80], counter=False)
    for window, covered in (((0.0, 10.0), "4.00 s of 10.00 s"), ((3.0, 9.0), "1.00 s of 6.00 s")):
        found = of_readings(gappy, windows(window), mean, period_s=0.1, throughout=True)
        assert found == Missing(f"readings cover {covered}")
    for window in ((0.0, 2.0), (8.0, 10.0)):
        assert of_readings(gappy, windows(window), mean, period_s=0.1, throughout=True) == 1.0


def test_edges_are_as_sharp_as_the_readings_around_them() -> None:
    gappy = series([(i / 10, 0.0) for i in range(101) if not 20 < i < 80])
    assert edges_s(gappy, windows((1.02, 1.95))) == pytest.approx(0.1)
    assert edges_s(gappy, windows((1.02, 2.05))) == pytest.approx(6.0)
    assert edges_s(gappy, windows((0.02, 0.05), (0.5, 1.02), (8.55, 99.0))) == pytest.approx(0.3)


@given(
    cuts=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=20, unique=True),
    least_s=st.floats(0.0, 5.0),
)
def test_windows_are_widened_to_a_length(cuts: list[float], least_s: float) -> None:
    edges = sorted(round(cut * S) for cut in cuts)
    given_ = merged(zip(edges[::2], edges[1::2], strict=False))
    found = widened(given_, least_s)
    if total_s(given_) >= least_s:
        assert found == given_
    else:
        assert least_s <= total_s(found) <= least_s + 0.1
    assert all(any(b <= begin and end <= e for b, e in found) for begin, end in given_)
    assert found == merged(found)
