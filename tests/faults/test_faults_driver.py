"""The command itself killed at every stage of a sweep; the same command then makes the rest."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.record import open_store
from testing import faults
from testing.commands import orchestrator
from testing.world import DriverProcess, World, measured

TRIALS = 6
WORDS = [
    "task=noop",
    f"task.value=range({TRIALS})",
    "device=cpu",
    "cluster.cpus=2",
    "resources.cpus=1",
    "telemetry.enabled=false",
    "preflight=off",
    "--json",
]


def planning(world: World, driver: DriverProcess) -> None:
    time.sleep(0.3)  # imports and Hydra take longer
    assert not (world.directory / "mlruns" / "spool.drivers").exists()


def submitting(world: World, driver: DriverProcess) -> None:
    faults.until(lambda: any(p.name() == "raylet" for p in faults.children(driver)), driver)


def running(world: World, driver: DriverProcess) -> None:
    faults.until(lambda: measured(faults.children(driver)), driver)


def recording(world: World, driver: DriverProcess) -> None:
    """With results on disk that the store has not taken: its database is locked."""
    running(world, driver)
    database = world.directory / "mlruns" / "mlflow.db"
    # It appears whole; who connects before that makes a file of his own.
    faults.until(database.exists, driver)
    with locked(database):
        faults.let_go(world, 2)
        faults.until(lambda: len(spooled(world)) >= 2, driver)


def spooled(world: World) -> list[Path]:
    """Reports on disk that the store has not taken."""
    return list((world.directory / "mlruns" / "spool").rglob("*.finish"))


@contextlib.contextmanager
def locked(database: Path) -> Any:
    """Nobody else may write to ``database`` meanwhile."""
    with contextlib.closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as held:
        held.execute("BEGIN IMMEDIATE")
        yield
        held.execute("ROLLBACK")


Stage = Callable[[World, DriverProcess], None]
STAGES: Sequence[Stage] = (planning, submitting, running, recording)


@pytest.mark.parametrize(
    ("stages", "signals"),
    [
        # Where most is at stake: it measures, and has results that the store does not.
        pytest.param([recording], [signal.SIGKILL], id="SIGKILL"),
        pytest.param(STAGES, [signal.SIGKILL] * 4, id="SIGKILL-each", marks=pytest.mark.long),
        pytest.param(
            STAGES,
            [signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM],
            id="SIGINT-SIGTERM-each",
            marks=pytest.mark.long,
        ),
    ],
)
def test_killed_at_every_stage(
    world: World, stages: Sequence[Stage], signals: Sequence[signal.Signals]
) -> None:
    driver = DriverProcess(world, [*WORDS, faults.held(world, 0)])
    mlruns = world.directory / "mlruns"
    for stage, number in zip(stages, signals, strict=True):
        driver.start()
        stage(world, driver)
        driver.send(number)
        code = driver.wait()
        assert code != 0, f"{stage.__name__} was over already:\n{driver.tail()}"
        faults.nothing_left(world)
        assert not world.held_directories()
    faults.let_go(world)
    driver.start()
    assert driver.wait() == 0, driver.tail()
    said = json.loads(driver.output.read_text())
    outcomes, each, running_runs = faults.recorded(mlruns)
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each), "each measured, none twice"
    assert outcomes["ok"] == TRIALS
    assert set(outcomes) <= {"ok", "lost", "cancelled"}, outcomes
    assert running_runs == [], "runs of dead drivers are reaped"
    # What was measured before each kill was kept, and only the rest was made.
    assert said["cached"] + said["outcomes"]["ok"] == TRIALS
    assert said["cached"] >= 2, "two results waited in the spool when the last driver died"
    faults.nothing_left(world)


@pytest.mark.long
def test_a_signal_to_all_our_processes_is_a_clean_stop(world: World) -> None:
    """As service managers, batch systems and `timeout` send it."""
    driver = DriverProcess(world, [*WORDS, faults.held(world, 0)])
    driver.start()
    running(world, driver)
    assert driver.process is not None
    os.killpg(driver.process.pid, signal.SIGTERM)
    assert driver.wait() == 130, driver.tail()
    assert driver.tail().splitlines()[-1].startswith("interrupted: "), driver.tail()
    assert "***" not in driver.tail(), "Ray's own handler"
    faults.nothing_left(world)
    outcomes, _, running_runs = faults.recorded(world.directory / "mlruns")
    assert set(outcomes) <= {"ok", "cancelled"}, driver.tail()
    assert running_runs == []


@pytest.fixture
def small_disk(world: World) -> Iterator[Path]:
    """A file system of 48 MiB where results are kept."""
    place = world.directory / "mlruns"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.long
def test_a_full_disk_is_said_in_one_line_and_loses_nothing(world: World, small_disk: Path) -> None:
    """Spool, database and artifacts are on it; when there is room again nothing is missing."""
    driver = DriverProcess(world, [*WORDS, "task.sleep_s=0.4"])
    driver.start()
    running(world, driver)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65_536)
    faults.until(lambda: "no space left on the disk" in driver.tail(), driver)
    ballast.unlink()
    # Whether it goes on depends on what met the full disk: the store waits, the spool gives up.
    assert driver.wait() in (0, 2), driver.tail()
    assert "Traceback" not in driver.tail()
    assert "this is a bug" not in driver.tail()
    assert "is damaged" not in driver.tail(), "a database half made is made anew"
    faults.nothing_left(world)
    driver.start()
    assert driver.wait() == 0, driver.tail()
    outcomes, each, open_runs = faults.recorded(small_disk)
    assert len(each) == TRIALS
    assert all(trial["ok"] == 1 for trial in each), outcomes
    assert open_runs == []
    assert not list((small_disk / "spool").glob("corrupt*"))


# Every clock of Python's in every process steps back by an hour once the file is there.
STEP = """
import os, time
_time = time.time
time.time = lambda: _time() - 3600.0 * os.path.exists({trigger!r})
"""


@pytest.mark.long
def test_a_clock_set_back_and_a_database_locked_until_after_the_sweep(world: World) -> None:
    """Measuring waits for neither; the driver waits for the database."""
    trigger = world.directory / "an hour ago"
    site = world.directory / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(STEP.format(trigger=str(trigger)))
    world.environment["PYTHONPATH"] = f"{site}{os.pathsep}{world.environment['PYTHONPATH']}"
    words = [*WORDS, faults.held(world, 0)]
    driver = DriverProcess(world, words)
    driver.start()
    running(world, driver)
    trigger.touch()
    mlruns = world.directory / "mlruns"
    faults.until((mlruns / "mlflow.db").exists, driver)
    with locked(mlruns / "mlflow.db"):
        faults.let_go(world)
        # Reports lie on disk; none of them is lost to the lock, none of the trials waits for it.
        faults.until(lambda: len(spooled(world)) == TRIALS, driver)
    assert driver.wait() == 0, driver.tail()
    assert not spooled(world)
    outcomes, each, open_runs = faults.recorded(mlruns)
    assert outcomes == {"ok": TRIALS}
    assert len(each) == TRIALS
    assert open_runs == []
    store = open_store({"kind": "embedded", "root": str(mlruns)})
    reports = [store.load(s.run_id) for group in store.attempts().values() for s in group]
    assert any(report.started_at < time.time() - 3000 for report in reports), "the clock did step"
    # How long something takes is never told by a clock that can be set.
    assert all(0 < report.duration_s < 3000 for report in reports)
    faults.nothing_left(world)
    again = orchestrator(world.directory, *words)
    assert again.code == 0, again.err
    assert again.json["cached"] == TRIALS
