"""A slice of every documented sweep, really measured: the first value of each of its axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.commands import orchestrator
from testing.near import near

SWEEPS = Path(__file__).resolve().parents[2] / "conf" / "sweep"
# One cell, measured once and briefly: what is proven is that it runs.
BRIEF = (
    *("repeats=1", "search=none", "verdict=off", "ceilings=off", "device=cpu", "--json"),
    *("protocol.min_repetitions=2", "protocol.max_repetitions=2", "protocol.max_time_s=1"),
)


def axes_of(name: str) -> dict[str, Any]:
    """The axes of a sweep, with those of the sweeps that it builds on."""
    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    inherited = [axes_of(base) for base in sweep.get("defaults", ()) if base != "_self_"]
    return {k: v for axes in (*inherited, sweep.get("axes", {})) for k, v in axes.items()}


def first_cell(name: str) -> list[str]:
    """Overrides that leave of each axis its first value."""
    split = {k: v.split(",") if isinstance(v, str) else v for k, v in axes_of(name).items()}
    first = {axis: values[0] for axis, values in split.items()}
    return [f"{axis}={'null' if value is None else value}" for axis, value in first.items()]


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_its_first_cell_is_measured(name: str, tmp_path: Path) -> None:
    with near():
        done = orchestrator(tmp_path, f"+sweep={name}", *first_cell(name), *BRIEF)
    assert done.code == 0, done.err
    assert done.json["outcomes"] == {"ok": 1}, done.err
