"""Two drivers on one sweep at once: each trial measured once, also when one of them is killed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from testing.world import World

TRIALS = 40
WORDS = (
    "task=noop", f"task.value=range({TRIALS})", "task.sleep_s=0.1", "device=cpu",
    "resources.cpus=1", "telemetry.enabled=false", "preflight=off", "--json",
)  # fmt: skip


def driver(world: World) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *WORDS],
        env=world.environment,
        cwd=world.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def runs(directory: Path) -> tuple[Counter[str], Counter[str]]:
    """Attempts by status, and finished ones by trial."""
    with closing(sqlite3.connect(directory / "mlruns" / "mlflow.db", timeout=60)) as connection:
        found = connection.execute(
            "SELECT r.status, t.value FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid"
            " WHERE t.key = 'config_hash'"
        ).fetchall()
    return Counter(status for status, _ in found), Counter(h for s, h in found if s == "FINISHED")


def test_started_together_they_share_the_sweep(world: World) -> None:
    two = [driver(world) for _ in range(2)]
    answers = []
    for process in two:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    own = [answer["outcomes"].get("ok", 0) for answer in answers]
    assert sum(own) == TRIALS
    assert [answer["cached"] for answer in answers] == [TRIALS - count for count in own]
    statuses, finished = runs(world.directory)
    assert statuses == {"FINISHED": TRIALS}
    assert len(finished) == TRIALS


def test_one_is_killed_and_the_other_measures_what_is_left(world: World, faults: Any) -> None:
    first, second = driver(world), driver(world)
    database = world.directory / "mlruns" / "mlflow.db"

    def is_under_way() -> bool:
        if not database.exists():
            return False
        try:
            return sum(runs(world.directory)[1].values()) >= 8
        except sqlite3.OperationalError:  # its tables are being made
            return False

    deadline = time.monotonic() + 120
    while not is_under_way():
        assert second.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=200)
    assert second.returncode == 0, err
    answer = json.loads(out)
    assert answer["cached"] + answer["outcomes"]["ok"] == TRIALS
    statuses, finished = runs(world.directory)
    assert (len(finished), set(finished.values())) == (TRIALS, {1})
    # What the dead driver was at is accounted for: lost, not running for ever.
    assert set(statuses) <= {"FINISHED", "KILLED", "FAILED"}
    assert statuses["FINISHED"] == TRIALS
    faults.nothing_left(world)
