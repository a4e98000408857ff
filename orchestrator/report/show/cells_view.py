"""Draws the table of a sweep that only computes, or a slice of it, and how two cells differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Column
from rich.text import Text

from orchestrator.measure.metric import Value
from orchestrator.measure.registry import find_task
from orchestrator.measure.vocabulary import spec_for
from orchestrator.report.analyse.labels import axis_names, axis_value
from orchestrator.report.show.parts import grid, words
from orchestrator.report.show.units import scale_of

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.attempt import AttemptReport
    from orchestrator.plan.plan import Plan

# A table that a person reads; of a larger one a slice is shown.
MOST_SHOWN = 60


def cells_view(plan: Plan, found: pyarrow.Table) -> RenderableType:
    """The table for a terminal; of more than :data:`MOST_SHOWN` rows those of one slice.

    The slice keeps the last axes at their first value, as many as it takes.
    """
    rows, kept = _slice(plan, found)
    fixed = {axis: rows[0][axis] for axis in plan.axes if axis not in kept} if rows else {}
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in found.schema}
    task = find_task(plan.trials[0].identity["task"]["name"])
    wanted = [name for name in task.headline if name in units]
    specs = {spec.name: spec for spec in task.metrics}
    names = axis_names(list(kept))
    scales = {name: scale_of([row[name] for row in rows], units[name]) for name in wanted}
    titles = {name: spec_for(name, units[name], specs).title for name in wanted}
    drawn = grid(
        *(words(names[axis]) for axis in kept),
        *(Column(f"{titles[n]}\n{scales[n].symbol}", justify="right") for n in wanted),
        heading_style="bold",
    )
    for row in rows:
        style = "" if row["outcome"] == "ok" else "dim"
        values = [axis_value(row[axis]) for axis in kept]
        figures = (scales[name].number(row[name]) for name in wanted)
        drawn.add_row(*values, *figures, style=style)
    parts: list[RenderableType] = [drawn]
    if fixed:
        said = ", ".join(f"{axis}={axis_value(value)}" for axis, value in fixed.items())
        parts.append(Text(f"{len(rows)} of {found.num_rows} cells: {said}", style="italic"))
    return Group(*parts)


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


def _slice(plan: Plan, found: pyarrow.Table) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows to show, and the axes that vary among them."""
    rows: list[dict[str, Any]] = found.to_pylist()
    kept = [axis for axis, values in plan.axes.items() if len(values) > 1] or list(plan.axes)
    while len(rows) > MOST_SHOWN and kept:
        axis = kept.pop()
        first = rows[0][axis]
        rows = [row for row in rows if row[axis] == first]
    return rows[:MOST_SHOWN], kept
