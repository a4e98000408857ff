"""A user id that the machine does not know has no home: one line says what to set instead."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest

from orchestrator.engines.cache import cache_root
from orchestrator.errors import UsageError
from orchestrator.model.known_ceilings import ceilings_directory
from orchestrator.record.tracking_server import state_directory
from testing.commands import orchestrator


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "ORCHESTRATOR_CACHE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_planning_says_what_to_set(tmp_path: Path) -> None:
    words = ("plan", "task=inference", "model=random", "device=cpu", "quant=fp32")
    done = orchestrator(tmp_path, *words)
    assert done.code == 2
    assert done.err == (
        "error: ORCHESTRATOR_CACHE: this user has no home directory. "
        "Set ORCHESTRATOR_CACHE=DIRECTORY\n"
    )
    helped = orchestrator(tmp_path, *words, ORCHESTRATOR_CACHE=str(tmp_path / "cache"))
    assert helped.code == 0, helped.err


def test_a_tilde_is_one_line_too(tmp_path: Path) -> None:
    done = orchestrator(
        tmp_path, "status", "tracking.root=~/results", ORCHESTRATOR_CACHE=str(tmp_path)
    )
    assert done.code == 2
    assert "this user has no home directory" in done.err
    assert "bug" not in done.err
    assert len(done.err.splitlines()) == 1


def test_every_place_of_ours_says_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, variable in (
        (cache_root, "ORCHESTRATOR_CACHE"),
        (ceilings_directory, "ORCHESTRATOR_CACHE"),
        (state_directory, "XDG_STATE_HOME"),
    ):
        with pytest.raises(UsageError, match=f"Set {variable}=DIRECTORY"):
            place()
        monkeypatch.setenv(variable, str(tmp_path))
        assert tmp_path in place().parents or place() == tmp_path
        monkeypatch.delenv(variable)
