"""Provenance says what it ran on, and no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.host.git import git_state
from orchestrator.record.provenance import (
    node_provenance,
    package_versions,
    provenance,
)


def test_it_is_plain_json_and_true() -> None:
    facts = json.loads(json.dumps(provenance(command=["a", "b"])))
    assert facts["command"] == ["a", "b"]
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert facts["cpu"]["cores_usable"] == len(os.sched_getaffinity(0))
    assert facts["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["pytest"] == pytest.__version__
    assert set(facts["cgroup"]) == {"cpus", "memory_bytes"}


def test_one_call_does_not_spoil_the_next() -> None:
    provenance()["packages"].clear()
    node_provenance()["cpu"].clear()
    assert node_provenance()["cpu"]
    assert provenance()["packages"]


def test_planted_secrets_are_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-one-1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-two-2")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    facts = provenance(
        command=["x", "--password", "planted-three-3", "--uri=http://u:planted-four-4@h/"],
    )
    text = json.dumps({**facts, "node": node_provenance()})
    assert "planted" not in text
    assert facts["environment"]["OMP_NUM_THREADS"] == "2"
    assert "PATH" not in facts["environment"]


def test_a_user_id_without_a_name_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert provenance()["user"] is None


def test_git_states(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, timeout=30)

    assert git_state(tmp_path) == {"commit": None, "reason": "not a git checkout"}
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    clean = git_state(tmp_path)
    assert len(str(clean["commit"])) == 40
    assert clean["dirty"] is False
    (tmp_path / "new").write_text("untracked files do not change what ran")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_no_git_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"commit": None, "reason": "git is not installed"}


def test_packages_are_named_once() -> None:
    names = list(package_versions())
    assert len(names) == len(set(names))
    assert "mlflow" in names
