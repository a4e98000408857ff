"""Sweeps that only compute: every cell evaluated in this process, one run with one table.

::

    plan --split--> measured trials   the main job
            `-----> pure trials --cells--> table --Recording--> one MLflow run with cells.parquet

A pure task costs less to compute than to look up, so its cells are never cached; each has its hash
all the same, and ``reproduce`` computes one again.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import TaskError
from orchestrator.measure.metric import Absent, Value
from orchestrator.measure.registry import find_task
from orchestrator.measure.task import Evaluation, Task

if TYPE_CHECKING:
    import pyarrow
    from rich.console import RenderableType

    from orchestrator.plan import Plan, Trial
    from orchestrator.record import Store

# A table that a person reads; of a larger one a slice is shown.
MOST_SHOWN = 60
PARQUET, CSV = "cells.parquet", "cells.csv"


def split(plan: Plan) -> tuple[Plan | None, Plan | None]:
    """The plan's pure trials and its measured ones, each as a plan; None where there are none."""
    pure = tuple(trial for trial in plan.trials if _task(trial).is_pure)
    if not pure:
        return None, plan
    if len(pure) == len(plan.trials):
        return plan, None
    measured = tuple(trial for trial in plan.trials if not _task(trial).is_pure)
    return dataclasses.replace(plan, trials=pure), dataclasses.replace(plan, trials=measured)


def cells(plan: Plan) -> pyarrow.Table:
    """Evaluate every trial of a pure plan.

    Returns
    -------
    pyarrow.Table
        A row a trial in plan order: ``hash``, an axis a column, ``outcome``, ``reason``, then each
        metric (null where absent; its unit in the column's metadata) and each fact.
    """
    import pyarrow as pa

    metrics: dict[str, list[float | None]] = {}
    units: dict[str, str] = {}
    facts: dict[str, list[str | None]] = {}
    outcomes: list[str] = []
    reasons: list[str | None] = []
    for row, trial in enumerate(plan.trials):
        outcome, reason, found = _cell(trial)
        outcomes.append(outcome)
        reasons.append(reason)
        for name, metric in found.metrics.items():
            if isinstance(metric, (Value, Absent)):
                units[name] = metric.unit
                column = metrics.setdefault(name, [])
                column.extend([None] * (row - len(column)))
                column.append(metric.value if isinstance(metric, Value) else None)
        for name, fact in found.facts.items():
            texts = facts.setdefault(name, [])
            texts.extend([None] * (row - len(texts)))
            texts.append(fact)
    count = len(plan.trials)
    columns: dict[str, Any] = {"hash": pa.array([trial.hash for trial in plan.trials])}
    for axis in plan.axes:
        columns[axis] = _axis(pa, [trial.axes.get(axis) for trial in plan.trials])
    columns["outcome"] = pa.array(outcomes)
    columns["reason"] = pa.array(reasons, pa.string())
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    for name, values in metrics.items():
        columns[name] = pa.array([*values, *[None] * (count - len(values))], pa.float64())
        fields.append(pa.field(name, pa.float64(), metadata={"unit": units[name]}))
    for name, texts in facts.items():
        columns[name] = pa.array([*texts, *[None] * (count - len(texts))], pa.string())
        fields.append(pa.field(name, pa.string()))
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


def run_pure(
    plan: Plan, store: Store, *, command: Sequence[str], as_json: bool, table: bool
) -> int:
    """Evaluate a pure plan, record it as one run, print it; 1 if a cell could not be computed."""
    from orchestrator.record import Recording

    began_s = time.monotonic()
    # Before the cells: MLflow takes seconds to wake, in a thread of its own.
    recording = Recording(
        store,
        plan,
        todo=0,
        command=list(command),
        message=lambda text: click.echo(text, err=True),
    )
    with recording:
        found = cells(plan)
        outcomes = dict(Counter(found.column("outcome").to_pylist()))
        recording.attach(_summary(outcomes), _files(found))
    summary = recording.close()
    wall_s = time.monotonic() - began_s
    if as_json:
        from orchestrator.cli import emit_json

        emit_json(_json(plan, found, summary.run_id or "", outcomes, wall_s))
    elif table:
        from rich.console import Console

        Console(highlight=False).print(cells_view(plan, found))
        click.echo(f"{_told(outcomes)} in {wall_s:.1f} s; all of them: {CSV} of its run", err=True)
    return 1 if outcomes.get("error") else 0


