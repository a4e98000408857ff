"""Sweeps that only compute: every cell evaluated in this process, one run with one table.

::

    plan --split--> measured trials   the main job
            `-----> pure trials --cells--> table --Recording--> one MLflow run with cells.parquet

Cells that are recorded already are taken from there; where all are, there is nothing left to do.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.errors import UsageError
from orchestrator.measure.metric import Value
from orchestrator.measure.registry import find_task
from orchestrator.measure.task import Task
from orchestrator.record import cells
from orchestrator.record.runrecord import CELLS_TAG

if TYPE_CHECKING:
    import pyarrow
    from rich.console import RenderableType

    from orchestrator.attempt import AttemptReport
    from orchestrator.plan import Plan, Trial
    from orchestrator.record import Store
    from orchestrator.record.cells import FoundCell

# A table that a person reads; of a larger one a slice is shown.
MOST_SHOWN = 60


def split(plan: Plan) -> tuple[Plan | None, Plan | None]:
    """The plan's pure trials and its measured ones, each as a plan; None where there are none."""
    pure = tuple(trial for trial in plan.trials if _task(trial).is_pure)
    if not pure:
        return None, plan
    if len(pure) == len(plan.trials):
        return plan, None
    measured = tuple(trial for trial in plan.trials if not _task(trial).is_pure)
    return dataclasses.replace(plan, trials=pure), dataclasses.replace(plan, trials=measured)


def run_pure(
    plan: Plan, store: Store, *, command: Sequence[str], as_json: bool, table: bool
) -> int:
    """Compute what is not recorded yet, record all of it as one run, print it.

    Returns
    -------
    int
        1 if a cell could not be computed.
    """
    from orchestrator.record import Recording

    began_s = time.monotonic()
    known = {} if plan.settings.force else cells.recorded(store, plan.trials)
    results = {config: cell.result for config, cell in known.items()}
    run_ids = {config: cell.run.run_id for config, cell in known.items()}
    missing = [trial for trial in plan.trials if trial.hash not in known]
    if missing:
        # Before the cells: MLflow takes seconds to wake, in a thread of its own.
        recording = Recording(
            store,
            plan,
            todo=0,
            command=list(command),
            message=lambda text: click.echo(text, err=True),
        )
        with recording:
            results |= {trial.hash: cells.compute(trial) for trial in missing}
            found = cells.table(plan.trials, plan.axes, results)
            tags = {CELLS_TAG: str(found.num_rows)}
            recording.attach(_summary(results, len(known)), cells.files(found), tags)
        run_id = recording.close().run_id or ""
        run_ids |= {trial.hash: run_id for trial in missing}
    else:
        found = cells.table(plan.trials, plan.axes, results)
        click.echo(f"{plan.sweep}: nothing left to do ({len(known):,} cached)", err=True)
    wall_s = time.monotonic() - began_s
    if as_json:
        from orchestrator.commands.parser import emit_json

        emit_json(_json(plan, found, run_ids, len(known), wall_s))
    elif table:
        from rich.console import Console

        Console(highlight=False).print(cells_view(plan, found))
        told = _told(results, len(known))
        click.echo(f"{told} in {wall_s:.1f} s; all of them: {cells.CSV} of its run", err=True)
    return 1 if any(result.outcome == "error" for result in results.values()) else 0


def cell_of(store: Store, prefix: str) -> FoundCell | None:
    """The newest recorded cell whose hash begins with ``prefix``; None where no cell has it.

    Raises
    ------
    UsageError
        ``prefix`` is too short for a hash, or begins several.
    """
    if store.find(prefix):  # which also says what is no hash
        return None
    found = cells.find(store, prefix)
    if len(found) > 1:
        names = ", ".join(config[: max(len(prefix) + 4, 16)] for config in sorted(found)[:10])
        raise UsageError(f"{prefix} begins {len(found)} hashes", fix=f"Say which: {names}")
    return next((several[-1] for several in found.values()), None)


def differences(before: AttemptReport, after: AttemptReport) -> str:
    """What a cell that was computed again says: the same, or which figures are not."""
    changed = [
        f"{name}: was {_figure(before, name)}, is {_figure(after, name)}"
        for name in {**before.metrics, **after.metrics}
        if _figure(before, name) != _figure(after, name)
    ]
    if before.outcome != after.outcome:
        changed.insert(0, f"outcome: was {before.outcome.value}, is {after.outcome.value}")
    return "\n".join(changed) or f"as recorded: all {len(before.metrics)} figures are the same"


def _figure(report: AttemptReport, name: str) -> float | None:
    metric = report.metrics.get(name)
    return metric.value if isinstance(metric, Value) else None


def cells_view(plan: Plan, found: pyarrow.Table) -> RenderableType:
    """The table for a terminal; of more than :data:`MOST_SHOWN` rows those of one slice.

    The slice keeps the last axes at their first value, as many as it takes.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from orchestrator.report.analyse.labels import axis_names, axis_value, metric_title
    from orchestrator.report.show.units import scale_of

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


def _slice(plan: Plan, found: pyarrow.Table) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows to show, and the axes that vary among them."""
    rows: list[dict[str, Any]] = found.to_pylist()
    kept = [axis for axis, values in plan.axes.items() if len(values) > 1] or list(plan.axes)
    while len(rows) > MOST_SHOWN and kept:
        axis = kept.pop()
        first = rows[0][axis]
        rows = [row for row in rows if row[axis] == first]
    return rows[:MOST_SHOWN], kept


def _summary(results: Mapping[str, cells.Result], cached: int) -> str:
    told = _told(results, cached)
    return f"{told}: `{cells.PARQUET}` and `{cells.CSV}` among the artifacts hold them all."


def _told(results: Mapping[str, cells.Result], cached: int) -> str:
    outcomes = Counter(result.outcome for result in results.values())
    each = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    taken = f", {cached:,} of them earlier" if cached else ""
    return f"{len(results):,} cells computed ({each}){taken}"


def _json(
    plan: Plan, found: pyarrow.Table, run_ids: Mapping[str, str], cached: int, wall_s: float
) -> dict[str, Any]:
    rows = cells.readable(found).to_pylist()
    return {
        "sweep": plan.sweep,
        # Where the newest of the cells are.
        "run_id": run_ids[plan.trials[-1].hash],
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "cached": cached,
        "wall_s": wall_s,
        "trials": [
            {"hash": row["hash"], "outcome": row["outcome"], "run_id": run_ids[row["hash"]]}
            for row in rows
        ],
        "cells": rows,
    }
