"""Recorded attempts as one tidy Arrow table, for pandas, polars and whatever else reads Arrow.

::

    results("quant")                  a row: attempt, metric     its median with the interval
    results("quant", samples=True)    a row: attempt, metric, sample

    sweep trial attempt | an axis a column | metric median ci_low ... unit | outcome verdict ...

The numbers are those MLflow holds, which are those of ``show HASH --json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AxisValue
from orchestrator.conditions import GROUPS, joint_id
from orchestrator.errors import StoreError, UsageError
from orchestrator.measure.metric import Samples
from orchestrator.record import AttemptSummary, Store, open_store
from orchestrator.record.cells import axis_column
from orchestrator.record.metric_units import Units
from orchestrator.record.points import STATISTICS, by_statistic
from orchestrator.record.selection import attempts_of

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

Axes = Mapping[str, Mapping[str, AxisValue]]


@dataclass(frozen=True)
class Results:
    """Recorded attempts, a row an attempt and metric, or a row a sample.

    Anything that reads Arrow's C stream takes it as it is: ``polars.DataFrame(results)``,
    ``duckdb.sql("SELECT … FROM results")``.

    Attributes
    ----------
    table : pyarrow.Table
        The columns of :func:`results`.
    """

    table: pyarrow.Table

    def to_pandas(self) -> pandas.DataFrame:
        """As a pandas data frame; raises ``UsageError`` where pandas is not installed."""
        _installed("pandas")
        return self.table.to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """As a polars data frame; raises ``UsageError`` where polars is not installed."""
        return _installed("polars").from_arrow(self.table)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)


def results(
    word: str, *, tracking: str | PathLike[str] | None = None, samples: bool = False
) -> Results:
    """What is recorded of ``word``, as data.

    Parameters
    ----------
    word : str
        A sweep's name: every attempt of every trial that a run of it planned, also those made for
        another sweep. Or what ``compare`` takes: ``quant@-1``, a run, a hash, ``hw:FINGERPRINT``.
    tracking : str or path, optional
        A directory (``tracking.root``) or a server's ``http://`` address (``tracking.uri``); by
        default where the command line looks.
    samples : bool
        Every sample of the task's metrics in place of their statistics.

    Returns
    -------
    Results
        ``sweep``, ``trial`` (config hash), ``attempt`` (its number), each axis (null where a run
        did not have it), ``metric``; then ``median`` (of a value that was measured once: itself),
        ``ci_low``, ``ci_high``, ``mean``, ``std``, ``mad``, ``min``, ``n`` (null for such a value),
        ``p95``, ``p99``; or with ``samples`` ``role`` (``measured``, ``warmup``), ``repetition``,
        ``index`` and ``value``; then ``unit``, ``outcome``, ``verdict``, ``reason``,
        ``conditions`` and its parts ``machine``, ``software``, ``content``, ``host``, ``started``
        (UTC) and ``run_id``. In SI base units; null is what could not be measured. An attempt
        without numbers has one row, with a null ``metric``.

    Raises
    ------
    UsageError
        Nothing finished is recorded by that name.
    StoreError
        The store cannot be read.
    """
    store = open_store(_place(tracking))
    found, axes = _attempts(store, word)
    if not found:
        raise UsageError(f"nothing finished is recorded for {word!r}", where=store.where)
    rows = _samples(store, found) if samples else _statistics(store, found)
    return Results(_table(found, axes, *rows))


def _place(tracking: str | PathLike[str] | None) -> object:
    """The configuration group ``tracking`` that is meant."""
    if tracking is None:
        from orchestrator.plan.expand import settings_of  # Hydra takes half a second to import

        return settings_of(()).tracking
    if str(tracking).startswith(("http://", "https://")):
        return {"kind": "server", "uri": str(tracking)}
    return {"kind": "embedded", "root": str(tracking)}


def _attempts(store: Store, word: str) -> tuple[list[AttemptSummary], Axes]:
    """Finished attempts that ``word`` means, oldest first, and where their trials lie on axes."""
    runs = store.sweep_runs(word)
    plans = [store.plan(run.run_id) for run in reversed(runs)]
    if runs and all(run.has_cells for run in runs):
        raise UsageError(
            f"{word} only computes: its table is cells.parquet of run {runs[0].run_id}",
            where=store.where,
        )
    if runs:
        known = {trial["hash"] for plan in plans for trial in plan["trials"]}
        found = [s for group in store.attempts(known).values() for s in group]
    else:
        found = list(attempts_of(store, word))
        for run_id in dict.fromkeys(s.parent_run_id for s in found if s.parent_run_id):
            with suppress(StoreError):  # a sweep's run may be gone while its attempts are there
                plans.append(store.plan(run_id))
    axes: dict[str, dict[str, AxisValue]] = {}
    for plan in plans:
        for trial in plan["trials"]:
            axes.setdefault(trial["hash"], {}).update(trial["axes"])
    found = sorted((s for s in found if s.outcome), key=lambda s: (s.started_at, s.number))
    return found, axes


def _statistics(
    store: Store, found: Sequence[AttemptSummary]
) -> tuple[list[int], dict[str, pyarrow.ChunkedArray]]:
    """Statistics of every metric: which attempt each row is of, and the columns."""
    import pyarrow as pa

    kinds = {
        "metric": pa.string(),
        **{name: pa.int64() if name == "n" else pa.float64() for name in STATISTICS},
        "unit": pa.string(),
    }
    metrics = by_statistic(store.numbers([s.run_id for s in found]))
    having = {key: _rows_with(statistics) for key, statistics in metrics.items()}
    units = Units(store)
    rows: list[int] = []
    parts: list[dict[str, pyarrow.Array]] = []  # one a metric: what it has none of costs nothing
    for key, at in having.items():
        columns = {name: pa.array(v, pa.float64()) for name, v in metrics[key].items()}
        if len(at) < len(found):
            columns = {name: column.take(pa.array(at)) for name, column in columns.items()}
        told = units.of(key, [found[row].run_id for row in at])
        columns |= {
            "metric": pa.array([name for name, _ in told], pa.string()),
            "unit": pa.array([unit for _, unit in told], pa.string()),
        }
        rows += at
        parts.append(columns)
    measured = set(rows)
    rows += (bare := [at for at in range(len(found)) if at not in measured])
    parts.append({"metric": pa.nulls(len(bare))})
    return rows, {
        name: pa.chunked_array(
            [p[name].cast(kind) if name in p else pa.nulls(len(p["metric"]), kind) for p in parts]
        )
        for name, kind in kinds.items()
    }


def _rows_with(statistics: Mapping[str, Sequence[float | None]]) -> Sequence[int]:
    """Which attempts have any statistic of a metric."""
    medians = statistics.get("median", [None])
    if None not in medians:
        return range(len(medians))
    rows = enumerate(zip(*statistics.values(), strict=True))
    return [at for at, numbers in rows if any(number is not None for number in numbers)]


def _samples(
    store: Store, found: Sequence[AttemptSummary]
) -> tuple[list[int], dict[str, pyarrow.Array]]:
    """Every sample: which attempt each row is of, and the columns."""
    import pyarrow as pa

    reports = store.load_all(found)
    rows: list[int] = []
    told: list[tuple[str | None, str | None, int | None, int | None, float | None, str | None]] = []
    for at, summary in enumerate(found):
        before = len(told)
        report = reports.get(summary.run_id)
        for metric in report.metrics.values() if report else ():
            if isinstance(metric, Samples):
                lengths = metric.lengths or (1,) * len(metric.values)
                inside = [number for number, length in enumerate(lengths) for _ in range(length)]
                for role, values, repetitions in (
                    ("warmup", metric.warmup, [None] * len(metric.warmup)),
                    ("measured", metric.values, inside),
                ):
                    for index, (value, number) in enumerate(zip(values, repetitions, strict=True)):
                        told.append((metric.name, role, number, index, value, metric.unit))
        if len(told) == before:
            told.append((None,) * 6)
        rows += [at] * (len(told) - before)
    kinds = {
        "metric": pa.string(),
        "role": pa.string(),
        "repetition": pa.int64(),
        "index": pa.int64(),
        "value": pa.float64(),
        "unit": pa.string(),
    }
    columns = zip(kinds.items(), zip(*told, strict=True), strict=True)
    return rows, {name: pa.array(values, kind) for (name, kind), values in columns}


def _table(
    found: Sequence[AttemptSummary],
    axes: Axes,
    rows: Sequence[int],
    columns: Mapping[str, pyarrow.Array | pyarrow.ChunkedArray],
) -> pyarrow.Table:
    """What is known of an attempt, repeated for each of its rows, around ``columns``."""
    import pyarrow as pa

    def text(values: Iterable[str | None]) -> pyarrow.Array:
        return pa.array(list(values), pa.string())

    first = {
        "sweep": text(s.sweep for s in found),
        "trial": text(s.config_hash for s in found),
        "attempt": pa.array([s.number for s in found], pa.int64()),
    }
    for axis in dict.fromkeys(axis for s in found for axis in axes.get(s.config_hash, ())):
        first[axis] = axis_column([axes.get(s.config_hash, {}).get(axis) for s in found])
    last = {
        "outcome": text(s.outcome for s in found),
        "verdict": text(s.verdict for s in found),
        "reason": text(s.reason for s in found),
        "conditions": text(joint_id(s.conditions) if s.conditions else None for s in found),
        **{group: text(s.conditions.get(group) for s in found) for group in GROUPS},
        "host": text(s.host for s in found),
        "started": pa.array([round(s.started_at * 1000) for s in found], pa.timestamp("ms", "UTC")),
        "run_id": text(s.run_id for s in found),
    }
    at = pa.array(rows, pa.int64())
    return pa.table(
        {
            **{name: column.take(at) for name, column in first.items()},
            **columns,
            **{name: column.take(at) for name, column in last.items()},
        }
    )


def _installed(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError as error:
        raise UsageError(f"{library} is not installed", fix=f"pip install {library}") from error
