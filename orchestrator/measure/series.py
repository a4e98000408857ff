"""What was read over time: an array of times and one of values for each quantity of each source."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.measure.metric import unit_of

PARQUET_ARTIFACT = "telemetry.parquet"
#: What a server under load exports of itself.
SERVER_ARTIFACT = "server.parquet"

# In the Parquet file's own metadata: what no row can say.
ORIGIN_KEY = b"origin_ns"
COUNTERS_KEY = b"counters"


@dataclass
class Series:
    """One quantity of one source over time.

    Attributes
    ----------
    source : str
        ``host``, ``process``, ``server`` or a GPU's UUID.
    metric, unit : str
        Name (ends in its unit where it has one) and unit, SI base units.
    counter : bool
        Cumulative (only its differences mean something) rather than a reading.
    t_ns : array of int64, shape (n,)
        CLOCK_MONOTONIC.
    values : array of float64, shape (n,)
    """

    source: str
    metric: str
    unit: str
    counter: bool = False
    t_ns: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, t_ns: int, value: float) -> None:
        """Append one reading; times must not go backwards."""
        self.t_ns.append(t_ns)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.values)

    def between(self, begin_ns: int, end_ns: int) -> array[float]:
        """Values read inside ``[begin_ns, end_ns]``."""
        return self.values[bisect_left(self.t_ns, begin_ns) : bisect_right(self.t_ns, end_ns)]


class SeriesSet:
    """Every series of one attempt, by source and metric."""

    def __init__(self, origin_ns: int = 0) -> None:
        self.origin_ns = origin_ns
        self._series: dict[tuple[str, str], Series] = {}

    def add(
        self, source: str, metric: str, t_ns: int, value: float, *, counter: bool = False
    ) -> None:
        """Append one reading to the series of that source and metric."""
        series = self._series.get((source, metric))
        if series is None:
            series = Series(source, metric, unit_of(metric), counter)
            self._series[source, metric] = series
        series.t_ns.append(t_ns)
        series.values.append(value)

    def get(self, source: str, metric: str) -> Series | None:
        """The series, or None where nothing was read."""
        return self._series.get((source, metric))

    def __iter__(self) -> Iterator[Series]:
        return iter(self._series.values())

    def __len__(self) -> int:
        return len(self._series)

    def merge(self, other: SeriesSet) -> None:
        """Take over the series of ``other`` (sources are disjoint between samplers)."""
        self._series.update(other._series)

    def snapshot(self) -> SeriesSet:
        """A copy that a sampler which still runs cannot change."""
        copy = SeriesSet(self.origin_ns)
        for key, series in list(self._series.items()):
            n = min(len(series.t_ns), len(series.values))
            arrays = (series.t_ns[:n], series.values[:n])
            copy._series[key] = Series(
                series.source, series.metric, series.unit, series.counter, *arrays
            )
        return copy

    def to_parquet(self) -> bytes:
        """Parquet, one row a reading: ``t_s``, ``source``, ``metric``, ``unit``, ``value``.

        ``t_s`` counts from ``origin_ns``, which the file's metadata tells, as it does which series
        are counters: :func:`~orchestrator.telemetry.recorded_series.read_histories` reads both.
        """
        # Here, not above: pyarrow takes a third of a second to import, in a process that has
        # nothing else to do once its first attempt is over.
        import pyarrow as pa
        import pyarrow.parquet as pq

        series = list(self)
        t_s, values = array("d"), array("d")
        for one in series:
            t_s.extend((t - self.origin_ns) / 1e9 for t in one.t_ns)
            values.extend(one.values)

        def repeated(words: list[str]) -> Any:
            known = list(dict.fromkeys(words))
            place = {word: i for i, word in enumerate(known)}
            indices = array("i")
            for one, word in zip(series, words, strict=True):
                indices.extend([place[word]] * len(one))
            rows = pa.Array.from_buffers(pa.int32(), len(indices), [None, pa.py_buffer(indices)])
            return pa.DictionaryArray.from_arrays(rows, pa.array(known, pa.string()))

        def floats(numbers: array[float]) -> Any:
            return pa.Array.from_buffers(pa.float64(), len(numbers), [None, pa.py_buffer(numbers)])

        columns = {
            "t_s": floats(t_s),
            "source": repeated([one.source for one in series]),
            "metric": repeated([one.metric for one in series]),
            "unit": repeated([one.unit for one in series]),
            "value": floats(values),
        }
        sink = pa.BufferOutputStream()
        counters = [(one.source, one.metric) for one in series if one.counter]
        metadata = {
            ORIGIN_KEY: str(self.origin_ns).encode(),
            COUNTERS_KEY: json.dumps(counters).encode(),
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())
