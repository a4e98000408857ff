"""``history``: a metric over time, where it stepped, and what differed there."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands.noise import noise_of
from orchestrator.commands.output import echo, emit, emit_json
from orchestrator.commands.selected import store_of, writing
from orchestrator.errors import ConfigError, UsageError, nearest
from orchestrator.measure.registry import find_task
from orchestrator.record.metric_units import Units
from orchestrator.record.over_time import TrialOverTime, trials_over_time
from orchestrator.record.params import legal_key
from orchestrator.record.points import PHASES_PREFIX
from orchestrator.report.analyse.differences import differences
from orchestrator.report.analyse.history import History, Series, Step, Taken, series_of
from orchestrator.report.analyse.labels import label_of
from orchestrator.report.analyse.measured import spec_of
from orchestrator.report.show.history_page import history_page
from orchestrator.report.show.history_view import NOT_POSITIVE, HistoryView

if TYPE_CHECKING:
    from orchestrator.attempt import AttemptReport
    from orchestrator.record import Store

_AGE_S = {"h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def history_command(
    word: str,
    overrides: Sequence[str],
    metric: str | None,
    site: Path | None,
    since: str | None,
    as_json: bool,
) -> int:
    """Exit 0, or 1 where the last run brought a new regression; an error raised here exits 4.

    What is new: :attr:`~orchestrator.report.analyse.history.History.new_regressions`.
    """
    after = None if since is None else _moment(since)
    store = store_of(overrides)
    trials, left_out = trials_over_time(store, word, since=after)
    found = _followed(store, trials, metric, left_out)
    if not found:
        raise UsageError(f"no attempt of {word!r} has a value of {metric or 'any metric'}")
    history = History(word, tuple(_explained(store, found)), left_out)
    if site is not None:
        target = site / "index.html"
        with writing(target, "--site"):
            site.mkdir(parents=True, exist_ok=True)
            target.write_text(history_page(history), encoding="utf-8")
    if as_json:
        emit_json(history.to_json())
    else:
        emit(HistoryView(history))
        if site is not None:
            echo(target)
    if len(history.not_judged) == len(history.series):
        raise UsageError(
            f"no trial could be judged: {NOT_POSITIVE}",
            where=f"--metric {metric}" if metric else word,
            fix="Hold it to a limit with gate",
        )
    return history.exit_code


def _followed(
    store: Store, trials: Sequence[TrialOverTime], metric: str | None, left_out: dict[str, int]
) -> list[Series]:
    """The metric of each trial that has it; by default the one that decides in its table.

    Of a task that changed a metric's unit what is in the newest one; ``left_out`` counts the rest.
    """
    # What a metric is, trials of one task and engine say alike: a report takes milliseconds.
    newest = {_kind(trial): trial.newest.run_id for trial in trials}
    reports = {kind: store.load(run_id) for kind, run_id in newest.items()}
    known = {name for report in reports.values() for name in _names(report)}
    if metric is not None and metric not in known:
        raise UsageError(f"no metric {metric!r}", where="--metric", fix=nearest(metric, known))
    numbers = store.numbers([s.run_id for trial in trials for s in trial.attempts])
    noises = _noises(store, trials)
    taken_of: list[tuple[str, list[Taken]]] = []
    first = 0
    for trial in trials:
        rows = slice(first, first + len(trial.attempts))
        first = rows.stop
        own = {key: column[rows] for key, column in numbers.items()}
        names = [metric] if metric else _deciding(trial, reports[_kind(trial)])
        every = ((name, _taken(trial, own, name)) for name in names)
        taken_of.append(next((each for each in every if each[1]), ("", [])))
    units = _units(store, trials, taken_of)
    found: list[Series] = []
    for trial, label, (name, taken) in zip(trials, _labels(trials), taken_of, strict=True):
        if not taken:
            continue
        unit = units[name, taken[-1].run_id]
        alike = [each for each in taken if units[name, each.run_id] == unit]
        for each in taken:
            if (other := units[name, each.run_id]) != unit:
                reason = f"with {name} in {other}, which is in {unit} now"
                left_out[reason] = left_out.get(reason, 0) + 1
        machine = trial.newest.hardware_fingerprint
        spec = replace(spec_of([reports[_kind(trial)]], name), unit=unit)
        where = machine or trial.newest.conditions["machine"]
        found.append(series_of(label, spec, where, alike, noises[machine]))
    return found


def _units(
    store: Store,
    trials: Sequence[TrialOverTime],
    taken_of: Sequence[tuple[str, Sequence[Taken]]],
) -> dict[tuple[str, str], str]:
    """The unit of each trial's metric by run; trials of one task and engine change it together."""
    read = Units(store)
    found: dict[tuple[str, str], str] = {}
    alike: dict[tuple[str, tuple[str, str | None]], list[Taken]] = {}
    for trial, (name, taken) in zip(trials, taken_of, strict=True):
        alike.setdefault((name, _kind(trial)), []).extend(taken)
    for (name, _), every in alike.items():
        in_order = [each.run_id for each in sorted(every, key=lambda each: each.started_at)]
        told = read.of(name, in_order) if in_order else []
        found |= {(name, run): unit or "" for run, (_, unit) in zip(in_order, told, strict=True)}
    return found


