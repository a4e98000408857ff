"""The one place where MLflow is woken, and where its errors become ours.

MLflow takes two seconds to import, logs migrations to the terminal and reports its usage to its
makers; none of that is a person's business here. Nothing else in this package imports it at module
level: ``mlflow_quiet()`` comes first, always.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.errors import OrchestratorError, StoreError, StoreUnavailable

# Retrying is our drain's business, which also stops when a person wants to; MLflow's own seven
# doubling waits would hold Ctrl-C for minutes.
QUIET_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}

# For an `mlflow server` of ours: without it, seven more processes wait for jobs nobody submits.
SERVER_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def mlflow_quiet() -> None:
    """Make MLflow silent and private; call before importing any of it."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Rejected(StoreError):
    """The store works but will never take this record; the others must not wait for it."""


_INVALID = re.compile(r"INVALID_PARAMETER_VALUE|RESOURCE_DOES_NOT_EXIST|BAD_REQUEST|INVALID_STATE")
_BUSY = re.compile(r"database (?:table )?is locked|database is busy|TEMPORARILY_UNAVAILABLE", re.I)
_FULL = re.compile(r"database or disk is full|no space left on device", re.I)
_READ_ONLY = re.compile(r"readonly database|unable to open database file|permission denied", re.I)
_NOT_A_DATABASE = re.compile(r"file is not a database|file is encrypted", re.I)
_MALFORMED = re.compile(r"disk image is malformed|disk I/O error", re.I)
_OLD_SCHEMA = re.compile(r"out-of-date database schema", re.I)
_NEW_SCHEMA = re.compile(r"can't locate revision", re.I)
_DENIED = re.compile(r"\b40[13]\b|not authenticated|unauthorized|permission_denied", re.I)
_AWAY = re.compile(
    r"max retries exceeded|connection (?:refused|aborted|reset)|failed to establish|timed? ?out|"
    r"name or service not known|temporary failure in name resolution|no route to host|"
    r"\b50[0234]\b|remote end closed|broken pipe|too many 50|newconnectionerror",
    re.I,
)


def to_store_error(error: BaseException, where: str) -> StoreError | None:
    """What an error of MLflow, SQLAlchemy, SQLite or the network means; None if it is not theirs.

    Parameters
    ----------
    where : str
        The store's address, without credentials.
    """
    chain: list[str] = []
    seen: BaseException | None = error
    module = ""
    while seen is not None and len(chain) < 6:
        module += f" {type(seen).__module__}"
        chain.append(f"{type(seen).__name__}: {seen} {getattr(seen, 'error_code', '')}")
        seen = seen.__cause__ or seen.__context__
    text = " | ".join(chain)
    if _OLD_SCHEMA.search(text):
        fix = f"Back it up, then run: mlflow db upgrade {where}"
        return StoreError("was written by another version of MLflow", where=where, fix=fix)
    if _NEW_SCHEMA.search(text):
        return StoreError(
            "was written by a newer version of MLflow",
            where=where,
            fix="Install that version, or choose another tracking.root=DIRECTORY",
        )
    if _NOT_A_DATABASE.search(text):
        fix = "Move the file away, or choose another tracking.root=DIRECTORY"
        return StoreError("is not a SQLite database", where=where, fix=fix)
    if _FULL.search(text):
        fix = "Free some; `python -m orchestrator sync` then records what waits in the spool"
        return StoreUnavailable("no space left on the disk", where=where, fix=fix)
    if _MALFORMED.search(text):
        fix = "Restore it from a backup; what waits in the spool is not lost"
        return StoreError("is damaged", where=where, fix=fix)
    if _READ_ONLY.search(text):
        return StoreError("cannot be opened for writing", where=where, fix="Check its permissions")
    if _BUSY.search(text):
        return StoreUnavailable(
            "is locked by another process", where=where, fix="Try again when that is done"
        )
    if _DENIED.search(text) and not where.startswith("sqlite"):
        return StoreError(
            "rejects these credentials",
            where=where,
            fix="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN",
        )
    if _AWAY.search(text):
        return StoreUnavailable(
            "the tracking server does not answer",
            where=where,
            fix="Start it, or check tracking.uri",
        )
    if any(name in module for name in ("mlflow", "sqlalchemy", "sqlite3", "requests", "alembic")):
        first = " ".join(str(error).split())
        kind = Rejected if _INVALID.search(text) else StoreError
        return kind(f"the tracking store failed: {first[:300]}", where=where)
    return None


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise :class:`StoreError` or :class:`StoreUnavailable` for what the store raises."""
    try:
        yield
    except OrchestratorError:
        raise
    except Exception as error:
        ours = to_store_error(error, where)
        if ours is None:
            raise
        raise ours from error
