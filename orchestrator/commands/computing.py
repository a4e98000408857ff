"""The executor of sweeps that only compute: one run in the store, with one table of all cells.

Cells that are recorded already are taken from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import PlannedAttempt, Trial
from orchestrator.commands.exit_code import exit_code
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.run_json import run_json
from orchestrator.plan.plan import TrialState, unrun
from orchestrator.record import cells
from orchestrator.record.runrecord import CELLS_TAG
from orchestrator.schedule.evaluate import compute
from orchestrator.schedule.todo import FOUND_INFEASIBLE, Todo

if TYPE_CHECKING:
    import pyarrow

    from orchestrator.plan.plan import Plan
    from orchestrator.record import Store


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

    Attributes
    ----------
    interrupted : bool
        Whether the user stopped it; never, so far: it takes moments.
    """

    interrupted = False

    def __init__(self, plan: Plan, store: Store, command: Sequence[str]) -> None:
        self.plan = plan
        self._store = store
        self._command = list(command)
        self._known = {} if plan.settings.force else cells.recorded(store, plan.trials)
        self._results = {config: cell.result for config, cell in self._known.items()}
        self._run_ids = {config: cell.run.run_id for config, cell in self._known.items()}

    def todo(self) -> Todo:
        """Cells that are not recorded."""
        states = {trial.hash: self._state(trial) for trial in self.plan.trials}
        missing = [trial for trial in self.plan.trials if trial.hash not in self._known]
        return Todo(states, tuple(map(PlannedAttempt, missing)))

    def _state(self, trial: Trial) -> TrialState:
        if trial.infeasible is not None or trial.hash not in self._known:
            return unrun(trial)
        found = self._known[trial.hash].result
        return FOUND_INFEASIBLE if found.outcome == "infeasible" else TrialState("cached")

    def execute(self, todo: Todo) -> None:
        """Compute what is missing and record all of it as one run."""
        from orchestrator.record import Findings, Recording

        missing = [attempt.trial for attempt in todo.attempts]
        # Before the cells: MLflow takes seconds to wake, in a thread of its own.
        recording = Recording(self._store, self.plan, todo=0, command=self._command, message=say)
        with recording:
            self._results |= {trial.hash: compute(trial) for trial in missing}
            found = self._table()
            tags = {CELLS_TAG: str(found.num_rows)}
            among = f"`{cells.PARQUET}` and `{cells.CSV}` among the artifacts hold them all."
            summary = f"{self._counted()}: {among}"
            recording.attach(Findings(summary, cells.files(found), tags))
        run_id = recording.close().run_id or ""
        self._run_ids |= {trial.hash: run_id for trial in missing}

    def nothing_to_do(self, todo: Todo) -> None:
        """All cells are recorded: say so."""
        say(f"{self.plan.sweep}: nothing left to do ({len(self._known):,} cached)")

    def report(self, *, wall_s: float, as_json: bool, table: bool, strict: bool) -> int:
        """Print the cells; returns the exit code."""
        if as_json:
            emit_json(self._json(wall_s))
        elif table:
            from orchestrator.report.show.cells_view import cells_view

            emit(cells_view(self.plan, self._table()))
            say(f"{self._counted()} in {wall_s:.1f} s; all of them: {cells.CSV} of its run")
        return exit_code((r.outcome for r in self._results.values()), strict=strict)

    def _table(self) -> pyarrow.Table:
        return cells.table(self.plan.trials, self.plan.axes, self._results)

    def _counted(self) -> str:
        outcomes = Counter(result.outcome for result in self._results.values())
        each = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items())
        taken = f", {len(self._known):,} of them earlier" if self._known else ""
        return f"{len(self._results):,} cells computed ({each}){taken}"

    def _json(self, wall_s: float) -> dict[str, Any]:
        rows, run_ids = cells.readable(self._table()).to_pylist(), self._run_ids
        found = run_json(
            ((row["hash"], row["outcome"], run_ids[row["hash"]]) for row in rows),
            sweep=self.plan.sweep,
            # Where the newest of the cells are.
            run_id=run_ids[self.plan.trials[-1].hash],
            cached=len(self._known),
            wall_s=wall_s,
        )
        return {**found, "cells": rows}
