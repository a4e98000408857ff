"""Which recorded attempts a word on the command line means.

::

    quant            the sweep: of every trial, its newest measurements
    quant@-2         the sweep's last run but one; quant@-1 its last; a search is one run
    <run id>         one run of a sweep: its MLflow run id, or its first 8 characters
    <config hash>    one trial, 12 or more hex characters
    hw:<fingerprint> everything measured on that hardware
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.attempt import AttemptReport
from orchestrator.errors import UsageError
from orchestrator.measure.grouping import grouped
from orchestrator.measure.wording import counted
from orchestrator.record import AttemptSummary, Store, SweepRun

HARDWARE_PREFIX = "hw:"


@dataclass(frozen=True)
class Selection:
    """Attempts that were asked for by one word.

    Attributes
    ----------
    attempts : dict of str to list of AttemptReport
        By config hash, oldest first; only finished ones.
    configs : dict of str to identity
        The configuration of each of these trials.
    run_ids : dict of str to str
        MLflow run by attempt id.
    """

    word: str
    attempts: dict[str, list[AttemptReport]]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    run_ids: dict[str, str] = field(default_factory=dict)

    @property
    def metric_names(self) -> set[str]:
        """Of everything these attempts measured, telemetry included."""
        return {
            name
            for reports in self.attempts.values()
            for report in reports
            for name in (*report.metrics, *report.telemetry)
        }


def select(store: Store, word: str) -> Selection:
    """The attempts that ``word`` means.

    Raises
    ------
    UsageError
        It means nothing that is recorded; the message says what there is.
    """
    summaries = [s for s in attempts_of(store, word) if s.outcome]
    if not summaries:
        raise UsageError(f"nothing finished is recorded for {word!r}", where=store.where)
    if summaries[0].sweep == word:
        summaries = _newest(summaries)
    found = grouped(summaries, lambda summary: summary.config_hash)
    configs = {c: tree for c, group in found.items() if (tree := store.identity_of(group))}
    reports = {c: made for c, made in store.reports(found).items() if made and c in configs}
    if not reports:
        raise UsageError(f"nothing of {word!r} can be read any more", where=store.where)
    return Selection(
        word,
        reports,
        {config: configs[config] for config in reports},
        {summary.attempt_id: summary.run_id for summary in summaries},
    )


def _newest(summaries: Sequence[AttemptSummary]) -> list[AttemptSummary]:
    """Of each trial on each machine, those that were made with its newest software."""

    def place(summary: AttemptSummary) -> tuple[str | None, ...]:
        where = (summary.conditions.get(group) for group in ("machine", "content"))
        return summary.config_hash, *where

    # Of a trial the oldest comes first.
    newest = {place(s): s.conditions.get("software") for s in summaries}
    return [s for s in summaries if s.conditions.get("software") == newest[place(s)]]


def runs_with_attempts(store: Store, sweep: str) -> list[SweepRun]:
    """Runs of a sweep that measured something (not all cached), newest first.

    Of the steps of a search only the last one, which stands for all.
    """
    parents = {s.parent_run_id for s in store.sweep_attempts(sweep) if s.outcome}
    found: dict[str, SweepRun] = {}
    for run in store.sweep_runs(sweep):
        if run.run_id in parents:
            found.setdefault(run.search_id or run.run_id, run)
    return list(found.values())


def attempts_of(store: Store, word: str) -> Sequence[AttemptSummary]:
    """Every attempt that ``word`` means, running ones too; raises as :func:`select`."""
    if word.startswith(HARDWARE_PREFIX):
        return _of_hardware(store, word.removeprefix(HARDWARE_PREFIX))
    # First of all: a sweep's own name may have an @.
    if sweep := store.sweep_attempts(word):
        return sweep
    name, at, position = word.rpartition("@")
    if at:
        return _of_run(store, _nth_run(store, name, position))
    runs = [r for r in store.sweep_runs() if len(word) >= 8 and r.run_id.startswith(word)]
    if len(runs) == 1:
        return _of_run(store, runs[0])
    if re.fullmatch(r"[0-9a-f]{12,64}", word):
        return store.attempts([store.resolve(word)]).get(store.resolve(word), [])
    raise UsageError(
        f"{word!r} is no sweep, run or config hash", where=store.where, fix=known_sweeps(store)
    )


def _nth_run(store: Store, sweep: str, position: str) -> SweepRun:
    runs = runs_with_attempts(store, sweep)
    if not runs:
        raise UsageError(
            f"no sweep {sweep!r} is recorded", where=store.where, fix=known_sweeps(store)
        )
    if not re.fullmatch(r"-?[1-9]\d*", position):
        raise UsageError(f"{position!r} is no position", fix=f"{sweep}@-1 is the sweep's last run")
    # @-1 is the last run, @1 the first.
    index = int(position)
    if abs(index) > len(runs):
        raise UsageError(f"sweep {sweep!r} has {counted(len(runs), 'run')}, not {abs(index)}")
    return runs[-index - 1] if index < 0 else runs[len(runs) - index]


def _of_run(store: Store, run: SweepRun) -> list[AttemptSummary]:
    runs = [run] if not run.search_id else store.sweep_runs(run.sweep)
    parents = {each.run_id for each in runs if each.search_id == run.search_id}
    return [s for s in store.sweep_attempts(run.sweep) if s.parent_run_id in parents]


def _of_hardware(store: Store, fingerprint: str) -> list[AttemptSummary]:
    found = [s for group in store.attempts().values() for s in group]
    known = sorted({s.hardware_fingerprint for s in found if s.hardware_fingerprint})
    matching = [f for f in known if f.startswith(fingerprint)]
    if len(matching) != 1:
        raise UsageError(
            f"{len(matching)} hardware fingerprints begin with {fingerprint!r}",
            fix=f"Known: {', '.join(known) or 'none'}",
        )
    return [s for s in found if s.hardware_fingerprint == matching[0]]


def known_sweeps(store: Store) -> str:
    """What is recorded, as the fix of a word that means nothing."""
    names = sorted({run.sweep for run in store.sweep_runs()})
    return f"Known sweeps: {', '.join(names)}" if names else "Nothing is recorded yet"
