"""``plan OVERRIDES``: what would run; touches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.run import executors, planned
from orchestrator.plan.hydra_cli import hydra_flags
from orchestrator.plan.plan import TrialState, plan_json
from orchestrator.plan.preflight import preflight
from orchestrator.record import open_store
from orchestrator.report.show.plan_view import plan_view
from orchestrator.telemetry.device import devices


def plan_command(argv: Sequence[str]) -> int:
    """Every trial of the sweep with its state, what it needs and what is predicted of it."""
    code = hydra_flags(argv)
    if code is not None:
        return code
    plan, arguments = planned(argv)
    checked = preflight(plan, devices, times=True)
    plan = checked.plan
    store = open_store(plan.settings.tracking)
    states = {
        s.trial.hash: TrialState(
            s.state,
            s.reason or (checked.doubts.get(s.trial.hash) if s.state == "new" else None),
            checked.predicted.get(s.trial.hash),
        )
        for executor in executors(plan, store)
        for s in executor.todo().states
    }
    for line in checked.warnings:
        say(line)
    if arguments.json:
        emit_json(plan_json(plan, states))
        return 0

    emit(plan_view(plan, states))
    return 0
