"""What is left to do, as a pure function of the plan and of what was recorded before."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.attempt import Outcome, PlannedAttempt, Trial
from orchestrator.conditions import UNKNOWN, Conditions, difference, same
from orchestrator.plan.plan import TrialState
from orchestrator.schedule.kinds import Kind, places_of
from orchestrator.schedule.policy import RetryPolicy, retry_policy, units_spent

if TYPE_CHECKING:
    from orchestrator.plan.schema import Settings
    from orchestrator.record.summaries import AttemptSummary


@dataclass(frozen=True)
class Reuse:
    """What counts as done, and where the rest is to be made.

    Attributes
    ----------
    kinds : mapping of config hash to Kinds
        The kinds of node that can hold a trial, the one where it is to run first.
    recorded : callable
        Takes an attempt that was made under others and returns its conditions, to say what is not
        as it was; None where it has none.
    exact : bool
        Only attempts under conditions of these kinds count; else all of the same hash.
    """

    kinds: Mapping[str, Sequence[Kind]]
    recorded: Callable[[AttemptSummary], Conditions | None]
    exact: bool = True

    def classes(self, config_hash: str) -> list[Sequence[Conditions]]:
        """What a trial's attempts could be made under, by kind of node; the wanted kind first."""
        return [kind.classes[config_hash] for kind in self.kinds.get(config_hash, ())]

    def claim(self, attempt: PlannedAttempt) -> str:
        """What no other driver is to measure meanwhile: a trial, and the class it is measured in.

        What is partly unknown counts for nobody else, so nobody has to wait for it.
        """
        config_hash = attempt.trial.hash
        classes = {
            one.id if UNKNOWN not in one.ids.values() else attempt.attempt_id.rpartition("-")[0]
            for kind in (self.kinds.get(config_hash, ()) if self.exact else ())
            if not attempt.places or any(n.node_id in attempt.places[0] for n in kind.nodes)
            for one in kind.classes[config_hash]
        }
        return "/".join((config_hash, *sorted(classes)))


@dataclass(frozen=True)
class Todo:
    """States of all trials by hash, and the attempts to be made; both in plan order."""

    states: dict[str, TrialState]
    attempts: tuple[PlannedAttempt, ...]


def compute_todo(
    trials: Iterable[Trial],
    existing: Mapping[str, Sequence[AttemptSummary]],
    settings: Settings,
    *,
    reuse: Reuse | None = None,
) -> Todo:
    """Which attempts are missing.

    Parameters
    ----------
    existing : mapping of config hash to attempts
        What the store has, oldest first; trials it does not know are new.
    settings : Settings
        ``repeats`` (measurements wanted of every trial), ``force`` (add so many, whatever exists),
        ``retry.failed`` (failures, and measurements refused too often, are tried again) and
        ``verdict.retries`` (an invalid measurement is missing until it was retried as often).

    reuse : Reuse, optional
        Which attempts count; where left out, all of the same hash.

    Returns
    -------
    Todo
        An infeasible trial has one attempt to be made if it was never recorded: its record.
    """
    policy = retry_policy(invalid_retries=settings.verdict.retries)
    states, attempts = {}, []
    for trial in trials:
        past = existing.get(trial.hash, ())
        stale = None
        if reuse is not None and reuse.exact and past and trial.infeasible is None:
            past, stale = _comparable(trial, past, reuse, settings.repeats)
        states[trial.hash], made = _one(trial, past, policy, settings)
        if stale is not None and made:
            first = 1 + max(attempt.number for attempt in existing[trial.hash])
            made = [replace(one, number=first + at) for at, one in enumerate(made)]
            if not past:
                states[trial.hash] = TrialState("stale", stale)
        if reuse is not None and made:
            places = places_of(trial.hash, reuse.kinds.get(trial.hash, ()))
            made = [replace(one, places=places) for one in made]
        attempts.extend(made)
    return Todo(states, tuple(attempts))


