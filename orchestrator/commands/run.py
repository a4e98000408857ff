"""The main job: plan, skip what is done, run the rest, record, report.

::

    overrides -> plan.build -> store.attempts -> compute_todo ----nothing left----> table
                                                      |
                                     run_sweep (Ray) -+-> Recording (MLflow) -> table, JSON
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands.parser import EXIT_INTERRUPTED, emit_json
from orchestrator.errors import ConfigError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.plan import ClusterConfig, Plan, Settings
    from orchestrator.record import AttemptSummary, Recording, RecordingSummary, Store
    from orchestrator.record.cells import FoundCell
    from orchestrator.schedule import SweepResult, Todo

# Outcomes after which a sweep has what it was asked for; anything else makes the exit code 1.
GOOD = {"ok"}
# Above this a report and a table are made on request only (`report SWEEP`): reading all attempts
# takes a while, and nobody reads thousands of lines.
MOST_REPORTED = 2_000
# A store that is away gets its results later; the report can be made again then.
REPORT_PATIENCE_S = 30.0


def run_command(argv: Sequence[str]) -> int:
    """``[run] OVERRIDES``: 0 all ok, 1 some attempt failed, 130 interrupted."""
    from orchestrator.plan import hydra_flags

    code = hydra_flags(argv)
    if code is not None:
        return code
    from orchestrator.plan.preflight import preflight

    plan, as_json = _plan(argv)
    checked = preflight(plan)
    for line in checked.warnings:
        click.echo(line, err=True)
    return execute(checked.plan, as_json=as_json)


def plan_command(argv: Sequence[str]) -> int:
    """``plan OVERRIDES [--json]``: what would run; touches nothing."""
    from orchestrator.plan import TrialState, hydra_flags, plan_json
    from orchestrator.plan.preflight import preflight
    from orchestrator.record import open_store

    code = hydra_flags(argv)
    if code is not None:
        return code
    plan, as_json = _plan(argv)
    checked = preflight(plan, times=True)
    plan = checked.plan
    todo = _todo(plan, open_store(plan.settings.tracking))
    states = {
        s.trial.hash: TrialState(
            s.state,
            s.reason or (checked.doubts.get(s.trial.hash) if s.state == "new" else None),
            checked.predicted.get(s.trial.hash),
        )
        for s in todo.states
    }
    for line in checked.warnings:
        click.echo(line, err=True)
    if as_json:
        emit_json(plan_json(plan, states))
        return 0
    from orchestrator.report.show.plan_view import plan_view

    _stdout().print(plan_view(plan, states))
    return 0


def reproduce_command(prefix: str, argv: Sequence[str], as_json: bool) -> int:
    """``reproduce HASH``: a new attempt of exactly that configuration, then a comparison.

    Raises
    ------
    UsageError
        Nobody knows the hash, or it begins several.
    ConfigError
        The stored configuration does not hash to what was asked for.
    """
    from orchestrator.plan import plan_of, settings_of
    from orchestrator.record import open_store
    from orchestrator.report.analyse.compare import compare
    from orchestrator.report.show.compare_view import comparison_view
    from orchestrator.schedule.evaluate import cell_of

    settings = dataclasses.replace(settings_of(argv), force=True)
    store = open_store(settings.tracking)
    if (cell := cell_of(store, prefix)) is not None:
        return _reproduce_cell(cell, store, settings, as_json)
    wanted = store.resolve(prefix)
    before = _reports(store, store.attempts([wanted]))
    runs = [s for s in store.attempts([wanted])[wanted] if s.outcome]
    if not runs:
        raise UsageError(f"no finished attempt of {prefix} is recorded", where=store.where)
    identity = _verified(store.identity(runs[-1].run_id), wanted, runs[-1].run_id)
    code = execute(plan_of(identity, settings), as_json=as_json, table=False)
    known = {report.attempt_id for reports in before.values() for report in reports}
    after = {
        config: [report for report in reports if report.attempt_id not in known]
        for config, reports in _reports(store, store.attempts([wanted])).items()
    }
    if code == 0 and before.get(wanted) and not as_json:
        _stdout().print(comparison_view(compare(before, after)))
    return code


def _verified(stored: Mapping[str, Any], wanted: str, run_id: str) -> dict[str, Any]:
    """The configuration that was recorded, once it is certain that it is the one asked for."""
    from orchestrator.plan import config_hash, rebuild

    identity = rebuild(stored)
    if (found := config_hash(identity)) != wanted:
        raise ConfigError(
            f"the stored configuration hashes to {found[:12]}, not to {wanted[:12]}: it was changed"
            " after it was recorded, or this version reads it differently",
            where=f"run {run_id}",
            fix="Nothing was run",
        )
    return identity


def _reproduce_cell(cell: FoundCell, store: Store, settings: Settings, as_json: bool) -> int:
    """Compute a cell of a pure sweep again, record it, and say what is not as it was."""
    from orchestrator.plan import plan_of
    from orchestrator.schedule.evaluate import cell_of, differences

    wanted = cell.report.config_hash
    identity = _verified(cell.config, wanted, cell.run_id)
    code = execute(plan_of(identity, settings), as_json=as_json)
    again = cell_of(store, wanted)
    if again is not None and not as_json:
        click.echo(differences(cell.report, again.report))
    return code


def execute(plan: Plan, *, as_json: bool = False, table: bool = True) -> int:
    """Run what is missing of a plan, record it, print the table; returns the exit code."""
    from orchestrator.record import open_store
    from orchestrator.schedule.evaluate import run_pure, split

    store = open_store(plan.settings.tracking)
    if plan.duplicates:
        again = "combination is" if plan.duplicates == 1 else "combinations are"
        click.echo(f"{plan.duplicates} {again} the same trial as another: left out", err=True)
    pure, rest = split(plan)
    if pure is not None:
        code = run_pure(pure, store, command=command_line(), as_json=as_json, table=table)
        if rest is None:
            return code
        plan = rest
    todo = _todo(plan, store)
    cached = sum(state.state == "cached" for state in todo.states)
    if not todo.attempts:
        # Some of it may only be in the spool of a driver that died.
        _tidy(store, functools.partial(click.echo, err=True), runs=False)
        click.echo(_nothing_to_do(plan, todo), err=True)
        return _report(plan, store, None, cached=cached, wall_s=0.0, as_json=as_json, table=table)
    store.check_writable()
    started_s = time.monotonic()
    measured = _measure(plan, todo, store, cached)
    wall_s = time.monotonic() - started_s
    cached += measured.result.adopted
    code = _report(
        plan, store, measured, cached=cached, wall_s=wall_s, as_json=as_json, table=table
    )
    if measured.result.interrupted:
        click.echo("interrupted: the same command goes on where this one stopped", err=True)
        return EXIT_INTERRUPTED
    return code


def _plan(argv: Sequence[str]) -> tuple[Plan, bool]:
    from orchestrator.plan import build, parse_run_args

    arguments = parse_run_args(argv)
    plan = build(
        arguments.overrides,
        config_dirs=arguments.config_dirs,
        config_name=arguments.config_name,
        device_kind=_device_kind,
    )
    return plan, arguments.json


def _device_kind(cluster: ClusterConfig) -> str:
    if cluster.kind == "local":
        from orchestrator.telemetry import device_kind_here

        return device_kind_here()
    from orchestrator.schedule import cluster_device_kind

    return cluster_device_kind(cluster)


def _todo(plan: Plan, store: Store) -> Todo:
    from orchestrator.record import cells
    from orchestrator.schedule import compute_todo
    from orchestrator.schedule.evaluate import split

    settings = plan.settings
    pure, _ = split(plan)
    computed = cells.recorded(store, pure.trials) if pure is not None else {}
    # Computed again, a cell is the same: once counts as often as is asked for.
    existing = {config: [cell] * settings.repeats for config, cell in computed.items()}
    return compute_todo(
        plan.trials,
        {**store.attempts(trial.hash for trial in plan.trials), **existing},
        repeats=settings.repeats,
        retry_failed=settings.retry.failed,
        force=settings.force,
        invalid_retries=settings.verdict.retries,
    )


def _nothing_to_do(plan: Plan, todo: Todo) -> str:
    counts: dict[str, int] = {}
    for state in todo.states:
        counts[state.state] = counts.get(state.state, 0) + 1
    said = ", ".join(f"{count} {state}" for state, count in counts.items())
    hint = "; retry.failed=true runs the failed ones again" if counts.get("failed") else ""
    return f"{plan.sweep}: nothing left to do ({said}){hint}"


def _reports(
    store: Store,
    attempts: Mapping[str, Sequence[AttemptSummary]],
    loaded: dict[str, AttemptReport] | None = None,
) -> dict[str, list[AttemptReport]]:
    """Whole reports of every finished attempt, by config hash.

    ``loaded`` holds those that were read before, by run id, and then these too: a tracking server
    takes a tenth of a second for one.
    """
    loaded = {} if loaded is None else loaded
    ended = {c: [a.run_id for a in found if a.outcome] for c, found in attempts.items()}
    missing = [run_id for runs in ended.values() for run_id in runs if run_id not in loaded]
    loaded |= store.load_all(missing)
    return {config: [loaded[run_id] for run_id in runs] for config, runs in ended.items()}


def _stdout() -> Any:
    from rich.console import Console

    return Console(highlight=False)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What one run of a sweep did: how its attempts went, and what was recorded of them.

    ``loaded`` are reports that were read from the store for the sweep's own run, by run id.
    """

    result: SweepResult
    summary: RecordingSummary
    loaded: dict[str, AttemptReport]


