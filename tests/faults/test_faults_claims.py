"""Two drivers on one sweep at once: each trial measured once, also when one of them is killed."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from testing import faults
from testing.world import DriverProcess, World

TRIALS = 24
WORDS = (
    "task=noop", f"task.value=range({TRIALS})", "task.sleep_s=0.1", "device=cpu",
    "resources.cpus=1", "telemetry.enabled=false", "preflight=off", "--json",
)  # fmt: skip


@pytest.fixture
def two(world: World) -> list[DriverProcess]:
    """Two drivers, started at once."""
    made = [DriverProcess(world, WORDS, name) for name in ("first", "second")]
    for driver in made:
        driver.start()
    return made


def runs(directory: Path) -> tuple[Counter[str], Counter[str]]:
    """Attempts by status, and finished ones by trial."""
    with closing(sqlite3.connect(directory / "mlruns" / "mlflow.db", timeout=60)) as connection:
        found = connection.execute(
            "SELECT r.status, t.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid"
            " WHERE t.key = 'config_hash'"
        ).fetchall()
    return Counter(status for status, _ in found), Counter(h for s, h in found if s == "FINISHED")


def answer(driver: DriverProcess) -> dict[str, int]:
    """What a driver that came to its end made itself, and what it found made."""
    assert driver.wait() == 0, driver.tail()
    said = json.loads(driver.output.read_text())
    return {"own": said["outcomes"].get("ok", 0), "cached": said["cached"]}


@pytest.mark.long
def test_started_together_they_share_the_sweep(world: World, two: list[DriverProcess]) -> None:
    answers = [answer(driver) for driver in two]
    assert sum(said["own"] for said in answers) == TRIALS
    assert [said["cached"] for said in answers] == [TRIALS - said["own"] for said in answers]
    statuses, finished = runs(world.directory)
    assert statuses == {"FINISHED": TRIALS}
    assert len(finished) == TRIALS


@pytest.mark.long
def test_one_is_killed_and_the_other_measures_what_is_left(
    world: World, two: list[DriverProcess]
) -> None:
    first, second = two
    database = world.directory / "mlruns" / "mlflow.db"

    def is_under_way() -> bool:
        if not database.exists():
            return False
        try:
            return sum(runs(world.directory)[1].values()) >= 4
        except sqlite3.OperationalError:  # its tables are being made
            return False

    faults.until(is_under_way, second)
    first.send(signal.SIGKILL)
    first.wait()
    said = answer(second)
    assert said["cached"] + said["own"] == TRIALS
    statuses, finished = runs(world.directory)
    assert (len(finished), set(finished.values())) == (TRIALS, {1})
    # What the dead driver was at is accounted for: lost, not running for ever.
    assert set(statuses) <= {"FINISHED", "KILLED", "FAILED"}
    assert statuses["FINISHED"] == TRIALS
    faults.nothing_left(world)
