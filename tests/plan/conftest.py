"""What the tests of the plan room share: planning one line, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.plan.expand import build
from orchestrator.plan.plan import Plan

Planner = Callable[..., Plan]


@pytest.fixture
def planned() -> Planner:
    """``planned("task=noop quant=fp32,bf16", directory, ...)``: words are split at spaces."""

    def plan(line: str, *config_dirs: Path, device: str = "cpu") -> Plan:
        return build(line.split(), config_dirs=config_dirs, device_kind=lambda cluster: device)

    return plan


@pytest.fixture
def refused(planned: Planner) -> Callable[..., str]:
    """The one line that a bad command line is answered with."""

    def plan(line: str, *config_dirs: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            planned(line, *config_dirs)
        message = str(caught.value)
        assert "\n" not in message
        assert caught.value.exit_code == 2
        return message

    return plan


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a file below a directory of a person's own groups; returns that directory."""

    def to_file(name: str, text: str) -> Path:
        directory = tmp_path / "own"
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return directory

    return to_file
