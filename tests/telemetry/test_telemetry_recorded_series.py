"""Stored telemetry read back: the same readings, counters as rates, peaks that survive thinning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.measure.series import SeriesSet
from orchestrator.telemetry.recorded_series import History, read_histories


def history(values: list[float], *, counter: bool = False) -> History:
    n = len(values)
    return History("host", "x", "1", np.arange(n, dtype=float), np.array(values, float), counter)


def test_what_was_stored_is_read_back() -> None:
    series = SeriesSet(7_000)
    for i in range(4):
        series.add("host", "busy_s", 7_000 + i * 10**9, 2.0 * i, counter=True)
        series.add("GPU-1", "power_w", 7_000 + i * 10**9, 300.0 + i)
    found = read_histories(series.to_parquet())
    assert found.origin_ns == 7_000
    assert found.gpus == ["GPU-1"]
    power, busy = found.get("GPU-1", "power_w"), found.get("host", "busy_s")
    assert power is not None
    assert busy is not None
    assert power.values.tolist() == [300.0, 301.0, 302.0, 303.0]
    assert power.unit == "W"
    assert not power.counter
    assert busy.counter
    rate = busy.rate()
    assert (rate.metric, rate.unit) == ("busy_s_per_s", "s/s")
    assert rate.values.tolist() == [2.0, 2.0, 2.0]
    assert rate.t_s.tolist() == [1.0, 2.0, 3.0]
    assert found.get("host", "nothing") is None


def test_nothing_stored_is_nothing_read() -> None:
    assert list(read_histories(SeriesSet().to_parquet())) == []


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not a file of telemetry"):
        read_histories(b"PAR?")


def test_a_counter_that_was_set_back_has_no_rate_there() -> None:
    assert history([0, 5, 1, 4]).rate().values.tolist() == [5.0, 3.0]


@given(
    st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=400), st.integers(2, 60)
)
def test_thinning_keeps_both_extremes_and_the_order(values: list[float], points: int) -> None:
    thin = history(values).thinned(points)
    assert len(thin.values) <= max(points, 2)
    assert thin.values.min() == min(values)
    assert thin.values.max() == max(values)
    assert (np.diff(thin.t_s) > 0).all()


def test_a_flat_line_keeps_its_ends() -> None:
    assert history([3.0] * 500).thinned(100).t_s.tolist() == [0.0, 499.0]
