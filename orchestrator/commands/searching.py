"""``search=capacity``: asks for levels, each an ordinary trial, until the answer has its error.

::

    trial of the plan -> level -> attempts that are missing -> measured -> next level
                           ^------------------------------------------------'
    answer: an interval of levels, and the table of all that were looked at
"""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.commands.interrupt import interrupted
from orchestrator.commands.output import emit, emit_json, say
from orchestrator.engines.registry import is_remote
from orchestrator.errors import ConfigError
from orchestrator.measure.registry import find_task
from orchestrator.measure.wording import counted
from orchestrator.search.capacity import (
    Ask,
    CapacitySettings,
    Found,
    Undecided,
    capacity,
)
from orchestrator.search.probe import IMPOSSIBLE, MEMORY, SATURATED, UNANSWERED, LevelAttempt

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport, Trial
    from orchestrator.commands.measuring import Measuring
    from orchestrator.plan.plan import Plan
    from orchestrator.record import Store

UNDECIDED = 1
# After the first of a level, or as many as it has of valid ones: a machine that disturbs more does
# not get quiet.
_MOST_INVALID = 4
_BINDS = {
    SATURATED: "the queue grows",
    UNANSWERED: "requests stay unanswered",
    MEMORY: "memory runs out",
    IMPOSSIBLE: "a trial cannot run",
}


def search(plan: Plan, command: Sequence[str], *, as_json: bool) -> int:
    """Search for each trial of a plan; returns 0, 1 where one stays undecided, or 130."""
    from orchestrator.commands.measuring import Measuring
    from orchestrator.record import open_store
    from orchestrator.schedule.cluster.ray.cluster import joined

    plan = _failures_are_results(plan)
    searches = searches_of(plan)
    store = open_store(plan.settings.tracking)
    search_id = uuid.uuid4().hex
    forced = plan.settings.force
    recorded = [each for group in store.attempts().values() for each in group] if forced else []
    old = {each.attempt_id for each in recorded}
    try:
        while step := next_step(searches, plan):
            measuring = Measuring(step, store, command, search_id=search_id)
            todo = measuring.todo()
            if todo.attempts:
                measuring.execute(todo)
            if measuring.interrupted:
                for each in searches:
                    each.stop()
                    say(sentence(each, plan))
                _all_levels(searches, plan, store, command).record_plan()
                return interrupted()
            found = {
                config_hash: [report for report in reports if report.attempt_id not in old]
                for config_hash, reports in measuring.found().items()
            }
            for each in searches:
                each.answered(found)
    finally:
        if plan.settings.cluster.kind == "local":
            joined(plan.settings.cluster).close()
    _report(searches, plan, store, command, as_json=as_json)
    return UNDECIDED if any(isinstance(each.next, Undecided) for each in searches) else 0


def _failures_are_results(plan: Plan) -> Plan:
    """Requests that fail are missed, which a search is about: a server may turn some away."""
    verdict = plan.settings.verdict
    rules = dict(verdict.rules)
    rule = rules.get("errors")
    if isinstance(rule, Mapping) and rule.get("state") == "invalid":
        rules["errors"] = {**rule, "state": "flagged"}
    verdict = dataclasses.replace(verdict, rules=rules)
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, verdict=verdict))