def _measure(plan: Plan, todo: Todo, store: Store, cached: int) -> _Measured:
    """Everything between a plan with something to do and its results in the store."""
    from rich.console import Console

    from orchestrator.commands.interrupt import Published, stop_on_signals
    from orchestrator.record import Recording
    from orchestrator.record.drivers import DriverFile, drivers_directory
    from orchestrator.report import LiveView, labels_of
    from orchestrator.schedule import emergency_stop, run_sweep, start_async

    # Ray takes seconds to start; the store and its driver are made ready meanwhile.
    needs_ray = any(attempt.trial.infeasible is None for attempt in todo.attempts)
    starting = start_async(plan.settings.cluster) if needs_ray else None
    labels = labels_of(plan)
    view = LiveView(
        Console(stderr=True, highlight=False),
        total=len(todo.attempts) + cached,
        cached=cached,
        sweep=plan.sweep,
        labels=labels,
        history_s=_history_s(plan, store),
    )
    with contextlib.ExitStack() as stack:
        if starting is not None:
            stack.callback(starting.close)
        stop = stack.enter_context(stop_on_signals(emergency_stop, view.message))
        stack.enter_context(view)
        _tidy(store, view.message)
        recording = Recording(
            store,
            plan,
            todo=len(todo.attempts),
            command=command_line(),
            message=view.message,
            labels=labels,
        )
        file = DriverFile(
            drivers_directory(store.spool_root),
            recording.driver_id,
            plan.sweep,
            len(todo.attempts),
            cached,
        )
        published = Published(view, file, labels, stop)
        status, reason = "FAILED", None
        try:
            result = run_sweep(
                plan,
                todo.attempts,
                recording=recording,
                view=published,
                seed=int(plan.trials[0].identity["seed"]),
                stop=stop,
                cluster=starting,
                # What is to be measured whatever exists is not left to others.
                claims=None if plan.settings.force else recording.claims,
            )
            if result.adopted:
                many = "attempt was" if result.adopted == 1 else "attempts were"
                view.message(f"{result.adopted} {many} made by another driver meanwhile")
            if recording.claims.met_others:
                _tidy(store, view.message)  # it may have died since
            status = "KILLED" if result.interrupted else "FINISHED"
            loaded = _attach_report(plan, store, recording)
        except BaseException as error:
            reason = str(error)
            raise
        finally:
            published.close()
            summary = recording.close(status, reason)
        return _Measured(result, summary, loaded)


