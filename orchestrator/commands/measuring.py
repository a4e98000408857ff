"""The executor of sweeps that measure: attempts on the cluster, each recorded as it ends.

::

    start Ray ----------.
    recover the spool ---+-> run_sweep -> Recording -> ceilings -> the sweep's own run, its report
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome
from orchestrator.commands.exit_code import OK, exit_code
from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.reuse import reuse_of
from orchestrator.commands.run_json import endings, run_json
from orchestrator.errors import StoreError, StoreUnavailable
from orchestrator.schedule.hub_commits import with_commits
from orchestrator.schedule.todo import Reuse, Todo, compute_todo
from orchestrator.telemetry.verdict import check_rules

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport, PlannedAttempt, Slot, Trial
    from orchestrator.conditions import Conditions
    from orchestrator.plan.plan import Plan
    from orchestrator.record import AttemptSummary, Recording, RecordingSummary, Store
    from orchestrator.schedule.cluster.ray.cluster import PendingCluster
    from orchestrator.schedule.driver import SweepResult

# Above this a report and a table are made on request only (`report SWEEP`): reading all attempts
# takes a while, and nobody reads thousands of lines.
MOST_REPORTED = 2_000
# A store that is away gets its results later; the report can be made again then.
REPORT_PATIENCE_S = 30.0


Reports = dict[str, "list[AttemptReport]"]


class Measuring:
    """Runs a plan's attempts on its cluster.

    Parameters
    ----------
    plan : Plan
        Trials whose tasks measure.
    store : Store
        Where attempts are found and recorded.
    command : sequence of str
        What was typed, for the record.
    search_id : str, optional
        It is a step of this search: the cluster stays for the next one, and what is recorded gets
        no report of its own.
    """

    def __init__(
        self, plan: Plan, store: Store, command: Sequence[str], *, search_id: str | None = None
    ) -> None:
        check_rules(plan.settings.verdict.rules)
        self.plan = plan
        self._search_id = search_id
        self._probing = search_id is not None
        self._store = store
        self._command = list(command)
        self._cached = self._stale = 0  # trials measured before, under these conditions or others
        # How the attempts went and what was recorded of them; None where nothing was left to do.
        self._reuse: Reuse | None = None
        self._result: SweepResult | None = None
        self._summary: RecordingSummary | None = None
        self._loaded: dict[str, AttemptReport] = {}  # read from the store already, by run id

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped it."""
        return self._result is not None and self._result.interrupted

    def todo(self) -> Todo:
        """States of all trials, and the attempts that are missing."""
        trials = with_commits(self.plan.trials, say)
        self.plan = dataclasses.replace(self.plan, trials=trials)
        known = self._store.attempts(trial.hash for trial in trials)
        self._reuse = reuse_of(self._store, self.plan, known)
        return compute_todo(trials, known, self.plan.settings, reuse=self._reuse)

    def nothing_to_do(self, todo: Todo) -> None:
        """Say so; some of it may only be in the spool of a driver that died."""
        self._recover(say, runs=False)
        counts = Counter(state.state for state in todo.states.values())
        counted = ", ".join(f"{count} {state}" for state, count in counts.items())
        hint = "; retry.failed=true runs the failed ones again" if counts["failed"] else ""
        say(f"{self.plan.sweep}: nothing left to do ({counted}){hint}")
        self._cached = counts["cached"]
        if not self._probing:
            self.record_plan()

    def record_plan(self) -> None:
        """A run without attempts, where the sweep's newest run planned something else.

        ``report`` shows the plan of the newest run, and a person means the one typed last; of a
        search all its levels, where each step had its own.
        """
        from orchestrator.record import Recording
        from orchestrator.record.build import is_plan
        from orchestrator.report import labels_of

        plan, store = self.plan, self._store
        try:
            newest = next(iter(store.sweep_runs(plan.sweep)), None)
            if newest is not None and is_plan(store.plan(newest.run_id), plan):
                return
            labels = labels_of(plan)
            with Recording(
                store, plan, todo=0, command=self._command, message=say, labels=labels
            ) as recording:
                if reports := self._recorded(recording):
                    self._attach_report(recording, reports)
                self._summary = recording.close()
        except StoreError as error:
            say(f"{error} (`report {plan.sweep}` shows an earlier run)")

    def execute(self, todo: Todo) -> None:
        """Make the missing attempts; everything they leave is in the store or its spool."""
        from rich.console import Console

        from orchestrator.commands.interrupt import Published, stop_on_signals
        from orchestrator.record import Recording
        from orchestrator.record.drivers import DriverFile, drivers_directory
        from orchestrator.report import LiveView, labels_of
        from orchestrator.schedule.cluster.ray.cluster import (
            PendingCluster,
            emergency_stop,
            joined,
        )
        from orchestrator.schedule.driver import run_sweep

        plan, store = self.plan, self._store
        store.check_writable()
        cached, self._stale = (
            sum(state.state == kind for state in todo.states.values())
            for kind in ("cached", "stale")
        )
        # Ray takes seconds to start; the store and its driver are made ready meanwhile.
        needs_ray = any(attempt.trial.infeasible is None for attempt in todo.attempts)
        settings = plan.settings.cluster
        begin = PendingCluster if settings.kind == "local" and not self._probing else joined
        starting = begin(settings) if needs_ray else None
        labels = labels_of(plan)
        view = LiveView(
            Console(stderr=True, highlight=False),
            total=len(todo.attempts) + cached,
            cached=cached,
            sweep=plan.sweep,
            labels=labels,
            history_s=self._history_s(),
        )
        with contextlib.ExitStack() as stack:
            if starting is not None and not self._probing:
                stack.callback(starting.close)
            stop = stack.enter_context(stop_on_signals(emergency_stop, view.message))
            stack.enter_context(view)
            self._recover(view.message)
            recording = stack.enter_context(
                Recording(
                    store,
                    plan,
                    todo=len(todo.attempts),
                    command=self._command,
                    message=view.message,
                    labels=labels,
                    search_id=self._search_id,
                )
            )
            file = DriverFile(
                drivers_directory(store.spool_root),
                recording.driver_id,
                plan.sweep,
                len(todo.attempts),
                cached,
            )
            with contextlib.closing(Published(view, file, labels, stop)) as published:
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
                    reuse=self._reuse,
                )
                if result.adopted:
                    many = "attempt was" if result.adopted == 1 else "attempts were"
                    view.message(f"{result.adopted} {many} made by another driver meanwhile")
                if recording.claims.met_others:
                    self._recover(view.message)  # it may have died since
                try:
                    reports = {} if self._probing else self._recorded(recording)
                    if reports and starting is not None and not result.interrupted:
                        self._measure_ceilings(reports, starting, stop, view.message)
                    if reports:
                        self._attach_report(recording, reports)
                except StoreError as error:
                    # The sweep has not failed: what it measured is kept, and can be reported later.
                    view.message(f"{error} (its run has no report: see `report {plan.sweep}`)")
            self._summary = recording.close("KILLED" if result.interrupted else "FINISHED")
        self._cached, self._result = cached + result.adopted, result

    def report(self, *, wall_s: float, as_json: bool, table: bool, strict: bool) -> int:
        """Print what the sweep found, cached trials too; returns the exit code."""
        from orchestrator.report import final_table

        plan, store = self.plan, self._store
        attempts = store.attempts(trial.hash for trial in plan.trials)
        summary, result = self._summary, self._result
        ended = endings(result.attempts if result else (), summary.run_ids if summary else {})
        if as_json:
            runs = store.sweep_runs(plan.sweep) if result is None else []
            emit_json(
                run_json(
                    ended,
                    sweep=plan.sweep,
                    run_id=(summary.run_id or "") if summary else (runs[0].run_id if runs else ""),
                    cached=self._cached,
                    stale=self._stale,
                    wall_s=wall_s,
                )
            )
        elif table and len(plan.trials) > MOST_REPORTED:
            report = plan.settings.tracking.command(f"report {plan.sweep}")
            say(f"{len(plan.trials):,} trials are too many for a table: {report}")
        elif table:
            reports = self._predicted(self._reports(attempts))
            emit(final_table(plan, reports, noise=noise_of(store, reports)))
        ran = {config for config, _, _ in ended}
        before = [attempts.get(t.hash, []) for t in plan.trials if t.hash not in ran]
        results = [*(outcome for _, outcome, _ in ended), *map(_recorded_result, before)]
        if result is not None and result.unmade:
            results.append(None)
        return exit_code(results, strict=strict)

    def found(self) -> Reports:
        """Reports of every trial of the plan, last those that the table would show."""
        return self._reports(self._store.attempts(trial.hash for trial in self.plan.trials))

    def _recorded(self, recording: Recording) -> Reports:
        """Reports that a table is made of; none where they are too many, or the store is away."""
        many = len(self.plan.trials) > MOST_REPORTED
        return {} if many or not recording.flush(REPORT_PATIENCE_S) else self.found()

    def _reports(self, attempts: Mapping[str, Sequence[AttemptSummary]]) -> Reports:
        """Their reports, last those of the conditions that this run could meet: they are shown."""
        found = self._store.reports(attempts, self._loaded)
        if self._reuse is None or not self._reuse.exact:
            return found
        return {h: shown_last(reports, self._reuse.classes(h)) for h, reports in found.items()}

    def _predicted(self, reports: Reports) -> Reports:
        """The same with predictions beside what was measured."""
        from orchestrator.plan.predictions import with_predictions

        identities = {trial.hash: trial.identity for trial in self.plan.trials}
        return {
            config: [with_predictions(report, identities[config]) for report in found]
            for config, found in reports.items()
        }

    def _measure_ceilings(
        self,
        reports: Reports,
        cluster: PendingCluster,
        stop: threading.Event,
        message: Callable[[str], None],
    ) -> None:
        """What predictions of these attempts need, in an experiment of its own."""
        from orchestrator.record import Recording
        from orchestrator.schedule.ceilings import measure_missing
        from orchestrator.schedule.driver import run_sweep

        def run(plan: Plan) -> AttemptReport | None:
            trial, view = plan.trials[0], _Unseen()
            known = self._store.attempts([trial.hash])
            settings = dataclasses.replace(plan.settings, force=True)
            todo = compute_todo(plan.trials, known, settings)
            with Recording(
                self._store, plan, todo=1, command=self._command, message=message
            ) as recording:
                result = run_sweep(
                    plan,
                    todo.attempts,
                    recording=recording,
                    view=view,
                    seed=0,
                    stop=stop,
                    cluster=cluster,
                )
                recording.close("KILLED" if result.interrupted else "FINISHED")
            return view.report

        identities = {trial.hash: trial.identity for trial in self.plan.trials}
        attempts = [(identities[h], report) for h, found in reports.items() for report in found]
        measure_missing(attempts, self.plan.settings, run=run, say=message)

    def _attach_report(self, recording: Recording, reports: Reports) -> None:
        """Give the sweep's own run its summary and report."""
        from orchestrator.record import Findings, Redactor
        from orchestrator.record.replay import telemetry_of
        from orchestrator.record.views import results_view, varying_params
        from orchestrator.report import build_table
        from orchestrator.report.show.answer import sentences
        from orchestrator.report.show.bundle import report_files
        from orchestrator.report.show.export import to_page_markdown

        plan, store = self.plan, self._store
        summaries = store.attempts(trial.hash for trial in plan.trials)
        reports = self._predicted(reports)
        noise = noise_of(store, reports)
        table = build_table(plan, reports, noise=noise)
        # The attempts are redacted since they were recorded; what a person typed is not.
        redactor = Redactor.of_environment()
        files = report_files(
            dataclasses.replace(plan, description=redactor.text(plan.description)),
            reports,
            command=shlex.join(redactor.command(self._command)),
            telemetry=telemetry_of(store, (a for found in summaries.values() for a in found)),
            noise=noise,
        )
        first = next(iter(table.specs.values()), None)
        view = results_view(
            table.metrics,
            varying_params(trial.identity for trial in plan.trials),
            at_ms=round(time.time() * 1000),
            ascending=first is None or first.better != "higher",
        )
        summary = to_page_markdown(table, summary=sentences(table))
        recording.attach(Findings(summary, files, experiment_tags=view))

    def _history_s(self) -> list[float]:
        """How long recorded attempts of these trials took: a first estimate of the time left."""
        recorded = self._store.attempts(trial.hash for trial in self.plan.trials)
        return [
            a.ended_at - a.started_at
            for found in recorded.values()
            for a in found
            if a.outcome == "ok" and a.ended_at and a.started_at
        ]

    def _recover(self, message: Callable[[str], None], *, runs: bool = True) -> None:
        """Record what dead drivers spooled and end their ``runs``, so that this run sees them.

        Where nothing is spooled MLflow is only needed for the runs.
        """
        from orchestrator.record import reap, sync

        try:
            written = sync(self._store, message=message).written
            if written:
                message(f"{written} attempts of an earlier run were in the spool: recorded now")
            if runs:
                reap(self._store)
        except StoreUnavailable as error:
            message(f"{error} (results will wait in the spool)")


