"""Hub models: the driver finds the commit, everybody else fetches and records that one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from testing.hub import REPOSITORY, Hub
from testing.trial import TINY

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
import sys
from testing.near import near
from orchestrator.commands.parser import main
with near():
    sys.exit(main(sys.argv[1:]))
"""
WORDS = ("model=hub", f"model.id={REPOSITORY}", "quant=fp32", "protocol=quick", "device=cpu",
         "task.prompt_tokens=8", "resources.cpus=1", "verdict=off", "ceilings=off",
         "preflight=off", "--json")  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    from orchestrator.engines.transformers import random_weights as architecture

    directory = tmp_path / "model"
    config = architecture.configuration(TINY)
    architecture.build(config, 0, "float32", "sdpa").save_pretrained(
        directory, max_shard_size="200KB"
    )
    assert len(list(directory.glob("*.safetensors"))) > 1
    with Hub(directory) as made:
        yield made


def sweep(place: Path, *words: str, **variables: str) -> tuple[int, Any, str]:
    """In a process of its own: the hub's client reads its environment when it is imported."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, *words, *WORDS],
        cwd=place,
        env={**clean, "PYTHONPATH": str(ROOT), "HF_HOME": str(place / "hf"), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def reports(place: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (place / "mlruns").rglob("report.json")]


@pytest.mark.long
def test_everybody_measures_the_commit_that_the_driver_found(hub: Hub, tmp_path: Path) -> None:
    first = hub.commit
    hub.next_commit = first[::-1]  # somebody pushes once the driver has asked
    code, ran, err = sweep(tmp_path, "task.new_tokens=2,3", HF_ENDPOINT=hub.address)
    assert code == 0, err
    assert ran["outcomes"] == {"ok": 2}
    assert hub.branch_asked == 1
    assert [r["conditions"]["content"] for r in reports(tmp_path)] == [{"commit": first}] * 2
    snapshots = tmp_path / "hf" / "hub" / "models--some--tiny" / "snapshots"
    assert [path.name for path in snapshots.iterdir()] == [first]
    assert "not checked" not in err

    # Offline it is the cached one, which is what these numbers are of.
    code, ran, err = sweep(tmp_path, "task.new_tokens=2,3", HF_HUB_OFFLINE="1")
    assert (code, ran["outcomes"]) == (0, {}), err
    assert f"{REPOSITORY}: not checked with the hub; cached commit {first} is measured" in err

    # One shard of the index is not there: nothing is measured, and nothing counts as tried.
    (lost,) = snapshots.rglob("model-00001-of-*.safetensors")
    kept = lost.resolve()
    lost.unlink()
    code, ran, err = sweep(tmp_path, "task.new_tokens=2", HF_HUB_OFFLINE="1")
    assert (code, ran["outcomes"]) == (1, {"error": 1})
    (line,) = (line for line in err.splitlines() if line.startswith(REPOSITORY))
    assert "cache is incomplete: a weights file named by the index is missing" in line
    assert lost.name in line
    lost.symlink_to(kept)
    code, ran, err = sweep(tmp_path, "task.new_tokens=2,3", HF_HUB_OFFLINE="1")
    assert (code, ran["outcomes"]) == (0, {}), err

    # The hub is there again, and its branch is another: all of it is stale.
    code, ran, err = sweep(tmp_path, "task.new_tokens=2", HF_ENDPOINT=hub.address)
    assert (code, ran["outcomes"], ran["stale"]) == (0, {"ok": 1}, 1), err
    assert {path.name for path in snapshots.iterdir()} == {first, first[::-1]}
