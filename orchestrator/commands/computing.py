"""The executor of sweeps that only compute: one run in the store, with one table of all cells.

Cells that are recorded already are taken from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.commands.exit_code import exit_code
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.record import cells
from orchestrator.record.runrecord import CELLS_TAG
from orchestrator.schedule.evaluate import compute
from orchestrator.schedule.todo import Todo, compute_todo

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.plan.plan import Plan
    from orchestrator.record import Store


@dataclass(frozen=True)
class Computed:
    """Every cell of a plan, with the run that holds it.

    Attributes
    ----------
    results : mapping of config hash to Result
    run_ids : mapping of config hash to str
    cached : int
        Cells that were computed earlier.
    """

    results: Mapping[str, cells.Result]
    run_ids: Mapping[str, str]
    cached: int
    interrupted: bool = False


class Computing:
    """Evaluates a plan's trials in this process.

    Parameters
    ----------
    plan : Plan
        Trials whose tasks only compute.
    store : Store
        Where cells are found and recorded.
    command : sequence of str
        What was typed, for the record.
    """

    def __init__(self, plan: Plan, store: Store, command: Sequence[str]) -> None:
        self.plan = plan
        self._store = store
        self._command = list(command)
        force = plan.settings.force
        self._known = {} if force else cells.recorded(store, plan.trials)

    def todo(self) -> Todo:
        """Cells that are not recorded; one that is counts as often as is asked for."""
        repeats = self.plan.settings.repeats
        known = {config: [cell] * repeats for config, cell in self._known.items()}
        return compute_todo(
            self.plan.trials, known, repeats=repeats, force=self.plan.settings.force
        )

    def execute(self, todo: Todo) -> Computed:
        """Compute what is missing and record all of it as one run."""
        from orchestrator.record import Recording

        missing = [trial for trial in self.plan.trials if trial.hash not in self._known]
        # Before the cells: MLflow takes seconds to wake, in a thread of its own.
        recording = Recording(self._store, self.plan, todo=0, command=self._command, message=say)
        with recording:
            results = self._recorded() | {trial.hash: compute(trial) for trial in missing}
            found = cells.table(self.plan.trials, self.plan.axes, results)
            tags = {CELLS_TAG: str(found.num_rows)}
            recording.attach(_summary(results, len(self._known)), cells.files(found), tags)
        run_id = recording.close().run_id or ""
        run_ids = {config: cell.run.run_id for config, cell in self._known.items()}
        run_ids |= {trial.hash: run_id for trial in missing}
        return Computed(results, run_ids, len(self._known))

    def nothing_to_do(self, todo: Todo) -> Computed:
        """All cells are recorded: say so."""
        say(f"{self.plan.sweep}: nothing left to do ({len(self._known):,} cached)")
        run_ids = {config: cell.run.run_id for config, cell in self._known.items()}
        return Computed(self._recorded(), run_ids, len(self._known))

    def report(
        self, computed: Computed, *, wall_s: float, as_json: bool, table: bool, strict: bool
    ) -> int:
        """Print the cells; returns the exit code."""
        found = cells.table(self.plan.trials, self.plan.axes, computed.results)
        if as_json:
            emit_json(_json(self.plan, found, computed, wall_s))
        elif table:
            from orchestrator.report.show.cells_view import cells_view

            emit(cells_view(self.plan, found))
            counted = _counted(computed.results, computed.cached)
            say(f"{counted} in {wall_s:.1f} s; all of them: {cells.CSV} of its run")
        return exit_code((r.outcome for r in computed.results.values()), strict=strict)

    def _recorded(self) -> dict[str, cells.Result]:
        return {config: cell.result for config, cell in self._known.items()}


def _summary(results: Mapping[str, cells.Result], cached: int) -> str:
    counted = _counted(results, cached)
    return f"{counted}: `{cells.PARQUET}` and `{cells.CSV}` among the artifacts hold them all."


def _counted(results: Mapping[str, cells.Result], cached: int) -> str:
    outcomes = Counter(result.outcome for result in results.values())
    each = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
    taken = f", {cached:,} of them earlier" if cached else ""
    return f"{len(results):,} cells computed ({each}){taken}"


def _json(plan: Plan, found: pyarrow.Table, computed: Computed, wall_s: float) -> dict[str, Any]:
    rows, run_ids = cells.readable(found).to_pylist(), computed.run_ids
    return {
        "sweep": plan.sweep,
        # Where the newest of the cells are.
        "run_id": run_ids[plan.trials[-1].hash],
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "cached": computed.cached,
        "wall_s": wall_s,
        "trials": [
            {
                "hash": row["hash"],
                "outcome": row["outcome"],
                "run_id": computed.run_ids[row["hash"]],
            }
            for row in rows
        ],
        "cells": rows,
    }
