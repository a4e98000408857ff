"""Numbers are written with the right prefix and no digit that is not there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.show.units import (
    duration,
    quantity,
    ratio,
    scale_of,
    significant,
    span,
    with_ci,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0612, "s", "61.2 ms"),
        (12.34, "s", "12.3 s"),
        (0.0000123, "s", "12.3 µs"),
        (1800.0, "s", "1800 s"),
        (0.9999, "s", "1.00 s"),
        (123456789, "bytes", "118 MiB"),
        (1023, "bytes", "1023 B"),
        (537919488, "bytes", "513 MiB"),
        (12345, "tokens/s", "12345 tok/s"),
        (16.345, "tokens/s", "16.3 tok/s"),
        (3.12e12, "flop/s", "3.12 TFLOP/s"),
        (0.5, "1", "0.500"),
        (0, "s", "0 s"),
        (None, "s", "–"),
    ],
)
def test_a_quantity_has_the_prefix_a_person_would_choose(value, unit, text):
    assert quantity(value, unit) == text


@pytest.mark.parametrize(
    ("median", "low", "high", "unit", "text"),
    [
        (0.0612, 0.0604, 0.0620, "s", "61.2 ±0.8 ms"),
        (1.2164, 1.2012, 1.2316, "s", "1.216 ±0.015 s"),
        (13.21, 12.9, 13.5, "s", "13.2 ±0.3 s"),
        (1216.0, 1196.0, 1236.0, "tokens/s", "1216 ±20 tok/s"),
        (5e8, None, None, "bytes", "477 MiB"),
        (2.0, 2.0, 2.0, "s", "2 s"),
        # Of nothing, and of less than the interval is wide, the interval says the digits.
        (0.0, -5e-4, 5e-4, "s", "0 ±500 µs"),
        (0.0, 0.0, 3072.0, "bytes", "0.0 ±1.5 KiB"),
        (1e-9, -0.5, 0.5, "1", "0.0 ±0.5"),
        (-1e-5, -1.5, 1.5, "1", "0.0 ±1.5"),
        (-1.29e-4, -1.86e-3, 1.55e-3, "s", "-129 ±1705 µs"),
        # As the value is written alone: with an exponent, and without what no one reads.
        (2.534e-7, 2.23e-7, 2.85e-7, "nats", "2.53e-07 ±0.31e-07 nats"),
        (25033515.8, 24714465.0, 25336239.0, "tokens/s", "2.50e+07 ±0.03e+07 tok/s"),
    ],
)
def test_a_median_is_rounded_to_where_its_interval_begins(median, low, high, unit, text):
    assert with_ci(median, low, high, unit) == text


def test_a_column_shares_one_scale():
    scale = scale_of([0.05, 0.06, 1.2], "s")
    assert scale.symbol == "ms"
    assert [scale.number(v) for v in (0.05, 1.2, None)] == ["50", "1200", "–"]


def test_an_interval_too_narrow_to_write_is_bounded_and_never_zero():
    text = with_ci(0.0612345, 0.06123449999, 0.06123450001, "s")
    assert text == "61.234 <±0.001 ms"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (59.6, "60 s"),
        (99.6, "1 min 40 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_spans_share_a_unit_and_collapse_when_equal():
    assert span(40, 65) == "40–65 s"
    assert span(601, 640) == "10–11 min"
    assert span(7000, 12000) == "1.9–3.3 h"
    assert span(10.1, 10.2) == "10 s"


def test_ratios_keep_three_digits():
    assert [ratio(v) for v in (1.823, 0.0345, 123.4, None)] == ["1.82×", "0.0345×", "123×", "–"]
    assert [ratio(v) for v in (1000.0, 2902.3, 3e-7, 0.0)] == ["1000×", ">1000×", "<0.001×", "0×"]


@given(st.floats(min_value=1e-9, max_value=1e15, allow_nan=False))
def test_what_is_written_is_what_was_measured(value):
    for unit, prefixes in (
        ("s", {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}),
        ("bytes", {"B": 1.0, **{f"{p}iB": 2.0 ** (10 * (i + 1)) for i, p in enumerate("KMGTP")}}),
    ):
        number, symbol = quantity(value, unit).split(" ")
        assert float(number) * prefixes[symbol] == pytest.approx(value, rel=0.006)


@given(
    st.floats(min_value=1e-6, max_value=1e6),
    st.floats(min_value=1e-5, max_value=0.5),
)
def test_an_interval_reads_back_within_its_own_rounding(median, relative):
    half = median * relative
    text = with_ci(median, median - half, median + half, "1")
    number, shown = re.fullmatch(r"(\S+) <?±(\S+)", text).groups()
    assert float(number) == pytest.approx(median, abs=max(half, 0.006 * median), rel=0.006)
    assert float(shown) > 0


@given(st.floats(min_value=-1e12, max_value=1e12, allow_nan=False))
def test_significant_never_loses_the_sign_or_the_size(value):
    assert float(significant(value)) == pytest.approx(value, rel=0.006, abs=1e-300)
