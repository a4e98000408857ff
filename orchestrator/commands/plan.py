"""``plan OVERRIDES``: what would run; touches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.run import executors, planned
from orchestrator.environments.build import key_of, told
from orchestrator.errors import no_effect
from orchestrator.plan.hydra_cli import hydra_flags
from orchestrator.plan.lm_eval import harness_of
from orchestrator.plan.plan import Plan, plan_json
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
    if arguments.strict:
        raise no_effect("--strict", "plan, which runs nothing")
    if plan.settings.search.kind != "none":
        from orchestrator.commands.searching import searches_of

        searches_of(plan)  # What cannot be searched for is refused here as it is by `run`.
    checked = preflight(plan, devices, times=True)
    plan = checked.plan
    store = open_store(plan.settings.tracking)
    states = {
        config_hash: replace(
            found,
            reason=found.reason
            or (checked.doubts.get(config_hash) if found.state == "new" else None),
            predicted=checked.predicted.get(config_hash),
        )
        for executor in executors(plan, store)
        for config_hash, found in executor.todo().states.items()
    }
    for line in (*checked.warnings, *_environments(plan)):
        say(line)
    if arguments.json:
        emit_json(plan_json(plan, states))
        return 0

    emit(plan_view(plan, states))
    return 0


def _environments(plan: Plan) -> list[str]:
    """A line for each environment that trials of the plan run in, or are evaluated in."""
    asked = {
        key_of(environment): environment
        for trial in plan.trials
        for environment in (trial.identity["environment"], harness_of(trial.identity))
        if environment and "packages" in environment
    }
    return [told(environment) for environment in asked.values()]
