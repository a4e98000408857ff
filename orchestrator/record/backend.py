"""Writes runs through MLflow's store API, the same for SQLite and for a server."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from orchestrator.errors import StoreError
from orchestrator.record.artifacts import safe_name
from orchestrator.record.boundary import Failed, mlflow_quiet, translated
from orchestrator.record.runrecord import RunRecord

# MLflow's limits for one log_batch.
MAX_PARAMS, MAX_TAGS, MAX_ENTITIES = 100, 100, 1_000
PAGE_SIZE = 1_000
# Run ids in one filter: a database allows so many variables in a statement.
MAX_ASKED_RUNS = 500
# What is wrong with a file's own name (one is also another's folder), not with the disk.
_OF_A_NAME = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class RunRow:
    """A run as the store knows it; times in milliseconds since 1970."""

    run_id: str
    status: str
    start_ms: int
    end_ms: int | None
    artifact_uri: str
    experiment_id: str
    tags: dict[str, str]


class Backend:
    """MLflow's store, reduced to what recording needs.

    Every method raises :class:`StoreUnavailable` where a later try may succeed, and
    :class:`StoreError` where it will not.

    Parameters
    ----------
    store : mlflow.store.tracking.abstract_store.AbstractStore
        ``SqlAlchemyStore`` or ``RestStore``; their API, unlike ``MlflowClient``'s, prints nothing
        and sets an end time and a status in one call.
    where : str
        The store's address for messages, without credentials.
    uri : str
        The tracking URI, for artifact repositories.
    artifact_root : Path or None
        Where runs keep their files; None lets the server decide.
    """

    def __init__(self, store: Any, where: str, uri: str, artifact_root: Path | None) -> None:
        self._store = store
        self._where = where
        self._uri = uri
        self._artifact_root = artifact_root

    def experiment(self, name: str) -> str:
        """The id of the active experiment ``name``, made if there is none.

        MLflow keeps the name of a deleted experiment taken; its successor is ``name (2)``.
        """
        from mlflow.exceptions import MlflowException

        with translated(self._where):
            for number in range(1, 100):
                candidate = name if number == 1 else f"{name} ({number})"
                found = self._store.get_experiment_by_name(candidate)
                if found is None:
                    try:
                        return str(self._create_experiment(candidate))
                    except MlflowException as error:
                        if error.error_code != "RESOURCE_ALREADY_EXISTS":
                            raise
                        # Another driver was faster.
                        found = self._store.get_experiment_by_name(candidate)
                if found is not None and found.lifecycle_stage == "active":
                    return str(found.experiment_id)
        raise StoreError(f"experiment {name!r} was deleted too often", where=self._where)

    def _create_experiment(self, name: str) -> str:
        # Local paths are written out: MLflow would resolve its default against the current
        # directory of whoever made the database.
        location = None if self._artifact_root is None else self._artifact_root.as_uri()
        from mlflow.entities import ExperimentTag

        # What the UI opens with: the table of runs, not the pages about agents and prompts.
        kind = ExperimentTag("mlflow.experimentKind", "custom_model_development")
        return str(self._store.create_experiment(name, location, [kind]))

    def create_run(
        self, experiment_id: str, name: str, start_ms: int, tags: Mapping[str, str]
    ) -> RunRow:
        """A new run, RUNNING."""
        from mlflow.entities import RunTag

        with translated(self._where):
            run = self._store.create_run(
                experiment_id=experiment_id,
                user_id="orchestrator",
                start_time=start_ms,
                tags=[RunTag(key, value) for key, value in tags.items()],
                run_name=name,
            )
        return _row(run)

    def put_files(self, run: RunRow, files: Mapping[str, bytes]) -> None:
        """Store artifacts; a name that leaves the run's directory is refused."""
        if not files:
            return
        directory = local_directory(run.artifact_uri)
        if directory is not None:
            write_files(directory, files)
            return
        with tempfile.TemporaryDirectory(prefix="orchestrator-") as temporary:
            write_files(Path(temporary), files)
            with translated(self._where):
                self._elsewhere(run).log_artifacts(temporary)

    def finish(self, run_id: str, record: RunRecord, tags: Mapping[str, str]) -> None:
        """All that a run holds, ``tags``, and then its terminal status; may be repeated."""
        from mlflow.entities import Metric, Param

        points = [Metric(m.key, m.value, m.timestamp_ms, m.step) for m in record.metrics]
        pairs = [Param(key, value) for key, value in record.params.items()]
        with translated(self._where):
            while points or pairs:
                some = pairs[:MAX_PARAMS]
                room = MAX_ENTITIES - len(some)
                self._store.log_batch(run_id, points[:room], some, [])
                points, pairs = points[room:], pairs[MAX_PARAMS:]
        # Tags come last of all: they say that the rest is there.
        self.tag(run_id, tags)
        self.end(run_id, record.status, record.end_ms or record.start_ms)

    def end(self, run_id: str, status: str, end_ms: int) -> None:
        """Give a run its terminal status."""
        from mlflow.entities import RunStatus

        with translated(self._where):
            self._store.update_run_info(run_id, RunStatus.from_string(status), end_ms, None)

    def reopen(self, run_id: str) -> None:
        """Make a run that has ended RUNNING again."""
        from mlflow.entities import RunStatus

        with translated(self._where):
            self._store.update_run_info(run_id, RunStatus.RUNNING, None, None)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        marks = [RunTag(key, value) for key, value in tags.items()]
        with translated(self._where):
            for first in range(0, len(marks), MAX_TAGS):
                self._store.log_batch(run_id, [], [], marks[first : first + MAX_TAGS])

    def tag_experiment(self, experiment_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of an experiment."""
        from mlflow.entities import ExperimentTag

        with translated(self._where):
            for key, value in tags.items():
                self._store.set_experiment_tag(experiment_id, ExperimentTag(key, value))

    def delete_run(self, run_id: str) -> None:
        """Move a run to MLflow's bin."""
        with translated(self._where):
            self._store.delete_run(run_id)

    def get_run(self, run_id: str) -> RunRow:
        """One run; raises ``StoreError`` if there is none of that id."""
        with translated(self._where):
            return _row(self._store.get_run(run_id))

    def search(
        self, condition: str, experiments: list[str] | None = None, *, page_size: int = PAGE_SIZE
    ) -> Iterator[RunRow]:
        """Active runs that meet an MLflow filter, newest first, a page at a time."""
        yield from map(_row, self._search(condition, experiments, page_size))

    def _search(self, condition: str, experiments: list[str] | None, page_size: int) -> Any:
        from mlflow.entities import ViewType

        ids = self.experiment_ids() if experiments is None else experiments
        if not ids:
            return ()
        return self._pages(
            lambda token: self._store.search_runs(
                ids, condition, ViewType.ACTIVE_ONLY, page_size, None, token
            )
        )

    def latest_metrics(self, run_ids: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        """Key, run and value of the newest point of every metric of these runs."""
        experiments = self.experiment_ids() if run_ids else []
        for first in range(0, len(run_ids), MAX_ASKED_RUNS):
            some = ", ".join(f"'{run_id}'" for run_id in run_ids[first : first + MAX_ASKED_RUNS])
            condition = f"attributes.run_id IN ({some})"
            for run in self._search(condition, experiments, PAGE_SIZE):
                for key, value in run.data.metrics.items():
                    yield key, run.info.run_id, value

    def experiment_ids(self) -> list[str]:
        """Every active experiment."""
        from mlflow.entities import ViewType

        found = self._pages(
            lambda token: self._store.search_experiments(
                ViewType.ACTIVE_ONLY, PAGE_SIZE, None, None, token
            )
        )
        return [str(experiment.experiment_id) for experiment in found]

    def _pages(self, ask: Callable[[str | None], Any]) -> Iterator[Any]:
        """All that the pages hold which ``ask(token)`` gives one by one."""
        token: str | None = None
        while True:
            with translated(self._where):
                page = ask(token)
            yield from page
            token = page.token
            if not token:
                return

    def settle(self) -> None:
        """Make the files put so far durable; a server's are its own business."""
        if self._artifact_root is not None:
            settle(self._artifact_root)

    def read_file(self, run: RunRow, name: str) -> bytes:
        """One artifact's content; raises ``FileNotFoundError`` if the run has none of that name."""
        directory = local_directory(run.artifact_uri)
        if directory is not None:
            return (directory / safe_name(name)).read_bytes()
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="orchestrator-") as temporary:
            try:
                path = self._elsewhere(run).download_artifacts(safe_name(name), temporary)
            except (MlflowException, OSError) as error:
                if "404" in str(error) or "No such" in str(error) or "does not exist" in str(error):
                    raise FileNotFoundError(name) from error
                with translated(self._where):
                    raise
            return Path(path).read_bytes()

    def list_files(self, run: RunRow) -> list[str]:
        """Names of every artifact of a run."""
        directory = local_directory(run.artifact_uri)
        if directory is not None:
            return sorted(
                str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
            )
        names: list[str] = []
        folders: list[str | None] = [None]
        with translated(self._where):
            repository = self._elsewhere(run)
            while folders:
                for info in repository.list_artifacts(folders.pop()):
                    (folders if info.is_dir else names).append(info.path)
        return sorted(names)

    def _elsewhere(self, run: RunRow) -> Any:
        """The artifact repository of a run whose files are not on this host."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(run.artifact_uri, self._uri)


def server_backend(uri: str, where: str) -> Backend:
    """A tracking server's store."""
    mlflow_quiet()
    with translated(where):
        from mlflow.store.tracking.rest_store import RestStore
        from mlflow.utils.credentials import get_default_host_creds

        store = RestStore(functools.partial(get_default_host_creds, uri))
    return Backend(store, where, uri, None)


def local_directory(artifact_uri: str) -> Path | None:
    """The directory an artifact URI names, if it is one of this host's."""
    parsed = urlparse(artifact_uri)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(artifact_uri) if not parsed.scheme and os.path.isabs(artifact_uri) else None


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write each file under ``directory``, never beside or above it.

    Not synced one by one, at some 5 ms each: the spool keeps its record until :func:`settle`.
    """
    from orchestrator.record.spool import storage_error

    try:
        for name, content in files.items():
            path = directory / safe_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        if error.errno in _OF_A_NAME:
            raise Failed(f"cannot be written: {error.strerror}", where=str(path)) from error
        raise storage_error(error, directory) from error


def settle(directory: Path) -> None:
    """Return once everything written to ``directory``'s file system would survive a power cut."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        # Python has no name for syncfs(2); os.sync() waits for every other disk too.
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None or syncfs(descriptor) != 0:
            os.sync()
    finally:
        os.close(descriptor)


def _row(run: Any) -> RunRow:
    info = run.info
    return RunRow(
        run_id=info.run_id,
        status=info.status,
        start_ms=int(info.start_time or 0),
        end_ms=int(info.end_time) if info.end_time else None,
        artifact_uri=info.artifact_uri,
        experiment_id=str(info.experiment_id),
        tags=dict(run.data.tags),
    )