def _comparable(
    trial: Trial, past: Sequence[AttemptSummary], reuse: Reuse, repeats: int
) -> tuple[Sequence[AttemptSummary], str | None]:
    """Attempts of one class that this run could meet; and what is not as it was of the others.

    The class is one in which the trial is done, else the one with most measurements on the kind of
    node where the rest will be made.
    """
    by_kind = [_most_measured(past, classes) for classes in reuse.classes(trial.hash)]
    done = (found for found in by_kind if _measurements(found) >= repeats)
    kept = next(done, by_kind[0] if by_kind else [])
    others = [a for a in past if a not in kept and a.outcome is not None]
    if not others:
        return kept, None
    now = next((one for classes in reuse.classes(trial.hash) for one in classes), None)
    return kept, "not checked" if now is None else difference(reuse.recorded(others[-1]), now)


def _most_measured(
    past: Sequence[AttemptSummary], classes: Sequence[Conditions]
) -> Sequence[AttemptSummary]:
    ids = [conditions.ids for conditions in classes]
    found = [[a for a in past if same(a.conditions, one)] for one in ids]
    return max(found, key=_measurements, default=[])


def _measurements(attempts: Sequence[AttemptSummary]) -> int:
    return sum(attempt.outcome == Outcome.OK for attempt in attempts)


def _one(
    trial: Trial, past: Sequence[AttemptSummary], policy: RetryPolicy, settings: Settings
) -> tuple[TrialState, list[PlannedAttempt]]:
    repeats, retry_failed = settings.repeats, settings.retry.failed
    counts = Counter(Outcome(attempt.outcome) for attempt in past if attempt.outcome)
    number = 1 + max((attempt.number for attempt in past), default=0)
    expected_s = _usual_s(past)
    if trial.infeasible is not None:
        # Recorded once without a process; a person sees why in the table and in the store.
        record = [] if counts[Outcome.INFEASIBLE] else [PlannedAttempt(trial, number)]
        return TrialState("infeasible", trial.infeasible), record
    # What was refused before it ran, and is not any more, was never tried: there is a compiler now,
    # or preflight does not skip it.
    counts[Outcome.INFEASIBLE] = sum(
        attempt.outcome == Outcome.INFEASIBLE and attempt.host is not None for attempt in past
    )
    if settings.force:
        reason = "force=true" if past else None
        return TrialState("new", reason), _numbered(trial, number, repeats, expected_s)
    spent = 0 if retry_failed else units_spent(counts, policy)
    missing = repeats - counts[Outcome.OK] - spent
    if counts[Outcome.INFEASIBLE] and not retry_failed:
        return FOUND_INFEASIBLE, []
    if missing > 0:
        reason = f"{missing} of {repeats} to go" if repeats > 1 and past else None
        made = _numbered(trial, number, missing, expected_s)
        if not retry_failed:
            made[0] = replace(made[0], tries=_unfinished(counts, policy))
        return TrialState("new", reason), made
    if spent and counts[Outcome.OK] < repeats:
        endings = ", ".join(
            outcome.value
            for outcome in counts
            if outcome not in (Outcome.OK, Outcome.LOST, Outcome.CANCELLED)
        )
        return TrialState("failed", _again(endings)), []
    return TrialState("cached"), []


def _numbered(
    trial: Trial, first: int, count: int, expected_s: float | None
) -> list[PlannedAttempt]:
    return [PlannedAttempt(trial, first + offset, expected_s=expected_s) for offset in range(count)]


def _usual_s(past: Sequence[AttemptSummary]) -> float | None:
    """How long measurements of this trial took; None where there is none to go by."""
    spans_s = [
        attempt.ended_at - attempt.started_at
        for attempt in past
        if attempt.outcome == Outcome.OK and attempt.ended_at is not None
    ]
    return statistics.median(spans_s) if spans_s else None


def _unfinished(counts: Mapping[Outcome, int], policy: RetryPolicy) -> tuple[Outcome, ...]:
    """Tries of a repeat that an earlier sweep began and did not retry as often as it may."""
    return tuple(
        outcome
        for outcome in (Outcome.INVALID, Outcome.CRASHED, Outcome.OOM_HOST)
        for _ in range(counts.get(outcome, 0) % (1 + policy[outcome].times))
    )


def _again(what: str) -> str:
    return f"{what} (retry.failed=true tries again)"


FOUND_INFEASIBLE = TrialState("infeasible", _again("found infeasible when it ran"))