def _kind(trial: TrialOverTime) -> tuple[str, str | None]:
    engine = trial.identity.get("engine") or {}
    return trial.identity["task"]["name"], engine.get("name")


def _names(report: AttemptReport) -> list[str]:
    return list(dict.fromkeys([*report.metrics, *report.telemetry]))


def _deciding(trial: TrialOverTime, report: AttemptReport) -> list[str]:
    """Metrics in the order in which one would decide in a table: the task's headline first."""
    headline: Sequence[str] = ()
    with suppress(ConfigError, ImportError):  # of a task that is not installed here
        headline = find_task(trial.identity["task"]["name"]).headline
    return list(dict.fromkeys([*headline, *_names(report)]))


def _moment(since: str) -> float:
    """A date (UTC) or an age as Unix seconds."""
    # Longer ago than any record, and more digits than a float takes, is a slip of the hand.
    if age := re.fullmatch(r"([0-9]{1,6})([hdw])", since):
        return time.time() - int(age[1]) * _AGE_S[age[2]]
    with suppress(ValueError):
        moment = datetime.fromisoformat(since)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    raise UsageError(
        f"{since!r} is no date and no age", where="--since", fix="Write 2026-11-01, 30d, 12h or 8w"
    )


def _noises(store: Store, trials: Sequence[TrialOverTime]) -> dict[str | None, float | None]:
    """The recorded A/A noise of each kind of hardware among them."""
    of_hardware = {trial.newest.hardware_fingerprint: trial.newest.run_id for trial in trials}
    return {
        hardware: noise_of(store, {run_id: [store.load(run_id)]})
        for hardware, run_id in of_hardware.items()
    }


def _labels(trials: Sequence[TrialOverTime]) -> list[str]:
    """What tells each trial from the others: the axes that they differ in."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for axis, value in trial.axes.items():
            values.setdefault(axis, set()).add(repr(value))
    telling = [axis for axis in values if len(values[axis]) > 1]
    return [label_of(trial.axes, trial.identity, telling) for trial in trials]


def _taken(
    trial: TrialOverTime, numbers: Mapping[str, Sequence[float | None]], name: str
) -> list[Taken]:
    """The metric of each attempt that has it."""

    def column(prefix: str, statistic: str = "") -> Sequence[float | None]:
        key = legal_key(f"{legal_key(f'{prefix}{name}')}{statistic}")
        return numbers.get(key) or [None] * len(trial.attempts)

    prefix = next((p for p in ("", PHASES_PREFIX) if any(v is not None for v in column(p))), "")
    protocol = trial.identity.get("protocol") or {}
    rows = zip(
        trial.attempts,
        *(column(prefix, statistic) for statistic in ("", ".ci_low", ".ci_high")),
        strict=True,
    )
    return [
        Taken(
            # Of one that is still in the spool its driver is all that is known of its run.
            run=summary.parent_run_id or summary.driver_id,
            run_id=summary.run_id,
            config_hash=summary.config_hash,
            started_at=summary.started_at,
            median=median,
            ci_low=low,
            ci_high=high,
            confidence=float(protocol.get("confidence", 0.95)),
        )
        for summary, median, low, high in rows
        if median is not None
    ]


def _explained(store: Store, found: Sequence[Series]) -> list[Series]:
    """The series, each step with what differed between its two sides."""
    sides = {
        t.run_id: t for series in found for step in series.steps for t in (step.good, step.bad)
    }
    reports = {run_id: store.load(run_id) for run_id in sides}
    locks: dict[str, Mapping[str, object] | None] = {}
    for run_id, taken in sides.items():
        if taken.config_hash not in locks:
            locks[taken.config_hash] = store.identity(run_id).get("environment")

    def explained(step: Step) -> Step:
        good, bad = step.good, step.bad
        environments = locks[good.config_hash], locks[bad.config_hash]
        told = differences(reports[good.run_id], reports[bad.run_id], environments)
        return replace(step, differences=told)

    return [replace(each, steps=tuple(map(explained, each.steps))) for each in found]
