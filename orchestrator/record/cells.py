"""Cells of pure sweeps: one table of them a run, each found again by its hash.

::

    trials --compute--> results --table--> cells.parquet of the sweep's run
                           ^                    |
                           `----- recorded -----'   where nothing they depend on has changed since

A cell depends on its configuration and on its content, as :mod:`orchestrator.conditions` has it:
the program's formulas, and what they read beside the configuration (a device's figures). One that
was recorded with other content is computed again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome, Verdict
from orchestrator.conditions import Conditions, same
from orchestrator.errors import StoreError
from orchestrator.measure.metric import Absent, Metric, MetricSpec, Value
from orchestrator.measure.registry import find_task
from orchestrator.measure.task import Evaluation, Task
from orchestrator.measure.vocabulary import spec_for
from orchestrator.record.store import only

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.attempt import AxisValue, Trial
    from orchestrator.record import Store, SweepRun

PARQUET, CSV = "cells.parquet", "cells.csv"
# What a program needs of a cell and a person does not: left out of the CSV.
_CONTENT, _ABSENT, _CONFIG = "content", "absent", "config"
_HIDDEN = (_CONTENT, _ABSENT, _CONFIG)
_KEPT = ("ok", "infeasible")


@dataclass(frozen=True)
class Result:
    """What one cell came to.

    Attributes
    ----------
    outcome : str
        ``ok``, ``infeasible``, or that of the error it ended with.
    reason : str or None
        One line, where it is not ``ok``.
    content : str
        Identifier of what it was computed from beside its configuration.
    """

    outcome: str
    reason: str | None
    found: Evaluation
    content: str = ""


@dataclass(frozen=True)
class RecordedCell:
    """A cell in the store, and the run that holds it."""

    run: SweepRun
    result: Result


@dataclass(frozen=True)
class FoundCell:
    """A recorded cell with its configuration, as a report of the computation it was."""

    config: Mapping[str, Any]
    report: AttemptReport
    run_id: str


def content_id(trial: Trial) -> str:
    """Identifier of what the cell of ``trial`` depends on beside its configuration."""
    content = _task(trial).content
    return Conditions(content=content(trial.identity) if content else {}).ids["content"]


def table(
    trials: Sequence[Trial], axes: Iterable[str], results: Mapping[str, Result]
) -> pyarrow.Table:
    """All cells, a row a trial in their order.

    Returns
    -------
    pyarrow.Table
        ``hash``, an axis a column, ``outcome``, ``reason``, each metric (null where absent; what it
        is in the column's metadata), each fact; then what finds and checks a cell again:
        ``content``, ``absent`` (JSON: metric to reason) and ``config`` (JSON).
    """
    import pyarrow as pa

    specs = {spec.name: spec for trial in trials[:1] for spec in _task(trial).metrics}
    ended = [results[trial.hash] for trial in trials]
    units = {
        name: metric.unit
        for result in ended
        for name, metric in result.found.metrics.items()
        if isinstance(metric, (Value, Absent))
    }
    facts = dict.fromkeys(name for result in ended for name in result.found.facts)
    columns: dict[str, Any] = {"hash": pa.array([trial.hash for trial in trials], pa.string())}
    for axis in axes:
        columns[axis] = axis_column([trial.axes.get(axis) for trial in trials])
    columns["outcome"] = pa.array([result.outcome for result in ended], pa.string())
    columns["reason"] = pa.array([result.reason for result in ended], pa.string())
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    for name, unit in units.items():
        found = [result.found.metrics.get(name) for result in ended]
        values = [metric.value if isinstance(metric, Value) else None for metric in found]
        columns[name] = pa.array(values, pa.float64())
        spec = json.dumps(asdict(spec_for(name, unit, specs)))
        fields.append(pa.field(name, pa.float64(), metadata={"unit": unit, "spec": spec}))
    texts_of: dict[str, Sequence[str | None]] = {
        **{name: [result.found.facts.get(name) for result in ended] for name in facts},
        _CONTENT: [result.content for result in ended],
        _ABSENT: [_absences(result) for result in ended],
        _CONFIG: [json.dumps(trial.identity, sort_keys=True) for trial in trials],
    }
    for name, column_of in texts_of.items():
        columns[name] = pa.array(column_of, pa.string())
        kind = {"kind": "fact"} if name in facts else {}
        fields.append(pa.field(name, pa.string(), metadata=kind))
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


def _absences(result: Result) -> str | None:
    metrics = result.found.metrics.items()
    reasons = {name: metric.reason for name, metric in metrics if isinstance(metric, Absent)}
    return json.dumps(reasons) if reasons else None


def files(found: pyarrow.Table) -> dict[str, bytes]:
    """The table as artifacts: everything as Parquet, what a person reads as CSV."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    columnar, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    parquet.write_table(found, columnar, compression="zstd")
    csv.write_csv(readable(found), text)
    return {PARQUET: columnar.getvalue().to_pybytes(), CSV: text.getvalue().to_pybytes()}


def readable(found: pyarrow.Table) -> pyarrow.Table:
    """The table without what only a program needs."""
    return found.drop_columns(list(_HIDDEN))


def recorded(store: Store, trials: Sequence[Trial]) -> dict[str, RecordedCell]:
    """The newest recorded cell of each trial that is still what it would be computed to.

    Reads the tables of pure sweeps, newest first, until every trial is found.
    """
    contents = {trial.hash: {_CONTENT: content_id(trial)} for trial in trials}
    known: dict[str, RecordedCell] = {}
    for run in _runs(store):
        missing = contents.keys() - known.keys()
        if not missing:
            break
        held = _read(store, run, ["hash"])
        if held is None or missing.isdisjoint(held.column("hash").to_pylist()):
            continue
        whole = _read(store, run)
        assert whole is not None
        for row in whole.drop_columns([_CONFIG]).to_pylist():
            wanted = row["hash"] in missing and row["outcome"] in _KEPT
            if wanted and same({_CONTENT: row.get(_CONTENT, "")}, contents[row["hash"]]):
                result = _result(row, whole.schema)
                known[row["hash"]] = RecordedCell(run, result)
    return known


def find(store: Store, prefix: str) -> dict[str, list[FoundCell]]:
    """Every recorded cell whose hash begins with ``prefix``, by hash, oldest first."""
    import pyarrow.compute as pc

    found: dict[str, list[FoundCell]] = {}
    for run in reversed(_runs(store)):
        whole = _read(store, run)
        if whole is None:
            continue
        rows = whole.filter(pc.starts_with(whole.column("hash"), prefix.strip().lower()))
        for row in rows.to_pylist():
            result = _result(row, whole.schema)
            report = AttemptReport(
                attempt_id=f"{run.run_id}/{row['hash']}",
                config_hash=row["hash"],
                outcome=Outcome(result.outcome),
                reason=result.reason,
                sweep=run.sweep,
                started_at=run.started_at,
                ended_at=run.ended_at or run.started_at,
                metrics=dict(result.found.metrics),
                specs=_specs(whole.schema),
                facts={**result.found.facts, "computed": True},
                verdict=Verdict("unverified"),
            )
            cells = found.setdefault(row["hash"], [])
            cells.append(FoundCell(json.loads(row[_CONFIG]), report, run.run_id))
    return found


def cell_of(store: Store, prefix: str) -> FoundCell | None:
    """The newest recorded cell whose hash begins with ``prefix``; None where no cell has it.

    Raises
    ------
    UsageError
        ``prefix`` is too short for a hash, or begins several.
    """
    if store.find(prefix):  # which also says what is no hash
        return None
    found = find(store, prefix)
    return found[only(prefix, sorted(found))][-1] if found else None


def _task(trial: Trial) -> Task:
    return find_task(trial.identity["task"]["name"])


def _runs(store: Store) -> list[SweepRun]:
    """Finished runs of pure sweeps, newest first."""
    return [run for run in store.sweep_runs() if run.has_cells and run.status == "FINISHED"]


def _read(store: Store, run: SweepRun, columns: list[str] | None = None) -> pyarrow.Table | None:
    """A run's table; None where it is gone or another version wrote it."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        content = store.file(run.run_id, PARQUET)
        found = parquet.read_table(io.BytesIO(content), columns=columns)
    except (FileNotFoundError, StoreError, pa.ArrowException):
        return None
    return found if columns or set(_HIDDEN) <= set(found.column_names) else None


def _result(row: Mapping[str, Any], schema: pyarrow.Schema) -> Result:
    reasons = json.loads(row[_ABSENT]) if row[_ABSENT] else {}
    metrics: dict[str, Metric] = {}
    facts: dict[str, str] = {}
    for field in schema:
        told = field.metadata or {}
        value = row.get(field.name)
        if b"unit" in told:
            unit = told[b"unit"].decode()
            if value is not None:
                metrics[field.name] = Value(field.name, unit, value)
            elif field.name in reasons:
                metrics[field.name] = Absent(field.name, unit, reasons[field.name])
        elif told.get(b"kind") == b"fact" and value is not None:
            facts[field.name] = value
    infeasible = row["reason"] if row["outcome"] == "infeasible" else None
    return Result(
        row["outcome"], row["reason"], Evaluation(metrics, facts, infeasible), row.get(_CONTENT, "")
    )


def _specs(schema: pyarrow.Schema) -> dict[str, MetricSpec]:
    told = (field.metadata[b"spec"] for field in schema if b"spec" in (field.metadata or {}))
    return {spec.name: spec for spec in (MetricSpec(**json.loads(text)) for text in told)}


def axis_column(values: Sequence[AxisValue]) -> pyarrow.Array:
    """Values of an axis, typed where all have one type, else as text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values])
