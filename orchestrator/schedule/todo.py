"""What is left to do, as a pure function of the plan and of what was recorded before."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.attempt import Outcome
from orchestrator.schedule.policy import RetryPolicy, retry_policy, units_spent

if TYPE_CHECKING:
    from orchestrator.plan.trial import Trial


class PastAttempt(Protocol):
    """What is asked of a recorded attempt (``record.AttemptSummary`` has it)."""

    @property
    def outcome(self) -> Any:
        """An :class:`Outcome`, its value, or None while it runs."""
        ...

    @property
    def number(self) -> int:
        """Its number among the trial's attempts."""
        ...

    @property
    def started_at(self) -> float:
        """Unix time (s)."""
        ...

    @property
    def ended_at(self) -> float | None:
        """Unix time (s)."""
        ...

    @property
    def host(self) -> str | None:
        """Where it ran; None where it was refused before it could."""
        ...

    @property
    def attempt_id(self) -> str:
        """Whose it is: unique to the driver up to the last hyphen."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One attempt to be made.

    Attributes
    ----------
    number : int
        Its number among the trial's attempts.
    tries : tuple of Outcome
        Outcomes of earlier ones at the same repeat.
    expected_s : float or None
        How long it may take: the median of the trial's measurements so far.
    """

    trial: Trial
    number: int
    tries: tuple[Outcome, ...] = ()
    expected_s: float | None = None


@dataclass(frozen=True)
class TrialState:
    """What a person is told about a trial before anything runs.

    Attributes
    ----------
    state : str
        ``new`` (something is to be run), ``cached`` (measured as often as asked), ``failed``
        (recorded as failed and not tried again), ``infeasible``.
    reason : str or None
        One line, where the state alone does not say it.
    """

    trial: Trial
    state: str
    reason: str | None = None


@dataclass(frozen=True)
class Todo:
    """States of all trials in plan order, and the attempts to be made in the same order."""

    states: tuple[TrialState, ...]
    attempts: tuple[Attempt, ...]


def compute_todo(
    trials: Iterable[Trial],
    existing: Mapping[str, Sequence[PastAttempt]],
    *,
    repeats: int = 1,
    retry_failed: bool = False,
    force: bool = False,
    invalid_retries: int = 1,
) -> Todo:
    """Which attempts are missing.

    Parameters
    ----------
    existing : mapping of config hash to attempts
        What the store has; trials it does not know are new.
    repeats : int
        Measurements wanted of every trial.
    retry_failed : bool
        Whether failures (and measurements refused too often) are to be tried again.
    force : bool
        Add ``repeats`` attempts to everything, whatever exists.
    invalid_retries : int
        ``verdict.retries``: an invalid measurement counts as missing until it was retried as often.

    Returns
    -------
    Todo
        An infeasible trial has one attempt to be made if it was never recorded: its record.
    """
    policy = retry_policy(invalid_retries=invalid_retries)
    states, attempts = [], []
    for trial in trials:
        past = existing.get(trial.hash, ())
        state, made = _one(trial, past, policy, repeats, retry_failed, force)
        states.append(state)
        attempts.extend(made)
    return Todo(tuple(states), tuple(attempts))


def _one(
    trial: Trial,
    past: Sequence[PastAttempt],
    policy: RetryPolicy,
    repeats: int,
    retry_failed: bool,
    force: bool,
) -> tuple[TrialState, list[Attempt]]:
    counts = Counter(Outcome(attempt.outcome) for attempt in past if attempt.outcome)
    number = 1 + max((attempt.number for attempt in past), default=0)
    expected_s = _usual_s(past)
    if trial.infeasible is not None:
        # Recorded once without a process; a person sees why in the table and in the store.
        record = [] if counts[Outcome.INFEASIBLE] else [Attempt(trial, number)]
        return TrialState(trial, "infeasible", trial.infeasible), record
    # What was refused before it ran, and is not any more, was never tried: there is a compiler now,
    # or preflight does not skip it.
    counts[Outcome.INFEASIBLE] = sum(
        attempt.outcome == Outcome.INFEASIBLE.value and attempt.host is not None for attempt in past
    )
    if force:
        reason = "force=true" if past else None
        return TrialState(trial, "new", reason), _numbered(trial, number, repeats, expected_s)
    spent = 0 if retry_failed else units_spent(counts, policy)
    missing = repeats - counts[Outcome.OK] - spent
    if counts[Outcome.INFEASIBLE] and not retry_failed:
        return TrialState(trial, "infeasible", _again("found infeasible when it ran")), []
    if missing > 0:
        reason = f"{missing} of {repeats} to go" if repeats > 1 and past else None
        made = _numbered(trial, number, missing, expected_s)
        if not retry_failed:
            made[0] = replace(made[0], tries=_unfinished(counts, policy))
        return TrialState(trial, "new", reason), made
    if spent and counts[Outcome.OK] < repeats:
        endings = ", ".join(
            outcome.value
            for outcome in counts
            if outcome not in (Outcome.OK, Outcome.LOST, Outcome.CANCELLED)
        )
        return TrialState(trial, "failed", _again(endings)), []
    return TrialState(trial, "cached"), []


def _numbered(trial: Trial, first: int, count: int, expected_s: float | None) -> list[Attempt]:
    return [Attempt(trial, first + offset, expected_s=expected_s) for offset in range(count)]


def _usual_s(past: Sequence[PastAttempt]) -> float | None:
    """How long measurements of this trial took; None where there is none to go by."""
    spans_s = [
        attempt.ended_at - attempt.started_at
        for attempt in past
        if attempt.outcome in (Outcome.OK, Outcome.OK.value) and attempt.ended_at is not None
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
