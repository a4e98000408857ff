"""Reads stored telemetry back: counters as rates, series thinned so that their peaks stay."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.measure.series import COUNTERS_KEY, ORIGIN_KEY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class History:
    """One quantity of one source over time.

    Attributes
    ----------
    source, metric, unit : str
        As in :class:`~orchestrator.measure.series.Series`.
    t_s : array of float64, shape (n,)
        Seconds since sampling began, ascending.
    values : array of float64, shape (n,)
        Finite.
    counter : bool
        Cumulative: only its differences mean something.
    """

    source: str
    metric: str
    unit: str
    t_s: NDArray[np.float64]
    values: NDArray[np.float64]
    counter: bool = False

    def rate(self) -> History:
        """Increase per second between neighbouring readings, dated at the later one.

        A reading that comes twice at one time, or a counter that was set back, has no rate.
        """
        import numpy as np

        gaps, rises = np.diff(self.t_s), np.diff(self.values)
        good = (gaps > 0) & (rises >= 0)
        return History(
            self.source,
            f"{self.metric}_per_s",
            f"{self.unit}/s",
            self.t_s[1:][good],
            rises[good] / gaps[good],
        )

    def thinned(self, points: int) -> History:
        """At most ``points`` readings (2 or more): the lowest and highest of equal stretches.

        A series that never changes keeps its ends.
        """
        import numpy as np

        n = len(self.values)
        if n > 2 and np.ptp(self.values) == 0:
            return self._at([0, n - 1])
        if n <= points:
            return self
        kept: set[int] = set()
        for stretch in np.array_split(np.arange(n), points // 2):
            values = self.values[stretch]
            kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
        return self._at(sorted(kept))

    def _at(self, rows: list[int]) -> History:
        return History(
            self.source, self.metric, self.unit, self.t_s[rows], self.values[rows], self.counter
        )


@dataclass(frozen=True)
class Histories:
    """Every series of one attempt.

    Attributes
    ----------
    origin_ns : int or None
        CLOCK_MONOTONIC at which ``t_s`` is 0; None in files that do not say it.
    """

    origin_ns: int | None
    by_name: dict[tuple[str, str], History]

    def __iter__(self) -> Iterator[History]:
        return iter(self.by_name.values())

    def get(self, source: str, metric: str) -> History | None:
        """The series, or None where nothing was read."""
        return self.by_name.get((source, metric))

    @property
    def gpus(self) -> list[str]:
        """UUIDs of the GPUs and slices that were read."""
        return sorted({h.source for h in self} - {"host", "process"})


def read_histories(content: bytes) -> Histories:
    """What :meth:`~orchestrator.measure.series.SeriesSet.to_parquet` stored.

    Raises
    ------
    ValueError
        It is no Parquet file, or one without these columns.
    """
    import numpy as np
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
        columns = {name: table[name] for name in ("t_s", "source", "metric", "value")}
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"not a file of telemetry: {error}") from error
    metadata = table.schema.metadata or {}
    counters = {tuple(pair) for pair in json.loads(metadata.get(COUNTERS_KEY, b"[]"))}
    times = columns["t_s"].to_numpy().astype(float)
    values = columns["value"].to_numpy().astype(float)
    source_of, sources = _coded(columns["source"])
    metric_of, metrics = _coded(columns["metric"])
    unit_of, units = _coded(table["unit"]) if "unit" in table.column_names else (None, [""])
    pair_of = source_of.astype(np.int64) * max(len(metrics), 1) + metric_of
    found: dict[tuple[str, str], History] = {}
    _, firsts = np.unique(pair_of, return_index=True)
    for first in sorted(firsts):
        rows = np.flatnonzero((pair_of == pair_of[first]) & np.isfinite(values))
        rows = rows[np.argsort(times[rows], kind="stable")]
        name = sources[source_of[first]], metrics[metric_of[first]]
        unit = units[0 if unit_of is None else unit_of[first]]
        found[name] = History(*name, unit, times[rows], values[rows], name in counters)
    origin = metadata.get(ORIGIN_KEY)
    return Histories(int(origin) if origin is not None else None, found)


def _coded(column: Any) -> tuple[Any, list[str]]:
    """A column of words as indices into a list of them."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 0:
            return column.to_numpy().astype(int), []
        column = column.chunk(0)
    return column.indices.to_numpy(), column.dictionary.to_pylist()
