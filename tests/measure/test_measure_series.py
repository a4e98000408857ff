"""Series: reading back what was stored, and copies that a running sampler cannot change."""

from __future__ import annotations

import io

import pyarrow.parquet as pq

from orchestrator.measure.series import SeriesSet


def sample() -> SeriesSet:
    series = SeriesSet(1_000)
    for i in range(5):
        series.add("host", "busy_s", 1_000 + i * 10**9, float(i), counter=True)
    series.add("GPU-1", "power_w", 1_000 + 5 * 10**8, 312.5)
    return series


def test_parquet_has_one_row_a_reading() -> None:
    rows = pq.read_table(io.BytesIO(sample().to_parquet())).to_pylist()
    assert len(rows) == 6
    assert rows[3] == {"t_s": 3.0, "source": "host", "metric": "busy_s", "unit": "s", "value": 3.0}
    assert rows[5] == {
        "t_s": 0.5,
        "source": "GPU-1",
        "metric": "power_w",
        "unit": "W",
        "value": 312.5,
    }


def test_parquet_of_nothing_has_its_columns() -> None:
    table = pq.read_table(io.BytesIO(SeriesSet().to_parquet()))
    assert table.column_names == ["t_s", "source", "metric", "unit", "value"]
    assert table.num_rows == 0


def test_snapshot_stands_still() -> None:
    series = sample()
    copy = series.snapshot()
    series.add("host", "busy_s", 9 * 10**9, 9.0, counter=True)
    series.add("GPU-1", "temperature_c", 9 * 10**9, 60.0)
    found = copy.get("host", "busy_s")
    assert found is not None
    assert len(found) == 5
    assert copy.get("GPU-1", "temperature_c") is None
