"""Recorded attempts as trials over time: one trial still, though its packages have moved.

A nightly sweep on the newest versions gives its trials other hashes with each new lock. Attempts
are of one trial here where their identities differ in nothing but ``environment``, and what they
asked of it (the sweep's axes) is the same; on one machine and of one content, whatever the
software.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from orchestrator.attempt import AxisValue
from orchestrator.conditions import UNKNOWN
from orchestrator.errors import StoreError, UsageError
from orchestrator.measure.grouping import grouped
from orchestrator.plan.identity import canonical_json
from orchestrator.record.selection import attempts_of
from orchestrator.record.store import Store
from orchestrator.record.summaries import AttemptSummary

_ENVIRONMENT = "environment"


@dataclass(frozen=True)
class TrialOverTime:
    """The attempts of one trial, on one machine and of one content, across software.

    Attributes
    ----------
    identity : dict
        Of its newest attempt.
    axes : dict of str to value
        Where on each axis of its runs it lies; empty where these are gone.
    attempts : tuple of AttemptSummary
        Those that are ok, oldest first; at least one.
    """

    identity: dict[str, Any]
    axes: dict[str, AxisValue]
    attempts: tuple[AttemptSummary, ...]

    @property
    def newest(self) -> AttemptSummary:
        """The newest attempt."""
        return self.attempts[-1]


def trials_over_time(
    store: Store, word: str, *, since: float | None = None
) -> tuple[list[TrialOverTime], dict[str, int]]:
    """All that is recorded of the trials that ``word`` means, under whatever hash.

    Parameters
    ----------
    word : str
        A sweep, a config hash, or what else ``compare`` takes.
    since : float, optional
        Unix seconds; attempts that began before are not looked at.

    Returns
    -------
    trials : list of TrialOverTime
        In the order in which they were planned.
    left_out : dict of str to int
        How many attempts of these trials do not count, by why.

    Raises
    ------
    UsageError
        Nothing is recorded by that word, or nothing of it counts.
    """
    named = attempts_of(store, word)
    wanted, sweeps = {s.config_hash for s in named}, {s.sweep for s in named}
    found = [
        summary
        for group in store.attempts().values()
        for summary in group
        if summary.outcome and (summary.config_hash in wanted or summary.sweep in sweeps)
    ]
    by_hash = grouped(found, lambda summary: summary.config_hash)
    identities = {h: tree for h, group in by_hash.items() if (tree := store.identity_of(group))}
    found = [summary for summary in found if summary.config_hash in identities]
    plans = _plans(store, found)

    def axes(summary: AttemptSummary) -> dict[str, AxisValue]:
        return plans.get(summary.parent_run_id, {}).get(summary.config_hash, {})

    same = {h: canonical_json({**tree, _ENVIRONMENT: None}) for h, tree in identities.items()}
    trials = grouped(found, lambda s: (same[s.config_hash], _asked(axes(s))))
    left_out: Counter[str] = Counter()
    kept: list[TrialOverTime] = []
    for members in trials.values():
        if wanted.isdisjoint(s.config_hash for s in members):
            continue
        recent = [s for s in members if since is None or s.started_at >= since]
        left_out.update(reason for s in recent if (reason := _reason_against(s)) is not None)
        good = sorted((s for s in recent if _reason_against(s) is None), key=lambda s: s.started_at)
        classes = grouped(good, lambda s: (s.conditions["machine"], s.conditions["content"]))
        for attempts in classes.values():
            identity = identities[attempts[-1].config_hash]
            # A run of this trial alone had no axes, or fewer: it is the same trial still.
            told = {axis: value for s in attempts for axis, value in axes(s).items()}
            kept.append(TrialOverTime(identity, told, tuple(attempts)))
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise UsageError(
            f"no valid attempt of {word!r} is recorded{f' ({why})' if why else ''}",
            where="--since" if since is not None and not why else store.where,
        )
    order = {h: at for plan in plans.values() for at, h in enumerate(plan)}
    kept.sort(key=lambda trial: order.get(trial.newest.config_hash, len(order)))
    return kept, dict(left_out)


def _plans(
    store: Store, found: Iterable[AttemptSummary]
) -> dict[str, dict[str, dict[str, AxisValue]]]:
    """What the runs that made these attempts planned: a trial's axes, by run and config hash."""
    planned = {}
    for run_id in dict.fromkeys(s.parent_run_id for s in found if s.parent_run_id):
        with suppress(StoreError):  # a sweep's run may be gone while its attempts are there
            planned[run_id] = {t["hash"]: t["axes"] for t in store.plan(run_id)["trials"]}
    return planned


def _asked(axes: Mapping[str, AxisValue]) -> tuple[tuple[str, AxisValue], ...]:
    """What axes say of the environment: two that one run compares are two trials."""
    return tuple(
        (axis, value)
        for axis, value in sorted(axes.items())
        if axis.partition(".")[0] == _ENVIRONMENT
    )


def _reason_against(summary: AttemptSummary) -> str | None:
    """Why an attempt does not count; None where it does."""
    if summary.outcome != "ok":
        return summary.outcome
    where = [summary.conditions.get(group, UNKNOWN) for group in ("machine", "content")]
    return "on an unknown machine or content" if UNKNOWN in where else None
