"""What can be asked of recorded attempts, whichever store holds them; and which store that is."""

from __future__ import annotations

import json
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.errors import StoreError, UsageError
from orchestrator.measure.grouping import grouped
from orchestrator.record import spool
from orchestrator.record.artifacts import CONFIG, PLAN, REPORT
from orchestrator.record.backend import Backend, RunRow
from orchestrator.record.points import is_measured
from orchestrator.record.runrecord import ATTEMPT_TAG, RUNNING, RunRecord
from orchestrator.record.summaries import (
    AttemptSummary,
    SweepRun,
    each_once,
    summary_of_record,
    sweep_of,
)

MIN_PREFIX_CHARS = 12
# A run id of an attempt that is still in the spool: `spool:<sweep id>/<file>`.
SPOOL_PREFIX = "spool:"


class Store(ABC):
    """Recorded attempts. Reading the embedded one imports no MLflow.

    Attributes
    ----------
    uri : str
        MLflow's tracking URI. May hold credentials: show ``where``.
    where : str
        The same without credentials.
    spool_root : Path
        Where results wait until the store has them.
    is_shared : bool
        Whether drivers on other hosts may record into it too.
    """

    uri: str
    where: str
    spool_root: Path
    is_shared = False

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._opening = threading.Lock()
        # Trial and attempt of what was listed from the spool, by run id.
        self._listed: dict[str, tuple[str, str]] = {}
        self._left_out: set[str] = set()

    def backend(self) -> Backend:
        """The store for writing; imports MLflow, may create the database."""
        # Asked for at once by the thread that records and by whoever looks after dead drivers.
        with self._opening:
            if self._backend is None:
                self._backend = self._open_backend()
            return self._backend

    @abstractmethod
    def _open_backend(self) -> Backend: ...

    @abstractmethod
    def check_writable(self) -> None:
        """Raise ``StoreError`` where recording cannot work; quick, asks no server."""

    @abstractmethod
    def recorded(self, hashes: frozenset[str] | None) -> list[AttemptSummary]:
        """Attempts the store itself holds, of these trials or of all."""

    @abstractmethod
    def _hashes_like(self, prefix: str) -> set[str]:
        """Config hashes of recorded attempts that begin with ``prefix``."""

    @abstractmethod
    def _sweep_rows(self) -> Iterable[RunRow]:
        """Every parent run."""

    @abstractmethod
    def running(self) -> list[RunRow]:
        """Runs of any driver of ours that MLflow takes to be running."""

    @abstractmethod
    def file(self, run_id: str, name: str) -> bytes:
        """One artifact; raises ``FileNotFoundError`` or, for an unknown run, ``StoreError``."""

    @abstractmethod
    def files(self, run_id: str) -> list[str]:
        """Names of a run's artifacts, sorted."""

    @abstractmethod
    def _numbers(self, run_ids: Sequence[str]) -> Iterable[tuple[str, str, float]]:
        """MLflow's key, run and value of all that the store itself holds of these runs, or more."""

    def numbers(self, run_ids: Sequence[str]) -> dict[str, list[float | None]]:
        """What was measured, as numbers: by MLflow's key, one for each of ``run_ids``.

        The keys are those of :func:`~orchestrator.record.points.metric_points` without series and
        predictions. Of 10,000 runs it takes a hundredth of the time of their reports.
        """
        at_of = {run_id: at for at, run_id in enumerate(run_ids)}
        found: dict[str, list[float | None]] = {}
        left_out: set[str] = set()
        for key, run_id, value in chain(
            self._numbers([r for r in run_ids if not r.startswith(SPOOL_PREFIX)]),
            self._waiting_numbers([r for r in run_ids if r.startswith(SPOOL_PREFIX)]),
        ):
            at = at_of.get(run_id)
            if at is None or key in left_out:
                continue
            if (column := found.get(key)) is None:
                if not is_measured(key):
                    left_out.add(key)
                    continue
                column = found[key] = [None] * len(run_ids)
            column[at] = value
        return dict(sorted(found.items()))

    def _waiting_numbers(self, run_ids: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        for run_id in run_ids:
            try:
                for point in self._spooled_record(run_id).metrics:
                    yield point.key, run_id, point.value
            except _Drained as drained:
                for key, _, value in self._numbers([drained.run_id]):
                    yield key, run_id, value

    def sweep_runs(self, name: str | None = None) -> list[SweepRun]:
        """Parent runs of the sweep ``name`` (of all sweeps where None), newest first."""
        found = [run for run in map(sweep_of, self._sweep_rows()) if name in (None, run.sweep)]
        found.sort(key=lambda run: run.started_at, reverse=True)
        if name is not None:  # two sweeps' numbers say nothing about each other
            found.sort(key=lambda run: run.number, reverse=True)
        return found

    def attempts(self, hashes: Iterable[str] | None = None) -> dict[str, list[AttemptSummary]]:
        """Attempts by config hash, oldest first: those recorded and those still in the spool.

        Parameters
        ----------
        hashes : iterable of str, optional
            Full config hashes; all trials when left out. Trials without attempts are not in the
            result.
        """
        wanted = None if hashes is None else frozenset(hashes)
        found = each_once(self._all(wanted)).values()
        # By number first, which is given by what was recorded before: clocks of nodes differ.
        in_order = sorted(found, key=lambda s: (s.number, s.started_at))
        return grouped(in_order, lambda summary: summary.config_hash)

    def _all(self, wanted: frozenset[str] | None) -> list[AttemptSummary]:
        if wanted is not None and not wanted:
            return []
        # The spool is read first, so that a record drained in between is seen at least once.
        waiting = [s for s in self._spooled() if wanted is None or s.config_hash in wanted]
        return self.recorded(wanted) + waiting

    def _spooled(self) -> list[AttemptSummary]:
        found: dict[str, AttemptSummary] = {}
        for item in spool.unread(self.spool_root):
            if item.record.key_tag == ATTEMPT_TAG and item.record.status != RUNNING:
                run_id = f"{SPOOL_PREFIX}{item.path.parent.name}/{item.path.name}"
                summary = summary_of_record(run_id, item.record)
                self._listed[run_id] = (summary.config_hash, item.record.key)
                found[item.record.key] = summary
        return list(found.values())

    def sweep_attempts(self, name: str) -> list[AttemptSummary]:
        """Every attempt made under the sweep ``name``, oldest first."""
        return [s for group in self.attempts().values() for s in group if s.sweep == name]

    def find(self, prefix: str) -> list[str]:
        """Config hashes that begin with ``prefix`` (12 or more hex characters), sorted.

        Raises
        ------
        UsageError
            ``prefix`` is not a hash or the beginning of one.
        """
        text = prefix.strip().lower()
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX_CHARS},64}}", text):
            raise UsageError(
                f"{prefix!r} is no config hash",
                fix=f"Give {MIN_PREFIX_CHARS} to 64 hex characters, as `plan` shows them",
            )
        waiting = {s.config_hash for s in self._spooled() if s.config_hash.startswith(text)}
        return sorted(waiting | self._hashes_like(text))

    def resolve(self, prefix: str) -> str:
        """The one config hash that begins with ``prefix``.

        Raises
        ------
        UsageError
            Nobody knows it, or it begins several: the message names them.
        """
        found = self.find(prefix)
        if not found:
            fix = "See the hashes of a sweep with: python -m orchestrator plan +sweep=NAME"
            raise UsageError(f"no attempt of {prefix} is recorded", where=self.where, fix=fix)
        return only(prefix, found)

    def load(self, run_id: str) -> AttemptReport:
        """The whole report of a finished attempt; its artifacts are read with :meth:`artifact`.

        Raises
        ------
        StoreError
            The attempt still runs, its report is gone, or another version wrote it.
        """
        try:
            return AttemptReport.from_json(json.loads(self.artifact(run_id, REPORT)))
        except FileNotFoundError as error:
            raise self._lost(f"attempt {run_id} has no {REPORT}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._lost(f"{REPORT} of attempt {run_id} cannot be read: {error}") from error

    def _lost(self, what: str) -> MissingFile:
        # Its tags say that it was made: it is neither made again nor left out in silence.
        again = "Unless it still runs, put the file back, or delete the run in MLflow and try again"
        return MissingFile(what, where=self.where, fix=again)

    def load_all(self, attempts: Iterable[AttemptSummary]) -> dict[str, AttemptReport]:
        """The reports of several attempts by run id, each judged as its run's tags say.

        One whose report is gone is left out; a line on stderr says so, once.
        """
        found = {}
        for attempt, report in self._reports_of(list(attempts)):
            if report is not None:
                state = attempt.verdict or report.verdict.state
                found[attempt.run_id] = replace(
                    report,
                    # Anybody may edit a tag in MLflow: there it is where a person says so.
                    outcome=Outcome(attempt.outcome or report.outcome),
                    reason=report.reason or attempt.reason,
                    verdict=replace(report.verdict, state=state),
                )
        return found

    def _reports_of(
        self, attempts: Sequence[AttemptSummary]
    ) -> Iterable[tuple[AttemptSummary, AttemptReport | None]]:
        return [(attempt, self._report_of(attempt)) for attempt in attempts]

    def _report_of(self, attempt: AttemptSummary) -> AttemptReport | None:
        try:
            return self.load(attempt.run_id)
        except MissingFile as error:
            self._leave_out(error)
            return None

    def _leave_out(self, error: MissingFile) -> None:
        if error.what not in self._left_out:
            self._left_out.add(error.what)
            print(f"left out: {error}", file=sys.stderr)

    def reports(
        self,
        attempts: Mapping[str, Sequence[AttemptSummary]],
        loaded: dict[str, AttemptReport] | None = None,
    ) -> dict[str, list[AttemptReport]]:
        """Whole reports of every finished one of ``attempts``, by config hash; as ``load_all``.

        ``loaded`` holds those that were read before, by run id, and then these too: a tracking
        server takes a tenth of a second for one.
        """
        loaded = {} if loaded is None else loaded
        ended = {c: [a for a in found if a.outcome] for c, found in attempts.items()}
        loaded |= self.load_all(
            a for found in ended.values() for a in found if a.run_id not in loaded
        )
        return {
            config: [loaded[a.run_id] for a in found if a.run_id in loaded]
            for config, found in ended.items()
        }

    def identity(self, run_id: str) -> dict[str, Any]:
        """The configuration an attempt was made with, from its ``config.yaml``; not verified.

        Raises
        ------
        StoreError
            It is gone or is not a configuration.
        """
        import yaml

        try:
            # Ten times as fast where libyaml is there, and as safe: of hundreds of trials, seconds.
            text = self.artifact(run_id, CONFIG)
            if yaml.__with_libyaml__:
                tree = yaml.load(text, Loader=yaml.CSafeLoader)
            else:
                tree = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise self._lost(f"attempt {run_id} has no {CONFIG}") from error
        except yaml.YAMLError as error:
            raise self._lost(f"{CONFIG} of attempt {run_id} is not YAML") from error
        if not isinstance(tree, dict):
            raise self._lost(f"{CONFIG} of attempt {run_id} is no mapping")
        return tree

    def identity_of(self, attempts: Sequence[AttemptSummary]) -> dict[str, Any] | None:
        """The configuration of a trial by its finished attempts; None where all have lost it."""
        for attempt in reversed(attempts):
            try:
                return self.identity(attempt.run_id)
            except MissingFile as error:
                self._leave_out(error)
        return None

    def plan(self, run_id: str) -> dict[str, Any]:
        """What a sweep's invocation planned: ``sweep``, ``axes``, ``baseline``, ``trials`` …

        Raises
        ------
        StoreError
            The run is no sweep's.
        """
        try:
            data: dict[str, Any] = json.loads(self.artifact(run_id, PLAN))
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"run {run_id} holds no plan", where=self.where) from error
        return data

    def artifact(self, run_id: str, name: str) -> bytes:
        """Content of one artifact of a recorded or spooled attempt.

        Raises
        ------
        FileNotFoundError
            It has none of that name.
        """
        if not run_id.startswith(SPOOL_PREFIX):
            return self.file(run_id, name)
        try:
            return self._spooled_record(run_id).files[name]
        except _Drained as drained:
            return self.file(drained.run_id, name)
        except KeyError as error:
            raise FileNotFoundError(name) from error

    def artifact_names(self, run_id: str) -> list[str]:
        """Names of the artifacts of a recorded or spooled attempt, sorted."""
        if not run_id.startswith(SPOOL_PREFIX):
            return self.files(run_id)
        try:
            return sorted(self._spooled_record(run_id).files)
        except _Drained as drained:
            return self.files(drained.run_id)

    def _spooled_record(self, run_id: str) -> RunRecord:
        path = self.spool_root / run_id.removeprefix(SPOOL_PREFIX)
        if ".." in path.parts:
            raise StoreError(f"{run_id!r} is no run id", where=self.where)
        try:
            return spool.read(path).record
        except (FileNotFoundError, spool.CorruptRecord) as error:
            # A driver may have recorded it since it was listed; what is in the spool is deleted
            # after that.
            config_hash, attempt_id = self._listed.get(run_id, ("", ""))
            for summary in self.recorded(frozenset([config_hash])):
                if summary.attempt_id == attempt_id and summary.outcome is not None:
                    raise _Drained(summary.run_id) from error
            raise StoreError(
                f"{run_id} is not in the spool any more", where=self.where, fix="Ask again"
            ) from error


class MissingFile(StoreError):
    """A run does not hold what was written into it."""


class _Drained(Exception):
    """What was in the spool is a run by now."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id


def only(prefix: str, hashes: Sequence[str]) -> str:
    """The one of ``hashes``, which all begin with ``prefix``; raises ``UsageError`` for several."""
    if len(hashes) > 1:
        names = ", ".join(h[: max(len(prefix) + 4, 16)] for h in hashes[:10])
        raise UsageError(f"{prefix} begins {len(hashes)} hashes", fix=f"Say which: {names}")
    return hashes[0]
