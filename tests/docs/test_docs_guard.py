"""The guard of docs/guard.md: its night runs, on a sweep that takes no time."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from testing.commands import orchestrator
from testing.near import near

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guard.md"
assert PAGE.name == "guard.md"
FILES = dict(
    re.findall(
        r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
)
# What takes no time in place of what is worth measuring.
SWEEP = """
set:
  task: noop
  verdict: "off"
axes:
  task.value: [1, 2]
repeats: 2
"""
RED = re.search(r"## When it is red.*?```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def commands(script: str) -> list[list[str]]:
    """Every command line of ours in a script, without what the shell does with its output."""
    lines = re.findall(r"^python -m orchestrator (.*)$", script, re.MULTILINE)
    return [shlex.split(line.partition(" > ")[0]) for line in lines]


@pytest.fixture
def guard(tmp_path: Path) -> Path:
    """The directory of the page, with a sweep of nothing."""
    for name, text in FILES.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    place = tmp_path / "guard"
    (place / "sweep" / "nightly.yaml").write_text(SWEEP)
    return place


def test_each_command_of_a_night_runs_and_says_what_the_script_expects(guard: Path) -> None:
    run, gate, history = commands(FILES["guard/night.sh"])
    with near():
        nights = [orchestrator(guard, *run) for _ in range(2)]
    accepted, newest = (night.json["run_id"] for night in nights)
    assert [night.code for night in nights] == [0, 0]
    known = {"$run": newest, "$(cat accepted)": accepted}
    judged = orchestrator(guard, *(known.get(word, word) for word in gate))
    assert judged.code == 0, judged.err
    assert "<testsuites>" in (guard / "gate.xml").read_text()
    told = orchestrator(guard, *history)
    assert told.code == 0, told.err
    # What jq takes from it.
    assert [series["steps"] for series in told.json["series"]] == [[], []]
    assert "nightly over time" in (guard / "site" / "index.html").read_text()
    assert RED is not None
    for words in commands(RED[1]):
        assert orchestrator(guard, *words).code == 0, words


def test_the_workflow_runs_the_night(guard: Path) -> None:
    workflow = yaml.safe_load(FILES["guard/guard.yml"])
    (job,) = workflow["jobs"].values()
    assert "/srv/guard/night.sh" in job["steps"][0]["run"]
    cron = re.search(r"^30 2 \* \* \*  (\S+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert cron is not None
    assert cron[1] == "/srv/guard/night.sh"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_three_nights_of_the_script_as_it_is(guard: Path) -> None:
    script = guard / "night.sh"
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def night() -> int:
        done = subprocess.run(
            [script], env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert "error:" not in done.stderr, done.stderr
        return done.returncode

    def accepted() -> str:
        return (guard / "accepted").read_text()

    assert night() == 0
    first = accepted()
    assert night() == 0
    second = accepted()
    assert second != first
    # What cannot be compared with the accepted run is not accepted.
    sweep = guard / "sweep" / "nightly.yaml"
    sweep.write_text(SWEEP.replace("task.value", "task.fault: [error]\n  task.value"))
    assert night() == 3
    assert accepted() == second