def _attach_report(plan: Plan, store: Store, recording: Recording) -> dict[str, AttemptReport]:
    """Give the sweep's own run its summary and its report, as far as the store has the attempts.

    Returns the reports that it read for that, by run id.
    """
    from orchestrator.record import Redactor
    from orchestrator.record.replay import telemetry_of
    from orchestrator.record.views import results_view, varying_params
    from orchestrator.report import build_table
    from orchestrator.report.analyse.rows import better_when
    from orchestrator.report.show.answer import sentences
    from orchestrator.report.show.bundle import report_files
    from orchestrator.report.show.export import to_page_markdown

    if len(plan.trials) > MOST_REPORTED or not recording.flush(REPORT_PATIENCE_S):
        return {}
    loaded: dict[str, AttemptReport] = {}
    summaries = store.attempts(trial.hash for trial in plan.trials)
    reports = _reports(store, summaries, loaded)
    table = build_table(plan, reports)
    # The attempts are redacted since they were recorded; what a person typed is not.
    redactor = Redactor.of_environment()
    files = report_files(
        dataclasses.replace(plan, description=redactor.text(plan.description)),
        reports,
        command=shlex.join(redactor.command(command_line())),
        telemetry=telemetry_of(store, (a for found in summaries.values() for a in found)),
    )
    first = next(iter(table.metrics), "")
    units = [row.cells[first].unit for row in table.rows if first in row.cells]
    view = results_view(
        table.metrics,
        varying_params(trial.identity for trial in plan.trials),
        at_ms=round(time.time() * 1000),
        ascending=better_when(first, next(filter(None, units), "")) != "higher",
    )
    recording.attach(to_page_markdown(table, summary=sentences(table)), files, experiment_tags=view)
    return loaded