class Searched:
    """The search of one trial, and what is known of its levels."""

    def __init__(self, plan: Plan, trial: Trial) -> None:
        from orchestrator.plan.expand import bounds_at, number_at

        asked, self._slo = plan.settings.search, plan.settings.slo
        if not self._slo.limits:
            raise ConfigError(
                "no limit is given", where="slo", fix="Write slo.ttft_s=0.5, for example"
            )
        task = find_task(trial.identity["task"]["name"])
        if missing := sorted(self._slo.limits.keys() - set(task.headline)):
            raise ConfigError(
                f"task={task.name} has no {missing[0]} to set a limit for",
                where="search=capacity",
                fix="Write task=serving, or task=inference",
            )
        self._by_hash = plan.settings.reuse == "hash"
        if is_remote(trial.identity) and not self._by_hash:
            raise ConfigError(
                "what an endpoint runs on is unknown, so its attempts count together only if you "
                "say so",
                where="search=capacity",
                fix="Add reuse=hash",
            )
        self.trial, self._plan = trial, plan
        self.over = asked.over or ""
        start = number_at(trial, self.over)
        # A level beyond what the number may be would end the search, with all it has measured.
        least, most = bounds_at(trial, self.over)
        lowest = max(filter(None, (asked.lowest, least)), default=None)
        highest = min(filter(None, (asked.highest, most)), default=None)
        _check_levels(self.over, start, lowest, highest)
        self._settings = CapacitySettings(
            target=self._slo.attainment,
            start=start,
            integer=isinstance(start, int),
            width=asked.width,
            confidence=asked.confidence,
            most_attempts=asked.most_attempts,
            most_levels=asked.most_levels,
            lowest=lowest,
            highest=highest,
        )
        self._known: dict[float, list[LevelAttempt]] = {}
        # Of a level, when some were missing for the first time and for the last.
        self._invalid: dict[float, tuple[int, int]] = {}
        #: Whether attempts that it asks for replace some that were invalid.
        self.asks_again = False
        self.levels: dict[float, Trial] = {}
        self.next: Ask | Found = capacity(self._known, self._settings)

    def trial_at(self, level: float) -> Trial:
        """The trial of one level."""
        from orchestrator.plan.expand import at_level

        if level not in self.levels:
            self.levels[level] = at_level(self.trial, self.over, level, self._plan.settings)
        return self.levels[level]

    def answered(self, reports: Mapping[str, Sequence[AttemptReport]]) -> None:
        """Go on from what was measured; what was invalid is asked for again while it is of use."""
        from orchestrator.attempt import Outcome
        from orchestrator.report.analyse.measured import cannot_run, of_one_class, valid

        ask = self.next
        if not isinstance(ask, Ask):
            return
        trial = self.trial_at(ask.level)
        if trial.hash not in reports:
            return
        alike = reports[trial.hash] if self._by_hash else of_one_class(reports[trial.hash])
        attempts = _level_attempts(valid(alike), self._slo.limits)
        if outcome := cannot_run(alike):
            stopped_by = IMPOSSIBLE if outcome is Outcome.INFEASIBLE else MEMORY
            attempts = [LevelAttempt.that_cannot_run(stopped_by)]
        elif len(attempts) < ask.attempts:
            self._lack(ask, alike, len(attempts))
            return
        self.asks_again = False
        self._known[ask.level] = attempts
        self.next = capacity(self._known, self._settings)
        levels = self._known.values()
        if isinstance(self.next, Found) and all(
            each[0].stopped_by == IMPOSSIBLE for each in levels
        ):
            # What cannot run at any level is no matter of the level.
            reason = f"a trial can run at none of them: {_why_not(alike, trial)}"
            self.next = Undecided(None, None, None, None, self.next.levels, reason)

    def _lack(self, ask: Ask, made: Sequence[AttemptReport], have: int) -> None:
        """What to do about attempts that are missing though they were asked for."""
        from orchestrator.attempt import Outcome
        from orchestrator.report.analyse.labels import short_hash

        invalid = sum(report.outcome is Outcome.INVALID for report in made)
        first, last = self._invalid.get(ask.level, (invalid, 0))
        if not self.asks_again:
            last = 0  # earlier ones, of another day perhaps, counted as made
        self._invalid[ask.level] = first, invalid
        self.asks_again = last < invalid and invalid - first < max(_MOST_INVALID, have)
        if self.asks_again:
            return
        trial = self.trial_at(ask.level)
        many = f"{counted(invalid, 'attempt')} invalid, " if invalid else ""
        lacking = f"{self.over}={ask.level:g} has {have} of the attempts it needs ({ask.attempts})"
        lacking = f"{lacking}: {many}{_why_not(made, trial)}"
        show = self._plan.settings.tracking.command(f"show {short_hash(trial.hash)}")
        self.next = dataclasses.replace(
            ask.so_far, reason=f"{lacking.rstrip('?.')}. Look at it: {show}"
        )

    def stop(self) -> None:
        """Answer with what is known by now."""
        if isinstance(self.next, Ask):
            self.next = self.next.so_far


