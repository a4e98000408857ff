"""The time left is an interval as wide as the durations seen justify."""

from __future__ import annotations

import random

import pytest

from orchestrator.report.analyse.eta import remaining_s


def test_nothing_is_said_before_anything_is_known():
    assert remaining_s([], waiting=5) is None


def test_nothing_left_takes_no_time():
    assert remaining_s([10.0], waiting=0) == (0.0, 0.0)


def test_equal_durations_leave_no_spread():
    low, high = remaining_s([10.0] * 5, waiting=6, running_s=[5.0, 5.0], slots=2)
    assert low == pytest.approx(high) == pytest.approx((6 * 10 + 2 * 5) / 2)


def test_one_duration_is_not_taken_for_certain():
    low, high = remaining_s([10.0], waiting=4)
    assert low < 40.0 < high


def test_more_slots_than_trials_cannot_make_one_faster():
    low, high = remaining_s([10.0] * 4, waiting=1, slots=100)
    assert low == pytest.approx(high) == pytest.approx(10.0)


def test_an_overdue_attempt_still_counts():
    low, high = remaining_s([10.0, 10.0], waiting=0, running_s=[500.0])
    assert 0 < low <= high < 10


def test_the_interval_holds_what_it_promises():
    rng = random.Random(0)
    held = 0
    for _ in range(400):
        seen = [rng.gauss(10, 2) for _ in range(8)]
        low, high = remaining_s(seen, waiting=20, slots=1)
        held += low <= sum(rng.gauss(10, 2) for _ in range(20)) <= high
    assert 0.72 <= held / 400 <= 0.88