def _history_s(plan: Plan, store: Store) -> list[float]:
    """How long recorded attempts of these trials took: a first estimate of the time left."""
    recorded = store.attempts(trial.hash for trial in plan.trials)
    ended = [s for found in recorded.values() for s in found if s.outcome == "ok" and s.ended_at]
    return [s.ended_at - s.started_at for s in ended if s.ended_at and s.started_at]


def command_line() -> list[str]:
    """What a person types to do this again."""
    return ["python", "-m", "orchestrator", *sys.argv[1:]]


def _tidy(store: Store, say: Callable[[str], None], *, runs: bool = True) -> None:
    """Record what dead drivers spooled and end their ``runs``, so that this run sees them.

    Where nothing is spooled MLflow is only needed for the runs.
    """
    from orchestrator.record import reap, sync

    try:
        written = sync(store, message=say).written
        if written:
            say(f"{written} attempts of an earlier run were still in the spool: recorded now")
        if runs:
            reap(store)
    except StoreUnavailable as error:
        say(f"{error} (results will wait in the spool)")


def _report(
    plan: Plan,
    store: Store,
    measured: _Measured | None,
    *,
    cached: int,
    wall_s: float,
    as_json: bool,
    table: bool,
) -> int:
    """Print what a sweep found, cached trials too; 0 if every trial has a measurement."""
    from orchestrator.report import final_table, run_json

    attempts = store.attempts(trial.hash for trial in plan.trials)
    ended = measured.result.attempts if measured else ()
    good = {
        config
        for config, found in attempts.items()
        if any(attempt.outcome == "ok" for attempt in found)
    }
    failed = any(e.outcome not in GOOD for e in ended if not e.retried)
    if measured is None or measured.result.adopted:
        failed = any(trial.hash not in good for trial in plan.trials)
    if as_json:
        runs = store.sweep_runs(plan.sweep) if measured is None else []
        summary = measured.summary if measured else None
        emit_json(
            run_json(
                ended,
                sweep=plan.sweep,
                run_id=(summary.run_id or "") if summary else (runs[0].run_id if runs else ""),
                run_ids=summary.run_ids if summary else {},
                cached=cached,
                wall_s=wall_s,
            )
        )
    elif table and len(plan.trials) > MOST_REPORTED:
        many = f"{len(plan.trials):,} trials are too many for a table"
        click.echo(f"{many}: python -m orchestrator report {plan.sweep}", err=True)
    elif table:
        loaded = measured.loaded if measured else {}
        _stdout().print(final_table(plan, _reports(store, attempts, loaded)))
    return 1 if failed else 0