def _why_not(made: Sequence[AttemptReport], trial: Trial) -> str:
    from orchestrator.attempt import Outcome
    from orchestrator.report.analyse.reasons import why

    failed = [report for report in made if report.outcome is not Outcome.OK]
    return why(failed[-1]) if failed else trial.infeasible or "they were not made"


def searches_of(plan: Plan) -> list[Searched]:
    """One for each trial; :class:`ConfigError` where two would find the same."""
    from orchestrator.report.analyse.gate_rules import all_but

    found = [Searched(plan, trial) for trial in plan.trials]
    if len({all_but(each.trial.identity, each.over) for each in found}) < len(found):
        over = found[0].over
        raise ConfigError(
            "has several values, and the search from each would find the same",
            where=f"search.over={over}",
            fix=f"Give one, a first guess: {over}=VALUE",
        )
    return found


def _check_levels(over: str, start: float, lowest: float | None, highest: float | None) -> None:
    """:class:`ConfigError` where no level can be looked at."""
    if start <= 0:
        raise ConfigError(
            f"cannot begin at {start:g}: levels double and halve",
            where=f"search.over={over}",
            fix=f"Give a first guess above 0: {over}=VALUE",
        )
    low, high = lowest or 0.0, math.inf if highest is None else highest
    if isinstance(start, int):
        low, high = max(1, math.ceil(low)), high if math.isinf(high) else math.floor(high)
    if low > high:
        kind = "whole number" if isinstance(start, int) else "level"
        raise ConfigError(
            f"no {kind} of {over} lies between search.lowest and search.highest",
            where="search=capacity",
            fix="Raise search.highest, or lower search.lowest",
        )


def _level_attempts(
    reports: Sequence[AttemptReport], limits: Mapping[str, float]
) -> list[LevelAttempt]:
    """What attempts showed, in the order they were made."""
    from orchestrator.report.analyse.slo import used_limits

    found = []
    for report in sorted(reports, key=lambda report: report.started_at):
        used = used_limits(report, limits)
        if isinstance(used, str) and "requests" not in report.facts:
            raise ConfigError(f"no attainment: {used}", where="search=capacity")
        if isinstance(used, str):
            # The queue grew: there are no latencies, and no request counts as met.
            due = int(report.facts["requests"]["due"])
            found.append(LevelAttempt({name: [math.inf] * due for name in limits}, saturated=True))
        else:
            found.append(LevelAttempt(used))
    return found


def next_step(searches: Sequence[Searched], plan: Plan) -> Plan | None:
    """The levels that searches ask for now, those together that want as many attempts."""
    asking = [(each, ask) for each in searches if isinstance(ask := each.next, Ask)]
    if not asking:
        return None

    def kind(each: Searched, ask: Ask) -> tuple[int, bool]:
        # With force so many are added to what is there.
        return ask.more if plan.settings.force else ask.attempts, each.asks_again

    wanted, again = first = min(kind(each, ask) for each, ask in asking)
    chosen = [each.trial_at(ask.level) for each, ask in asking if kind(each, ask) == first]
    trials = {trial.hash: trial for trial in chosen}
    said = dict.fromkeys(f"{each.over}={ask.level:g}{_so_far(ask.so_far)}" for each, ask in asking)
    levels = ", ".join(said)
    say(f"{plan.sweep}: {levels}, {counted(wanted, 'attempt')}")
    settings = dataclasses.replace(plan.settings, repeats=wanted)
    if again:
        # Whatever disturbed one may need time to go away.
        settings.retry = dataclasses.replace(settings.retry, failed=True)
    else:
        settings.verdict = dataclasses.replace(settings.verdict, retries=0)
    return _plan(plan, searches, tuple(trials.values()), settings)


def _so_far(found: Found) -> str:
    """Between which levels the capacity lies by now."""
    if found.low is None and found.high is None:
        return ""
    if found.low is None:
        return f" (below {found.high:g} so far)"
    if found.high is None:
        return f" (above {found.low:g} so far)"
    return f" (between {found.low:g} and {found.high:g} so far)"