def shown_last(
    reports: Sequence[AttemptReport], by_kind: Sequence[Sequence[Conditions]]
) -> list[AttemptReport]:
    """``reports`` with those of this run's class last: the table shows these.

    Of several kinds of node that is the wanted one, the first of ``by_kind``; or one where it was
    measured, if it only failed on the wanted one.
    """
    rank = {one.id: -at for at, kind in enumerate(by_kind) for one in kind}
    of = [(report.conditions.id if report.conditions else "", report) for report in reports]
    measured = {name for name, report in of if report.outcome is Outcome.OK}
    of.sort(key=lambda pair: (pair[0] in rank, pair[0] in measured, rank.get(pair[0], 0)))
    return [report for _, report in of]


def _recorded_result(attempts: Sequence[AttemptSummary]) -> str | None:
    """``ok`` if one of a trial's attempts is, else how the last one ended."""
    outcomes = [attempt.outcome for attempt in attempts if attempt.outcome]
    return OK if OK in outcomes else next(reversed(outcomes), None)


class _Unseen:
    """A view of one attempt that is no part of the sweep: keeps its report and shows nothing."""

    report: AttemptReport | None = None

    def submitted(self, attempt: PlannedAttempt) -> None: ...

    def withdrawn(self, attempt: PlannedAttempt, *, made: bool) -> None: ...

    def started(self, attempt: PlannedAttempt, slot: Slot) -> None: ...

    def phase(self, attempt: PlannedAttempt, name: str) -> None: ...

    def finished(self, report: AttemptReport, trial: Trial) -> None:
        self.report = report

    def message(self, text: str) -> None: ...
