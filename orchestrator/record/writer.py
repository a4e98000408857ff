"""Writes run records to a store: artifacts, then metrics, then tags, the terminal status last.

A run whose status is terminal is therefore whole. What a crash or a lost answer left half done is
found by its key tag and written again, which changes nothing that is already there.
"""

from __future__ import annotations

from contextlib import suppress

from orchestrator.attempt import Outcome
from orchestrator.errors import StoreError
from orchestrator.record.backend import Backend, RunRow
from orchestrator.record.boundary import Gone, Rejected
from orchestrator.record.runrecord import (
    DIGEST_TAG,
    PARENT_TAG,
    RUNNING,
    SWEEP_TAG,
    TERMINAL,
    RunRecord,
)


class Writer:
    """Applies records to one store, remembering which run is whose.

    Parameters
    ----------
    backend : Backend
    replay : bool
        The records may have been written before (another process's spool): look for every run
        before making one. A live driver knows that its own are new, and saves the search.
    """

    def __init__(self, backend: Backend, *, replay: bool = False) -> None:
        self._backend = backend
        self._replay = replay
        self._runs: dict[str, RunRow] = {}
        self._doubtful: set[str] = set()
        self._orphaned: set[str] = set()
        self._experiments: dict[str, str] = {}

    def apply(self, record: RunRecord, digest: str, *, only_if_open: bool = False) -> str:
        """Bring the record's run to the record's state; returns the run's id.

        Parameters
        ----------
        record : RunRecord
        digest : str
            Of the record as it lay in the spool; a whole run that carries it is left alone.
        only_if_open : bool
            Leave a run that has ended as it is, whatever it says: the record is a guess.

        Raises
        ------
        StoreError
            See :class:`orchestrator.record.backend.Backend`; the same call may be made again.
        """
        try:
            return self._apply(self._find_or_create(record), record, digest, only_if_open)
        except Gone:
            # The store was put back to what it was before: what it has forgotten is written again.
            self._runs.clear()
            return self._apply(self._find_or_create(record), record, digest, only_if_open)

    def _apply(self, run: RunRow, record: RunRecord, digest: str, only_if_open: bool) -> str:
        if record.status == RUNNING:
            if run.status == RUNNING:
                self._backend.put_files(run, record.files)
            return run.run_id
        if run.status in TERMINAL and (only_if_open or run.tags.get(DIGEST_TAG) == digest):
            if not only_if_open:
                # A power cut may have taken the files of a run that the database kept.
                self._backend.put_files(run, record.files)
            return run.run_id
        self._backend.put_files(run, record.files)
        tags = {k: v for k, v in record.tags.items() if run.tags.get(k) != v}
        tags[DIGEST_TAG] = digest
        if record.experiment_tags:
            # Before the end, which makes a second writing of the record leave everything alone. A
            # convenience must not hold up results: an older server may refuse so long a value.
            with suppress(StoreError):
                self._backend.tag_experiment(run.experiment_id, record.experiment_tags)
        self._backend.finish(run.run_id, record, tags)
        return run.run_id

    def settle(self) -> None:
        """Return once what was applied would survive a power cut; then the spool may forget it."""
        self._backend.settle()

    def forget(self, key: str) -> None:
        """Drop what is remembered of a run that ended, so that memory stays flat."""
        self._runs.pop(key, None)

    def _find_or_create(self, record: RunRecord) -> RunRow:
        key = record.key
        run = self._runs.get(key)
        if run is None and (self._replay or key in self._doubtful):
            run = self._find(record.key_tag, key)
        if run is None:
            run = self._create(record)
        self._runs[key] = run
        return run

    def _create(self, record: RunRecord) -> RunRow:
        tags = dict(record.tags)
        if record.status != RUNNING:
            # Until it is terminal the run must not look finished to a reader of tags.
            for key in ("outcome", "verdict", "reason"):
                tags.pop(key, None)
        if record.parent is not None:
            parent = self._parent(record.parent)
            if parent is not None:
                tags[PARENT_TAG] = parent.run_id
        # If the answer is lost the run may exist all the same.
        self._doubtful.add(record.key)
        try:
            run = self._new_run(record, tags)
        except Rejected:
            # The experiment may have been deleted since it was looked up.
            self._experiments.pop(record.experiment, None)
            run = self._new_run(record, tags)
        self._doubtful.discard(record.key)
        return run

    def _new_run(self, record: RunRecord, tags: dict[str, str]) -> RunRow:
        experiment = self._experiments.get(record.experiment)
        if experiment is None:
            experiment = self._backend.experiment(record.experiment)
            self._experiments[record.experiment] = experiment
        return self._backend.create_run(experiment, record.name, record.start_ms, tags)

    def _parent(self, sweep_id: str) -> RunRow | None:
        if sweep_id not in self._runs and sweep_id not in self._orphaned:
            found = self._find(SWEEP_TAG, sweep_id)
            if found is None:
                self._orphaned.add(sweep_id)
            else:
                self._runs[sweep_id] = found
        return self._runs.get(sweep_id)

    def _find(self, key_tag: str, key: str) -> RunRow | None:
        found = list(self._backend.search(f"tags.{key_tag} = '{key}'"))
        if not found:
            return None
        # Two runs of one attempt: a create whose answer was lost, made again. The whole one stays.
        # One that was ended as lost is not whole: that was another driver's guess.
        found.sort(
            key=lambda run: (
                run.status not in TERMINAL,
                run.tags.get("outcome") == Outcome.LOST,
                run.start_ms,
            )
        )
        for surplus in found[1:]:
            self._backend.delete_run(surplus.run_id)
        return found[0]
