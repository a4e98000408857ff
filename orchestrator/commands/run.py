"""``[run] OVERRIDES``: plan, preflight, todo, execute, record, report.

::

    overrides -> plan -> preflight -> todo --nothing left--------------> report
                                       `-> execute -> record (as it runs) -^
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.commands.interrupt import interrupted
from orchestrator.commands.output import say
from orchestrator.errors import Interrupted, UsageError, no_effect

if TYPE_CHECKING:
    from orchestrator.commands.computing import Computing
    from orchestrator.commands.measuring import Measuring
    from orchestrator.plan.hydra_cli import RunArgs
    from orchestrator.plan.plan import Plan
    from orchestrator.plan.schema import ClusterConfig
    from orchestrator.record import Store

    #: Carries out trials of one kind: ``todo``, ``execute`` or ``nothing_to_do``, ``report``.
    Executor: TypeAlias = Computing | Measuring


def run_command(argv: Sequence[str]) -> int:
    """Run what is missing of a sweep; returns the code of :mod:`.exit_code`, or 130."""
    from orchestrator.plan.hydra_cli import hydra_flags
    from orchestrator.plan.preflight import preflight
    from orchestrator.telemetry.device import devices

    code = hydra_flags(argv)
    if code is not None:
        return code
    plan, arguments = planned(argv)
    checked = preflight(plan, devices)
    for line in checked.warnings:
        say(line)
    if plan.settings.search.kind != "none":
        if arguments.strict:
            raise no_effect("--strict", "a search, whose answer says how its trials ended")
        from orchestrator.commands.searching import search

        return search(checked.plan, command_line(), as_json=arguments.json)
    return carry_out(checked.plan, as_json=arguments.json, strict=arguments.strict)


def carry_out(
    plan: Plan, *, as_json: bool = False, table: bool = True, strict: bool = False
) -> int:
    """Execute what is missing of a plan, record it, report all of it; returns the exit code."""
    from orchestrator.record import open_store

    store = open_store(plan.settings.tracking)
    if plan.duplicates:
        again = "combination is" if plan.duplicates == 1 else "combinations are"
        say(f"{plan.duplicates} {again} the same trial as another: left out")
    worst = 0
    kinds = list(executors(plan, store))
    if as_json and len(kinds) > 1:
        raise UsageError(
            "what only computes and what measures are two runs, and it prints one",
            where="--json",
            fix="Run task=estimate by itself",
        )
    for executor in kinds:
        code = _carry_out(executor, as_json=as_json, table=table, strict=strict)
        worst = max(worst, code)
        if code == Interrupted.exit_code:
            break
    return worst


def _carry_out(executor: Executor, *, as_json: bool, table: bool, strict: bool) -> int:
    began_s = time.monotonic()
    todo = executor.todo()
    if todo.attempts:
        executor.execute(todo)
    else:
        executor.nothing_to_do(todo)
    wall_s = time.monotonic() - began_s if todo.attempts else 0.0
    code = executor.report(wall_s=wall_s, as_json=as_json, table=table, strict=strict)
    if executor.interrupted:
        return interrupted()
    return code


def executors(plan: Plan, store: Store) -> Iterator[Executor]:
    """What carries out the plan's trials: one executor, or two where a plan mixes both kinds."""
    from orchestrator.schedule.evaluate import only_computes

    computed = tuple(trial for trial in plan.trials if only_computes(trial))
    measured = tuple(trial for trial in plan.trials if not only_computes(trial))
    if computed:
        from orchestrator.commands.computing import Computing

        yield Computing(dataclasses.replace(plan, trials=computed), store, command_line())
    if measured:
        from orchestrator.commands.measuring import Measuring

        yield Measuring(dataclasses.replace(plan, trials=measured), store, command_line())


def planned(argv: Sequence[str]) -> tuple[Plan, RunArgs]:
    """The plan that a command line asks for, and its flags."""
    from orchestrator.plan.expand import build
    from orchestrator.plan.hydra_cli import parse_run_args

    arguments = parse_run_args(argv)
    plan = build(
        arguments.overrides,
        config_dirs=arguments.config_dirs,
        config_name=arguments.config_name,
        device_kind=_device_kind,
    )
    for line in plan.notes:
        say(line)
    return plan, arguments


def command_line() -> list[str]:
    """What a person types to do this again."""
    return ["python", "-m", "orchestrator", *sys.argv[1:]]


def _device_kind(cluster: ClusterConfig) -> str:
    if cluster.kind == "local":
        from orchestrator.telemetry.device import device_kind_here

        return device_kind_here()
    from orchestrator.schedule.cluster.ray.cluster import cluster_device_kind

    return cluster_device_kind(cluster)
