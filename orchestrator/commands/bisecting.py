"""``bisect HASH --good A --bad B``: which package moved a number between two environments.

::

    two ends -> what differs -> search asks for a mixture -> a round: good, bad and the mixture
                                     ^                              |
                                     '-- what the rounds decide <---'

Every round is a run of three ordinary trials, recorded like any. What is recorded is not measured
again: a repeat makes no attempt, and a killed bisection goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.attempt import AttemptReport, Outcome, Trial
from orchestrator.commands.ends import BISECTION, end_of
from orchestrator.commands.interrupt import interrupted
from orchestrator.commands.mixtures import Differences, between_ends, between_versions
from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.commands.reuse import reuse_of
from orchestrator.commands.run import command_line
from orchestrator.commands.selected import finished
from orchestrator.conditions import same
from orchestrator.engines.registry import is_remote
from orchestrator.environments.build import built
from orchestrator.errors import ConfigError, UsageError, nearest
from orchestrator.measure.grouping import grouped
from orchestrator.measure.registry import find_task
from orchestrator.plan.expand import plan_of, settings_of
from orchestrator.plan.identity import rebuild
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import SETTING_KEYS
from orchestrator.record import AttemptSummary, open_store
from orchestrator.report.analyse.labels import short_hash
from orchestrator.report.analyse.measured import samples_of, spec_of, valid
from orchestrator.report.show.bisect_view import BisectView, bisect_json
from orchestrator.search.coupled import Set
from orchestrator.search.culprit import Answer, Ask, bisect
from orchestrator.search.rounds import Round, Terms

if TYPE_CHECKING:
    from orchestrator.plan.schema import Settings
    from orchestrator.record import Store

EXIT_CODES = {"found": 0, "same": 1, "undecided": 2}

# A machine so disturbed that no round in so many counts is not measured on for ever.
_MOST_VAIN = 5
# How many rounds there are follows from what they find.
_UNREAD = {"force", "repeats", "retry", "slo"}
# Of the packages. What cannot be built is an error before it is measured.
_SAYS_NOTHING = {Outcome.LOST, Outcome.CANCELLED, Outcome.INVALID, Outcome.INFEASIBLE}


def bisect_command(
    prefix: str,
    good: str,
    bad: str,
    metric: str | None,
    versions: bool,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    as_json: bool,
) -> int:
    """Exit 0 found, 1 no difference, 2 undecided; an error raised here exits 4.

    Raises
    ------
    UsageError
        An end means no environment, both are one, or the metric is not measured.
    ConfigError
        An end cannot be measured.
    """
    reads = {*SETTING_KEYS} - _UNREAD
    settings = settings_of(overrides, of="bisect", reads=reads, config_dirs=config_dirs)
    if settings.cluster.kind != "local":
        fix = "Leave cluster= out, on the machine where the number changed"
        raise UsageError("a round is measured on one machine", where="bisect", fix=fix)
    store = open_store(settings.tracking)
    wanted, ended = finished(store, prefix)
    workload = rebuild(store.identity(ended[-1].run_id))
    if is_remote(workload):
        fix = "Bisect where the server runs: task=serving engine=llamacpp, for example"
        why = "the packages of an endpoint's server are not known"
        raise UsageError(why, where="bisect", fix=fix)
    ends = [
        end_of(word, flag, store=store, workload=workload, config_dirs=config_dirs)
        for word, flag in ((good, "--good"), (bad, "--bad"))
    ]
    metric = metric or find_task(workload["task"]["name"]).headline[0]
    measured = valid(store.reports({wanted: ended})[wanted])
    known = {name for report in measured for name in (*report.metrics, *report.telemetry)}
    if known and metric not in known:
        raise UsageError(f"{prefix} has no {metric}", where="--metric", fix=nearest(metric, known))
    differences: Differences | None = between_ends(*ends)
    found: list[BisectView] = []
    while differences is not None:
        bisecting = Bisecting(workload, differences, metric, store, settings)
        answer = bisecting.run()
        if answer is None:
            return interrupted()
        found.append(bisecting.shown(answer))
        if not versions or len(found) > 1 or answer.state != "found":
            break
        try:
            differences = between_versions(differences, answer)
        except UsageError as error:
            say(str(error))  # what was found stands
            break
        if differences is None:
            say("--versions: there is no released version in between, or not of one package alone")
    if as_json:
        more = {"versions": bisect_json(found[1])} if len(found) > 1 else {}
        emit_json({**bisect_json(found[0]), **more})
    else:
        for view in found:
            emit(view)
            emit("")
    state = found[-1].answer.state
    # What a package as a whole changes, one of its versions does.
    return EXIT_CODES["undecided" if len(found) > 1 and state == "same" else state]


class Bisecting:
    """The bisection of one trial between two environments.

    Parameters
    ----------
    workload : identity
        What is measured; its own environment does not matter.
    differences : Differences
        Between the ends.
    metric : str
        What changed.

    Raises
    ------
    ConfigError
        An end cannot be measured.
    """

    def __init__(
        self,
        workload: Mapping[str, Any],
        differences: Differences,
        metric: str,
        store: Store,
        settings: Settings,
    ) -> None:
        self._workload, self._differences, self.metric = workload, differences, metric
        self._store = store
        self._settings = dataclasses.replace(settings, force=True, repeats=1)
        self._trials: dict[Set, Trial] = {}
        self.coupling = differences.coupling
        self.good = self.trial(frozenset())
        self.bad = self.trial(frozenset(self.coupling.needs))
        for flag, trial in (("--good", self.good), ("--bad", self.bad)):
            if trial.infeasible is not None:
                raise ConfigError(trial.infeasible, where=flag)
        # One at a time: two of a round in parallel slow each other, and not the third.
        demand, cluster = self.good.resources, settings.cluster
        cluster = dataclasses.replace(
            cluster, cpus=demand.cpus or cluster.cpus, gpus=demand.gpus or cluster.gpus
        )
        self._settings = dataclasses.replace(self._settings, cluster=cluster)
        self.sweep = f"{BISECTION}{self.good.hash[:6]}-{self.bad.hash[:6]}"
        self._loaded: dict[str, AttemptReport] = {}
        self._terms: Terms | None = None

    def trial(self, changes: Set) -> Trial:
        """The good end with these changes made."""
        if changes not in self._trials:
            environment = self._differences.environment(changes)
            (trial,) = plan_of(
                {**self._workload, "environment": environment}, self._settings
            ).trials
            if problem := self._differences.problem(changes):
                trial = dataclasses.replace(trial, infeasible=problem)
            self._trials[changes] = trial
        return self._trials[changes]

    def run(self) -> Answer | None:
        """Measure until it has an answer; None where the user stopped it."""
        from orchestrator.commands.measuring import Measuring

        known: dict[Set, Sequence[Round] | str] = {}
        vain = 0
        asked: Ask | None = None
        while isinstance(ask := bisect(known, self.coupling, self.terms()), Ask):
            trial = self.trial(ask.changes)
            before = known.get(ask.changes)
            known[ask.changes] = found = self._recorded(trial)
            if isinstance(found, str) or len(found) >= ask.rounds:
                continue
            vain = vain + 1 if before is not None and len(found) == len(before) else 0
            for flag, end in (("--good", self.good), ("--bad", self.bad)):
                if vain and (reason := self._failure(end)):
                    raise ConfigError(f"its attempts fail: {reason}", where=flag)
            if vain > _MOST_VAIN:
                show = self._settings.tracking.command(f"show {short_hash(trial.hash)}")
                raise ConfigError(
                    f"{_MOST_VAIN} rounds in a row do not count: {self._why_not(trial)}",
                    where=self.sweep,
                    fix=f"Look at it: {show}",
                )
            if asked is None or (ask.changes, ask.rounds) != (asked.changes, asked.rounds):
                say(f"{self.sweep}: {self._differences.called(ask.changes)}: {ask.rounds} rounds")
                asked = ask
            # An index that lacks a package is no evidence, and is said before anything runs.
            built(trial.identity["environment"])
            plan = self._round(trial, len(found) + vain)
            measuring = Measuring(plan, self._store, command_line(), search_id=self.sweep)
            measuring.execute(measuring.todo())
            if measuring.interrupted:
                return None
        return ask

    def terms(self) -> Terms:
        """What decides; the metric's direction as its attempts declare it."""
        if self._terms is not None:
            return self._terms
        reports = self._reports([self.good.hash, self.bad.hash])
        every = [report for found in reports.values() for report in valid(found)]
        terms = Terms(
            better=spec_of(every, self.metric).better,
            noise=noise_of(self._store, reports),
            most_rounds=max(Terms.most_rounds, self._settings.search.most_attempts),
            confidence=self._settings.search.confidence,
        )
        # Before the first round nobody has said what the metric is, nor on what hardware.
        self._terms = terms if every else None
        return terms

    def _round(self, candidate: Trial, number: int) -> Plan:
        """A plan of the ends and the candidate; who goes first changes from round to round."""
        trials = list({t.hash: t for t in (self.good, self.bad, candidate)}.values())
        first = number % len(trials)
        return Plan(
            sweep=self.sweep,
            description=f"Which package moved {self.metric}",
            trials=tuple(trials[first:] + trials[:first]),
            settings=self._settings,
        )

    def _reports(self, hashes: Sequence[str]) -> dict[str, list[AttemptReport]]:
        """Whole reports of these attempts."""
        return self._store.reports(self._ours(hashes), self._loaded)

    def _ours(self, hashes: Sequence[str]) -> dict[str, list[AttemptSummary]]:
        """Attempts that ended, of this bisection's rounds."""
        found = self._store.attempts(hashes)
        return {
            config: [s for s in each if s.sweep == self.sweep and s.outcome]
            for config, each in found.items()
        }

    def _recorded(self, candidate: Trial) -> list[Round] | str:
        """The rounds with this candidate, oldest first; or why its attempts fail."""
        if candidate.infeasible is not None:
            return candidate.infeasible
        plan = self._round(candidate, 0)
        hashes = [trial.hash for trial in plan.trials]
        summaries = self._ours(hashes)
        self._store.reports(summaries, self._loaded)
        rounds = grouped((s for each in summaries.values() for s in each), _run_of)
        could = self._met_now(plan, summaries)
        found: list[tuple[float, Round]] = []
        for attempts in rounds.values():
            sides = [
                samples_of(
                    valid(
                        self._loaded[s.run_id] for s in attempts if s.config_hash == h and could(s)
                    ),
                    self.metric,
                )
                for h in (self.good.hash, self.bad.hash, candidate.hash)
            ]
            if all(sides):
                began = min(s.started_at for s in attempts)
                found.append((began, Round(*(side[-1] for side in sides))))
        if not found and candidate.hash != self.bad.hash and (reason := self._failure(candidate)):
            return reason
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def _last(self, trial: Trial) -> AttemptReport | None:
        """The last attempt of a trial; None where there is none."""
        return next(reversed(self._reports([trial.hash]).get(trial.hash, [])), None)

    def _failure(self, trial: Trial) -> str | None:
        """Why the last attempt of a trial failed; None where it did not, or there is none."""
        last = self._last(trial)
        if last is None or last.outcome is Outcome.OK or last.outcome in _SAYS_NOTHING:
            return None
        return last.reason or last.outcome.value

    def _met_now(self, plan: Plan, summaries: Mapping[str, Sequence[AttemptSummary]]) -> Any:
        """Whether an attempt was made under conditions that this run could meet."""
        reuse = reuse_of(self._store, plan, summaries)
        ids = {
            trial.hash: [one.ids for kind in reuse.classes(trial.hash) for one in kind]
            for trial in plan.trials
        }

        def could(summary: AttemptSummary) -> bool:
            if not reuse.exact:
                return True
            return any(same(summary.conditions, one) for one in ids[summary.config_hash])

        return could

    def _why_not(self, candidate: Trial) -> str:
        last = self._last(candidate)
        if last is None:
            return "nothing was recorded"
        rules = [rule.reason for rule in last.verdict.rules if rule.state == "invalid"]
        return last.reason or next(filter(None, rules), "conditions that cannot be known")

    def shown(self, answer: Answer) -> BisectView:
        """The answer with what a view needs to name everything."""
        reports = self._reports([self.good.hash, self.bad.hash])
        every = [report for found in reports.values() for report in found]
        asked = [step.changes for step in answer.steps]
        return BisectView(
            answer=answer,
            spec=spec_of(every, self.metric),
            changes=self._differences.changes,
            called={changes: self._differences.called(changes) for changes in asked},
            hashes={changes: self.trial(changes).hash for changes in asked},
            ends=(self.good.hash, self.bad.hash),
            sweep=self.sweep,
        )


def _run_of(summary: AttemptSummary) -> str:
    """The run that an attempt was made under; while it is spooled, the spool's."""
    return summary.parent_run_id or summary.run_id.rpartition("/")[0]
