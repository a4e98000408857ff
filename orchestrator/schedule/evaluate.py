"""Tasks that only compute: each trial evaluated in this process, beside the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import TaskError
from orchestrator.measure.registry import find_task
from orchestrator.measure.task import Evaluation
from orchestrator.record.cells import Result, content_id

if TYPE_CHECKING:
    from orchestrator.attempt import Trial


def only_computes(trial: Trial) -> bool:
    """Whether the trial's task needs no cluster, no process and no model."""
    return find_task(trial.identity["task"]["name"]).is_pure


def compute(trial: Trial) -> Result:
    """Evaluate one trial of a pure task; what goes wrong is its outcome, never raised."""
    if trial.infeasible is not None:
        return Result("infeasible", trial.infeasible, Evaluation({}), content_id(trial))
    task = find_task(trial.identity["task"]["name"])
    assert task.evaluate is not None
    try:
        found = task.evaluate(trial.identity)
    except TaskError as error:
        return Result(error.outcome, str(error), Evaluation({}))
    except Exception as error:  # one cell that breaks must not take the others along
        return Result("error", f"{type(error).__name__}: {error}", Evaluation({}))
    outcome = "ok" if found.infeasible is None else "infeasible"
    return Result(outcome, found.infeasible, found, content_id(trial))
