"""What was sampled, in the compact form it travels in: two arrays a quantity.

The supervisor writes the compact form (no heavy import on an attempt's path); the recorder turns it
into Parquet and a decimated history off that path.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SERIES_ARTIFACT = "telemetry.series"

_MAGIC = b"OTS1"


@dataclass
class Series:
    """One quantity of one source over time.

    Attributes
    ----------
    source : str
        ``host``, ``process`` or a GPU's UUID.
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
        self,
        source: str,
        metric: str,
        unit: str,
        t_ns: int,
        value: float,
        *,
        counter: bool = False,
    ) -> None:
        """Append one reading to the series of that source and metric."""
        series = self._series.get((source, metric))
        if series is None:
            series = self._series[source, metric] = Series(source, metric, unit, counter)
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

    def to_bytes(self) -> bytes:
        """Compact form: a JSON header and the raw arrays, little-endian, lightly compressed."""
        header: dict[str, Any] = {
            "origin_ns": self.origin_ns,
            "series": [[s.source, s.metric, s.unit, s.counter, len(s)] for s in self],
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        parts = [len(head).to_bytes(8, "little"), head]
        for series in self:
            parts += [_little(series.t_ns), _little(series.values)]
        return _MAGIC + zlib.compress(b"".join(parts), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> SeriesSet:
        """Inverse of :meth:`to_bytes`; raises ``ValueError`` on anything else."""
        if data[:4] != _MAGIC:
            raise ValueError("not a telemetry series file")
        try:
            body = zlib.decompress(data[4:])
            size = int.from_bytes(body[:8], "little")
            header = json.loads(body[8 : 8 + size])
            result, at = cls(header["origin_ns"]), 8 + size
            for source, metric, unit, counter, length in header["series"]:
                series = Series(source, metric, unit, counter)
                for target in (series.t_ns, series.values):
                    if at + 8 * length > len(body):
                        raise ValueError("telemetry series file is cut short")
                    target.frombytes(body[at : at + 8 * length])
                    if sys.byteorder == "big":
                        target.byteswap()
                    at += 8 * length
                result._series[source, metric] = series
        except (zlib.error, KeyError, TypeError) as error:
            raise ValueError(f"telemetry series file is damaged: {error}") from error
        return result

    def decimated(self, points: int = 1000) -> Iterator[tuple[Series, list[tuple[float, float]]]]:
        """Each series with at most ``points`` pairs (seconds since the start, value).

        Readings are averaged over equal runs of samples; of a counter the last of a run is kept.
        """
        for series in self:
            run = -(-len(series) // points)
            pairs = []
            for i in range(0, len(series), run or 1):
                values, last = series.values[i : i + run], min(i + run, len(series)) - 1
                value = values[-1] if series.counter else sum(values) / len(values)
                pairs.append(((series.t_ns[last] - self.origin_ns) / 1e9, value))
            yield series, pairs

    def to_parquet(self) -> bytes:
        """Parquet, one row a reading: ``t_s``, ``source``, ``metric``, ``unit``, ``value``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, list[Any]] = {k: [] for k in ("t_s", "source", "metric", "unit")}
        values: list[float] = []
        for series in self:
            columns["t_s"].extend((t - self.origin_ns) / 1e9 for t in series.t_ns)
            for key in ("source", "metric", "unit"):
                columns[key].extend([getattr(series, key)] * len(series))
            values.extend(series.values)
        table = pa.table(
            {
                "t_s": pa.array(columns["t_s"], pa.float64()),
                **{k: pa.array(columns[k], pa.string()) for k in ("source", "metric", "unit")},
                "value": pa.array(values, pa.float64()),
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())


def _little(values: array[Any]) -> bytes:
    if sys.byteorder == "little":
        return values.tobytes()
    swapped = array(values.typecode, values)
    swapped.byteswap()
    return swapped.tobytes()