def _plan(
    plan: Plan, searches: Sequence[Searched], trials: tuple[Trial, ...], settings: Any
) -> Plan:
    over = searches[0].over
    # All that were looked at, which tells a trial by its level.
    levels = sorted({level for each in searches for level in each.levels})
    values = tuple(f"{level:g}" for level in levels)
    return dataclasses.replace(
        plan, trials=trials, settings=settings, axes={**plan.axes, over: values}, baseline={}
    )


def _report(
    searches: Sequence[Searched],
    plan: Plan,
    store: Store,
    command: Sequence[str],
    *,
    as_json: bool,
) -> None:
    looked_at = _all_levels(searches, plan, store, command)
    looked_at.record_plan()
    if as_json:
        emit_json({"sweep": plan.sweep, "searches": [_as_json(each) for each in searches]})
        return
    looked_at.report(wall_s=0.0, as_json=False, table=True, strict=False)
    for each in searches:
        emit(sentence(each, plan))


def _all_levels(
    searches: Sequence[Searched], plan: Plan, store: Store, command: Sequence[str]
) -> Measuring:
    """Every level that was looked at as one plan, described by the answer."""
    from orchestrator.commands.measuring import Measuring

    trials = tuple(trial for each in searches for _, trial in sorted(each.levels.items()))
    said = [f"{sentence(each, plan)}." for each in searches]
    about = [f"{plan.description}."] if plan.description else []
    described = dataclasses.replace(plan, description=" ".join((*about, *said)))
    found = Measuring(_plan(described, searches, trials, plan.settings), store, command)
    found.todo()
    return found


def sentence(each: Searched, plan: Plan) -> str:
    from orchestrator.report.analyse.labels import labels_of

    found, slo = each.next, plan.settings.slo
    assert isinstance(found, Found)
    limits = ", ".join(f"{name}={limit:g}" for name, limit in slo.limits.items())
    name = labels_of(plan)[each.trial.hash]
    of = "requests" if each.trial.identity.get("load") else "repetitions"
    keeps = f"{slo.attainment:.0%} of {of} keep {limits}"
    # Levels that stayed undecided may lie beyond an end that is known.
    below = any(level.level < (found.high or 0.0) for level in found.levels)
    above = any(level.level > (found.low or 0.0) for level in found.levels)
    if found.low is None and found.high is None:
        text = f"{name}: whether {keeps} is open at each {each.over} that was looked at"
    elif found.low is None:
        even = "" if below else "even "
        text = f"{name}: {even}{each.over}={found.high:g} is too much: under {keeps}"
    elif found.high is None:
        end = "no higher level has failed" if above else "the highest that was looked at"
        text = f"{name}: {keeps} at {each.over}={found.low:g}, {end}"
    else:
        text = f"{name}: {keeps} up to {each.over} between {found.low:g} and {found.high:g}"
    parts = [f"{text} ({plan.settings.search.confidence:.0%} confidence)"]
    if found.binding:
        parts.append(f"above it {_BINDS.get(found.binding, f'{found.binding} binds')}")
    if found.sharp is not None:
        parts.append("the edge is sharp" if found.sharp else "the edge is gradual")
    if isinstance(found, Undecided):
        parts.append(f"undecided: {found.reason}")
    return "; ".join(parts)


def _as_json(each: Searched) -> dict[str, Any]:
    found = each.next
    assert isinstance(found, Found)
    return {
        "hash": each.trial.hash,
        "over": each.over,
        "state": "undecided" if isinstance(found, Undecided) else "found",
        "reason": found.reason if isinstance(found, Undecided) else None,
        "low": found.low,
        "high": found.high,
        "sharp": found.sharp,
        "binding": found.binding,
        "levels": [
            {
                "level": level.level,
                "hash": each.levels[level.level].hash,
                "state": level.state,
                "attainment": level.attainment.share,
                "requests": level.attainment.requests,
                "attempts": level.attainment.attempts,
            }
            for level in found.levels
        ],
    }
