"""What every test gets: places of its own, so that tests and sweeps on this machine never meet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from testing.commands import orchestrator
from testing.near import near
from testing.person import PLANTED, SWEEP, Swept, sweep

# What is drawn does not decide whether a run is green, and no example has a time limit: other
# examples are looked for with --hypothesis-profile=searching, as `make test-all` does.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("searching", deadline=None, max_examples=300)
settings.load_profile("steady")

# A job started in the background ignores Ctrl-C, and what it starts would too: tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Give the whole run one directory of core locks: workers' sweeps keep out of each other's way.

    And one thread to each process that does not ask for more. Set where the run begins, which is
    also where its workers inherit it from.
    """
    if not hasattr(config, "workerinput"):
        # Not under tmp_path: a socket's path may have 108 characters.
        place = tempfile.TemporaryDirectory(prefix="orchestrator-test-")
        config.add_cleanup(place.cleanup)
        os.environ["ORCHESTRATOR_LOCAL_DIR"] = str(Path(place.name) / "local")
        # Workers share the cores: threads of one that wait in a loop are in the way of another's.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together what shares something, and begin with it.

    Session and module fixtures are a worker's own: the tests of a file go to one worker, and where
    files share a server they name a group (``xdist_group``). Such groups take longest, and the last
    one to begin decides when the run ends.
    """
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session", autouse=True)
def _own_places() -> Iterator[None]:
    """State of the person who runs the tests stays untouched."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-test-") as name:
        saved = dict(os.environ)
        os.environ["XDG_STATE_HOME"] = str(Path(name) / "state")
        yield
        os.environ.clear()
        os.environ.update(saved)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one recorded sweep, ``adhoc``, of two trials; only to be read."""
    place = tmp_path_factory.mktemp("recorded")
    with near():
        done = orchestrator(place, "task=noop", "task.value=1,2", "device=cpu", "verdict=off")
    assert done.code == 0, done.err
    return place


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The main job, once: two formats of the packaged model through Ray, secrets lying about.

    What uses it is of the group ``swept``.
    """
    words = (
        *SWEEP,
        f"sweep.description=uses {PLANTED}",
        "--json",
    )
    secrets = {"SOME_SERVICE_TOKEN": PLANTED, "HF_TOKEN": f"hf_{PLANTED}"}
    done = sweep(tmp_path_factory.mktemp("person"), words, **secrets)
    assert done.code == 0, done.err
    return done


class Tmux:
    """A terminal of a known size that a person could sit at."""

    def __init__(self) -> None:
        self._socket = f"orchestrator-{uuid.uuid4().hex[:8]}"

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._socket, "-f", "/dev/null", *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def open(self, command: str, *, width: int, height: int, where: Path) -> None:
        """Run ``command`` in a new terminal that knows its size from itself alone."""
        # A test runner may export the width of its own output, and that it is a CI job.
        command = f"env -u COLUMNS -u LINES -u CI {command}"
        size = ("-x", str(width), "-y", str(height))
        self("new-session", "-d", *size, "-c", str(where), command)

    def lines(self) -> list[str]:
        """What is on the screen, without empty lines."""
        return [line.rstrip() for line in self("capture-pane", "-p").splitlines() if line.strip()]

    def wait_for(self, *said: str) -> list[str]:
        """The screen, once it has all that is ``said``."""
        deadline = time.monotonic() + 60
        while True:
            lines = self.lines()
            if all(each in "\n".join(lines) for each in said):
                return lines
            assert time.monotonic() < deadline, lines
            time.sleep(0.2)

    def close(self) -> None:
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, timeout=30)


@pytest.fixture
def tmux() -> Iterator[Tmux]:
    """A real terminal; skips where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    terminal = Tmux()
    yield terminal
    terminal.close()
