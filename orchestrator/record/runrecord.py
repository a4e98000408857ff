"""What one MLflow run shall hold: computed once, before the spool, so that replaying it is safe.

A record carries every timestamp, step and value it will write. Written twice into the same run it
changes nothing, because MLflow keys a metric point by all of these; so a record that was half
written when the store went away is simply written again.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.attempt import Outcome
from orchestrator.conditions import GROUPS
from orchestrator.errors import StoreError
from orchestrator.record.artifacts import safe_name

RECORD_VERSION = 1
RUNNING = "RUNNING"
# The states of a verdict.
VERDICTS = ("valid", "flagged", "invalid", "unverified")
TERMINAL = frozenset({"FINISHED", "FAILED", "KILLED"})

# The tag that names a run's record: by it a run is found again after a lost answer or a crash.
ATTEMPT_TAG = "attempt_id"
SWEEP_TAG = "sweep_id"
PARENT_TAG = "mlflow.parentRunId"
# On the run of a pure sweep: how many cells its table holds.
CELLS_TAG = "cells"
# On the run of each step of a search: all of them together are one.
SEARCH_TAG = "search_id"
# On the run of a sweep: which of that sweep's it is, from 1.
NUMBER_TAG = "run_number"
DIGEST_TAG = "record_digest"
# Identifiers of the groups of conditions: what attempts may be filtered by.
CONDITION_TAGS = {group: f"conditions.{group}" for group in GROUPS}


class MetricPoint(NamedTuple):
    """One point of a metric's history; a record holds thousands of them."""

    key: str
    value: float
    timestamp_ms: int
    step: int = 0


@dataclass(frozen=True)
class RunRecord:
    """Brings one run to one state.

    Attributes
    ----------
    key_tag, key : str
        ``attempt_id`` or ``sweep_id``, and its value: the run this is about.
    status : str
        MLflow's; ``RUNNING`` for a beginning, else set last, after all the rest.
    experiment : str
        The sweep's name.
    parent : str or None
        ``sweep_id`` of the parent run.
    files : dict of str to bytes
        Artifacts by relative name.
    experiment_tags : dict of str to str
        For the experiment, not the run; written as far as the store lets us.
    """

    key_tag: str
    key: str
    status: str
    experiment: str
    name: str
    start_ms: int
    end_ms: int | None = None
    parent: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[MetricPoint, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    experiment_tags: dict[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A zip archive of ``record.json`` and the files."""
        data = {k: v for k, v in self.__dict__.items() if k != "files"}
        data["version"] = RECORD_VERSION
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("record.json"), json.dumps(data, allow_nan=False))
            for name, content in self.files.items():
                archive.writestr(zipfile.ZipInfo(f"files/{safe_name(name)}"), content)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, *, files: bool = True) -> RunRecord:
        """Inverse of :meth:`to_bytes`; raises ``ValueError`` on what it did not write.

        ``files=False`` leaves the artifacts out, for who only wants to know what there is.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                data: dict[str, Any] = json.loads(archive.read("record.json"))
                names = [n for n in archive.namelist() if n.startswith("files/")]
                loaded = {
                    safe_name(n.removeprefix("files/")): archive.read(n) for n in names if files
                }
        except (zipfile.BadZipFile, KeyError, OSError, EOFError) as error:
            raise ValueError(f"not a run record: {error}") from error
        if data.pop("version", None) != RECORD_VERSION:
            raise ValueError("a run record of another version")
        data["metrics"] = tuple(MetricPoint(*point) for point in data["metrics"])
        try:
            return cls(**data, files=loaded)
        except TypeError as error:
            raise ValueError(f"not a run record: {error}") from error


def digest_of(content: bytes) -> str:
    """SHA-256 of a record's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def outcome_of(run_id: str, tags: Mapping[str, str]) -> str | None:
    """How the attempt of a run ended; None while it runs.

    Raises
    ------
    StoreError
        The tag is no outcome: anybody may edit it.
    """
    return _one_of([outcome.value for outcome in Outcome], "outcome", run_id, tags)


def verdict_of(run_id: str, tags: Mapping[str, str]) -> str | None:
    """Whether the measurement of a run may be believed; None while it runs. Raises the same."""
    return _one_of(VERDICTS, "verdict", run_id, tags)


def _one_of(known: Sequence[str], tag: str, run_id: str, tags: Mapping[str, str]) -> str | None:
    found = tags.get(tag)
    if found and found not in known:
        raise StoreError(
            f"run {run_id}: its tag {tag} is {found!r}",
            fix=f"Set it in MLflow to one of {', '.join(known)}, or delete the run",
        )
    return found or None
