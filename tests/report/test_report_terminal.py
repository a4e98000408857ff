"""The live view in a real terminal (tmux): what a person sees, and the terminal given back."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import time
from pathlib import Path
from types import SimpleNamespace
from rich.console import Console
from orchestrator.attempt import AttemptReport, Outcome, PlannedAttempt, Slot
from orchestrator.report import LiveView
trials = [
    SimpleNamespace(hash=f"{i:064x}", identity={"task": {"name": "noop", "value": i}})
    for i in range(4)
]
specs = [PlannedAttempt(trial, attempt_id=f"a{i}") for i, trial in enumerate(trials)]
with LiveView(Console(stderr=True), total=5, cached=1, sweep="tried") as view:
    for spec in specs:
        view.submitted(spec)
    for i in (0, 1):
        view.started(specs[i], Slot("n", "node-1", (2 * i, 2 * i + 1)))
    view.phase(specs[0], "decode")
    report = AttemptReport("a1", trials[1].hash, Outcome.OOM_HOST, "killed at 8 GiB")
    view.finished(report, trials[1])
    view.message("the store is away; results are spooled")
    while not Path("go").exists():
        time.sleep(0.05)
print("after", flush=True)
"""


@pytest.mark.parametrize("width", [60, 100])
def test_a_person_sees_the_sweep_and_gets_the_terminal_back(tmux, tmp_path, width):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"PYTHONPATH={ROOT} {sys.executable} script.py; sleep 60"
    tmux.open(command, width=width, height=20, where=tmp_path)
    lines = tmux.wait_for("the store is away", "2/5", "oom_host")
    board = "\n".join(lines)
    assert lines[0] == "the store is away; results are spooled"
    assert lines[1].startswith("tried  ─")
    assert "2/5" in lines[1]
    assert lines[2] == "1 failed · 1 running · 2 waiting · 1 cached"
    assert lines[3].split()[:4] == ["cpu", "0-1", "noop", "0"]
    assert "✗ oom_host  noop 1  killed at 8 GiB" in board
    (tmp_path / "go").touch()
    lines = tmux.wait_for("after")
    assert "decode" not in "\n".join(lines), "the board is wiped, what was said stays"
    assert lines[0] == "the store is away; results are spooled"
    assert lines[1].startswith("tried: 0 ok, 1 not ok, 3 not run, 1 already there in ")
    assert tmux("display-message", "-p", "#{cursor_flag}").strip() == "1"


def test_without_colour_and_with_forty_columns_nothing_is_lost(tmux, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"NO_COLOR=1 PYTHONPATH={ROOT} {sys.executable} script.py; sleep 60"
    tmux.open(command, width=40, height=20, where=tmp_path)
    lines = tmux.wait_for("the store is away", "2/5", "oom_host")
    assert lines[1].startswith("tried  ")
    assert "1 failed · 1 running · 2 waiting" in lines
    assert "1 cached" in lines
    coloured = tmux("capture-pane", "-p", "-e")
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]", coloured)
    (tmp_path / "go").touch()
    tmux.wait_for("after")
