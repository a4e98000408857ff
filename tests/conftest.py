"""What every test gets: places of its own, so that tests and sweeps on this machine never meet."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# A job started in the background ignores Ctrl-C, and what it starts would too: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_places() -> Iterator[None]:
    """State and core locks of the person who runs the tests stay untouched."""
    # Not under tmp_path: a socket's path may have 108 characters.
    with tempfile.TemporaryDirectory(prefix="orchestrator-test-") as name:
        saved = dict(os.environ)
        os.environ["XDG_STATE_HOME"] = str(Path(name) / "state")
        os.environ["ORCHESTRATOR_LOCAL_DIR"] = str(Path(name) / "local")
        yield
        os.environ.clear()
        os.environ.update(saved)
