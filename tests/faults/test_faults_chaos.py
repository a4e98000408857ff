"""Half a minute of the chaos benchmark: everything is killed once, and all comes out whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[2] / "benchmarks" / "chaos.py"
TRIALS = 30


@pytest.mark.long
def test_a_sweep_survives_an_adversary() -> None:
    done = subprocess.run(
        [sys.executable, str(CHAOS), "--seed", "7", "--trials", str(TRIALS), "--limit", "280"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = {line["name"]: line["value"] for line in map(json.loads, done.stdout.splitlines())}
    for kind in ("child", "worker", "node", "driver", "server"):
        assert said[f"chaos.faults.{kind}"] >= 1, f"the adversary hit no {kind}"
    assert said["chaos.finished_hashes"] == said["chaos.attempts.ok"] == TRIALS
    assert said["chaos.executions"] >= TRIALS
    for nothing in ("lost", "duplicated", "unaccounted", "orphans"):
        assert said[f"chaos.{nothing}"] == 0
