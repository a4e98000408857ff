"""What users and scripts see, held fixed: hashes of every sweep, shapes of JSON, exit codes, tags.

A change that is meant is written anew with ``ORCHESTRATOR_UPDATE_GOLDENS=1 pytest tests/golden``;
the difference of the files is what the CHANGELOG must name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.commands.parser import main

HERE = Path(__file__).parent
CONF = Path(__file__).parents[2] / "conf"
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))
# Of a longer list its digest is kept.
MOST_KEPT = 40


def golden(name: str, found: Any) -> None:
    """Hold ``found`` against what is kept under ``name``."""
    file = HERE / name
    if os.environ.get("ORCHESTRATOR_UPDATE_GOLDENS"):
        file.write_text(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    assert found == json.loads(file.read_text())


def shape(value: Any) -> Any:
    """Keys and types of a JSON value; of a list the shape of its first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_hashes_of_a_sweep(
    sweep: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"+sweep={sweep}", "device=cpu", "preflight=off", "--json"]
    assert main(["plan", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    found = [[trial["hash"], trial["axes"]] for trial in plan["trials"]]
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    golden(
        f"plan_{sweep}.json",
        {
            "sweep": plan["sweep"],
            "trials": len(found),
            "digest": digest,
            "hashes": found if len(found) <= MOST_KEPT else found[:2],
            "shape": sorted(plan["trials"][0]),
        },
    )


@pytest.mark.xdist_group("recorded")
def test_what_a_recorded_trial_shows(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded)
    assert main(["plan", "task=noop", "task.value=1,2", "device=cpu", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [trial["state"] for trial in plan["trials"]] == ["cached", "cached"]
    one, two = (trial["hash"][:12] for trial in plan["trials"])

    assert main(["show", one, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for attempt in shown["attempts"]:
        attempt["provenance"] = attempt["verdict"]["rules"] = "not held here"
        # What telemetry had time to see differs from run to run.
        attempt["metrics"] = {"value": attempt["metrics"]["value"]}
    assert main(["compare", one, two, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert main(["report", "adhoc", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert main(["history", "adhoc", "--json"]) == 0
    history = json.loads(capsys.readouterr().out)
    golden(
        "shapes.json",
        {
            "show": shape(shown),
            "compare": shape(compared),
            "report": shape(table),
            "history": shape(history),
        },
    )


@pytest.mark.xdist_group("recorded")
def test_the_tags_of_a_run(recorded: Path) -> None:
    with closing(sqlite3.connect(recorded / "mlruns" / "mlflow.db")) as database:
        found = {
            key
            for (key,) in database.execute("select distinct key from tags")
            # The last is there only where something disturbed an attempt.
            if not re.match(r"orchestrator\.(telemetry|git)|verdict_rules$", key)
        }
    golden("tags.json", sorted(found))


EXITS = {
    "nothing left to do": ["task=noop", "task.value=1,2", "device=cpu"],
    "an unknown command": ["shwo"],
    "an unknown option": ["task=nope"],
    "an unknown value": ["task=noop", "task.valeu=1"],
    "no such hash": ["show", "0123456789ab"],
    "no such sweep": ["report", "nope"],
    "a comparison": ["compare", "adhoc@-1", "adhoc@-1"],
    "a history": ["history", "adhoc"],
    "no such history": ["history", "nope"],
    "an unknown flag": ["status", "--nope"],
    "nothing to cancel": ["cancel", "nope"],
    "status": ["status"],
}


@pytest.mark.xdist_group("recorded")
def test_exit_codes(
    recorded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recorded)
    found = {}
    for name, words in EXITS.items():
        found[name] = {"words": words, "code": main(words)}
        found[name]["lines"] = len(capsys.readouterr().err.strip().splitlines())
    golden("exits.json", found)
