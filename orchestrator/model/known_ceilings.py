"""Measured ceilings kept between runs: a file for each kind of hardware, and which one this is.

::

    <cache root>/ceilings/<key>.json          key: hardware fingerprint, threads, torch version
                          <key>-<what>.tried  when that was measured last, whatever came of it
                          this-cpu.json       of this machine, by kind of device
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from orchestrator.errors import ConfigError, home_directory
from orchestrator.model.measured_device import Measured

ENVIRONMENT_VARIABLE = "ORCHESTRATOR_CACHE"
KINDS = ("cuda", "cpu")
# A machine that was too busy, or where it failed, is measured again after this.
RETRY_AFTER_S = 3600.0


def ceilings_directory() -> Path:
    """Where they are kept; not made."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    root = (
        Path(named).expanduser()
        if named
        else home_directory(ENVIRONMENT_VARIABLE) / ".cache" / "orchestrator"
    )
    return root / "ceilings"


def load_ceilings(key: str) -> Measured | None:
    """What was measured on that hardware; None where nothing was, or it cannot be read."""
    return _read(ceilings_directory() / f"{_slug(key)}.json")


def keep_ceilings(key: str, measured: Measured, *, this: str | None = None) -> None:
    """Keep ``measured`` for that hardware, beside what else was measured of it.

    Of what was measured twice the newer is kept, unless only it was disturbed. A file appears whole
    or not at all.

    Parameters
    ----------
    this : str, optional
        The kind of device, where it is this machine's.

    Raises
    ------
    OSError
        The cache cannot be written.
    """
    before = load_ceilings(key)
    if before is not None:
        if not measured.is_steady and before.spread <= measured.spread:
            return
        if before.is_steady:
            measured = before.merged(measured)
    directory = ceilings_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = json.dumps(measured.to_json(), indent=1)
    for name in (_slug(key), *([f"this-{this}"] if this else [])):
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, directory / f"{name}.json")


def tried_lately(key: str, operations: Collection[str]) -> bool:
    """Whether these were measured there within the last hour, with success or not."""
    try:
        return time.time() - _mark(key, operations).stat().st_mtime < RETRY_AFTER_S
    except OSError:
        return False


def mark_tried(key: str, operations: Collection[str]) -> None:
    """Remember that it is measured now. Raises ``OSError`` where the cache cannot be written."""
    ceilings_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    _mark(key, operations).touch()


def load_this(kinds: Sequence[str] = KINDS) -> Measured:
    """The ceilings that were measured on this machine, of its GPU where it has one.

    Raises
    ------
    ConfigError
        If none were.
    """
    for kind in kinds:
        found = _read(ceilings_directory() / f"this-{kind}.json")
        if found is not None and found.memory_bytes is not None:
            return found
    raise ConfigError(
        "the ceilings of this machine are not measured yet",
        where="task.hardware=this",
        fix="Run python -m orchestrator task=ceilings",
    )


def _read(file: Path) -> Measured | None:
    try:
        return Measured.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Of another version, or damaged: measured again, it is replaced.
        return None


def _mark(key: str, operations: Collection[str]) -> Path:
    return ceilings_directory() / f"{_slug('-'.join((key, *sorted(operations))))}.tried"


def _slug(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", key)