def cells_view(plan: Plan, found: pyarrow.Table) -> RenderableType:
    """The table for a terminal; of more than :data:`MOST_SHOWN` rows those of one slice.

    The slice keeps the last axes at their first value, as many as it takes.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from orchestrator.report.labels import axis_names, axis_value, metric_title
    from orchestrator.report.units import scale_of

    rows, kept = _slice(plan, found)
    fixed = {axis: rows[0][axis] for axis in plan.axes if axis not in kept} if rows else {}
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in found.schema}
    wanted = [name for name in _task(plan.trials[0]).headline if name in units]
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    names = axis_names(list(kept))
    for axis in kept:
        drawn.add_column(names[axis], no_wrap=True)
    scales = {name: scale_of([row[name] for row in rows], units[name]) for name in wanted}
    for name in wanted:
        drawn.add_column(f"{metric_title(name)}\n{scales[name].symbol}", justify="right")
    for row in rows:
        style = "" if row["outcome"] == "ok" else "dim"
        values = [axis_value(row[axis]) for axis in kept]
        numbers = (scales[name].number(row[name]) for name in wanted)
        drawn.add_row(*values, *numbers, style=style)
    parts: list[RenderableType] = [drawn]
    if fixed:
        said = ", ".join(f"{axis}={axis_value(value)}" for axis, value in fixed.items())
        parts.append(Text(f"{len(rows)} of {found.num_rows} cells: {said}", style="italic"))
    return Group(*parts)


def _task(trial: Trial) -> Task:
    return find_task(trial.identity["task"]["name"])


def _cell(trial: Trial) -> tuple[str, str | None, Evaluation]:
    if trial.infeasible is not None:
        return "infeasible", trial.infeasible, Evaluation({})
    evaluate = _task(trial).evaluate
    assert evaluate is not None
    try:
        found = evaluate(trial.identity)
    except TaskError as error:
        return error.outcome, str(error), Evaluation({})
    except Exception as error:  # one cell that breaks must not take the others along
        return "error", f"{type(error).__name__}: {error}", Evaluation({})
    if found.infeasible is not None:
        return "infeasible", found.infeasible, found
    return "ok", None, found


def _axis(pa: Any, values: list[Any]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) <= 1:
        return pa.array(values)
    return pa.array([None if value is None else str(value) for value in values])


def _files(found: pyarrow.Table) -> dict[str, bytes]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    columnar, text = pa.BufferOutputStream(), pa.BufferOutputStream()
    parquet.write_table(found, columnar, compression="zstd")
    csv.write_csv(found, text)
    return {PARQUET: columnar.getvalue().to_pybytes(), CSV: text.getvalue().to_pybytes()}


def _slice(plan: Plan, found: pyarrow.Table) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows to show, and the axes that vary among them."""
    rows: list[dict[str, Any]] = found.to_pylist()
    kept = [axis for axis, values in plan.axes.items() if len(values) > 1] or list(plan.axes)
    while len(rows) > MOST_SHOWN and kept:
        axis = kept.pop()
        first = rows[0][axis]
        rows = [row for row in rows if row[axis] == first]
    return rows[:MOST_SHOWN], kept


def _summary(outcomes: Mapping[str, int]) -> str:
    return f"{_told(outcomes)}: `{PARQUET}` and `{CSV}` among the artifacts hold them all."


def _told(outcomes: Mapping[str, int]) -> str:
    total = sum(outcomes.values())
    each = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    return f"{total:,} cells computed ({each})"


def _json(
    plan: Plan, found: pyarrow.Table, run_id: str, outcomes: Mapping[str, int], wall_s: float
) -> dict[str, Any]:
    rows = found.to_pylist()
    return {
        "sweep": plan.sweep,
        "run_id": run_id,
        "outcomes": dict(outcomes),
        "cached": 0,
        "wall_s": wall_s,
        "trials": [
            {"hash": row["hash"], "outcome": row["outcome"], "run_id": run_id} for row in rows
        ],
        "cells": rows,
    }
