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


class Gone(Rejected):
    """What the record belongs to is not there any more, and nobody deleted it: a backup is back."""


class Failed(StoreError):
    """It may be this record alone that the store does not take now; the others go first."""


_ABSENT = "RESOURCE_DOES_NOT_EXIST"
_INVALID = re.compile(rf"{_ABSENT}|INVALID_PARAMETER_VALUE|BAD_REQUEST|INVALID_STATE")
_DENIED = "rejects these credentials"
_ELSEWHERE = "choose another tracking.root=DIRECTORY"

# What the text of an error says -> our error, what it means, what to do; the first that fits.
_MEANINGS: tuple[tuple[str, type[StoreError], str, str], ...] = (
    (
        "out-of-date database schema",
        StoreError,
        "was written by another version of MLflow",
        "Back it up, then run: mlflow db upgrade {where}",
    ),
    (
        "can't locate revision",
        StoreError,
        "was written by a newer version of MLflow",
        f"Install that version, or {_ELSEWHERE}",
    ),
    (
        "file is not a database|file is encrypted",
        StoreError,
        "is not a SQLite database",
        f"Move the file away, or {_ELSEWHERE}",
    ),
    (
        "database or disk is full|no space left on device|507 server error",
        StoreUnavailable,
        "no space left on the disk",
        "Free some; `python -m orchestrator sync` then records what waits in the spool",
    ),
    (
        "413 client error|entity too large",
        Failed,
        "the server takes no file as large as one of this record",
        "Raise its limit, or that of the proxy before it (nginx: client_max_body_size)",
    ),
    (
        "disk image is malformed|disk I/O error",
        StoreError,
        "is damaged",
        "Restore it from a backup; what waits in the spool is not lost",
    ),
    (
        "readonly database|unable to open database file|permission denied",
        StoreError,
        "cannot be opened for writing",
        "Check its permissions",
    ),
    (
        "database (?:table )?is locked|database is busy|TEMPORARILY_UNAVAILABLE",
        StoreUnavailable,
        "is locked by another process",
        "Try again when that is done",
    ),
    (
        r"\b40[13]\b|not authenticated|unauthorized|permission_denied",
        StoreError,
        _DENIED,
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN",
    ),
    (
        r"max retries exceeded|connection (?:refused|aborted|reset)|failed to establish|"
        r"timed? ?out|name or service not known|temporary failure in name resolution|"
        r"no route to host|\b50[0234]\b|"
        r"remote end closed|broken pipe|too many 50|newconnectionerror",
        StoreUnavailable,
        "the tracking server does not answer",
        "Start it, or check tracking.uri",
    ),
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
    for pattern, kind, what, fix in _MEANINGS:
        if re.search(pattern, text, re.IGNORECASE) and not (
            what == _DENIED and where.startswith("sqlite")
        ):
            return kind(what, where=where, fix=fix.format(where=where))
    if any(name in module for name in ("mlflow", "sqlalchemy", "sqlite3", "requests", "alembic")):
        first = " ".join(str(error).split())
        invalid = _INVALID.search(text)
        ours = Failed if invalid is None else Gone if invalid[0] == _ABSENT else Rejected
        return ours(f"the tracking store failed: {first[:300]}", where=where)
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
