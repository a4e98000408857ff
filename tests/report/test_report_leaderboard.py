"""``report --format leaderboard``: rows that say for themselves what they are of, and merge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import Outcome
from orchestrator.conditions import Conditions
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.leaderboard import to_leaderboard
from testing.commands import orchestrator
from testing.near import near

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"


@pytest.fixture
def lines(make: Any) -> list[dict[str, Any]]:
    """Of a sweep with an out-of-memory trial and one that never ran."""
    plan = make.plan(quants=("fp32", "nf4", "int8"), prompts=(512,))
    fp32, nf4, _ = plan.trials
    reports = {
        fp32.hash: [make.report(fp32, n) for n in (1, 2, 3)],
        nf4.hash: [make.report(nf4, outcome=Outcome.OOM_HOST, reason="killed at 8 GiB")],
    }
    for attempts in reports.values():
        for report in attempts:
            report.conditions = Conditions({"CPU": "EPYC"}, {"torch": "2.9"}, {"weights": "x"})
    reports[fp32.hash][2].verdict = type(reports[fp32.hash][2].verdict)("invalid")
    table = build_table(plan, reports, metrics=["tpot_s", "energy_j"])
    text = to_leaderboard(table, {trial.hash: trial.identity for trial in plan.trials})
    return [json.loads(line) for line in text.splitlines()]


def test_a_row_says_what_it_is_of(lines: list[dict[str, Any]]) -> None:
    fp32, nf4 = lines
    assert (fp32["schema"], fp32["version"]) == ("orchestrator/leaderboard", 1)
    assert fp32["axes"] == {"quant": "fp32"}
    configuration = fp32["configuration"]
    assert configuration["model"] == "smollm2_135m"
    assert configuration["task.prompt_tokens"] == 512
    assert configuration["environment"] is None
    assert fp32["hardware"] == {"CPU": "EPYC"}
    assert fp32["software"] == {"torch": "2.9"}
    assert re.fullmatch(r"c:[0-9a-f]{12}", fp32["conditions"])
    assert fp32["measured"] == "2025-10-09T08:55:20+00:00"
    assert fp32["attempts"] == {"counted": 2, "made": 3}
    tpot = fp32["metrics"]["tpot_s"]
    assert tpot["ci_low"] < tpot["median"] < tpot["ci_high"]
    assert (tpot["n"], tpot["unit"], tpot["better"]) == (16, "s", "lower")
    assert fp32["metrics"]["energy_j"]["reason"] == "no NVML on this machine"
    assert (nf4["outcome"], nf4["reason"]) == ("oom_host", "killed at 8 GiB")
    assert nf4["metrics"]["tpot_s"]["median"] is None


def fields(row: dict[str, Any]) -> Iterator[str]:
    """Every field of a row; those that are named after something else are not."""
    for name, value in row.items():
        yield name
        if name in ("attempts", "configuration"):
            yield from value
    yield from {name for metric in row["metrics"].values() for name in metric}


def test_every_field_is_documented(lines: list[dict[str, Any]]) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## Leaderboard")[2]
    assert [name for row in lines for name in fields(row) if f"`{name}`" not in text] == []


def test_tables_of_two_stores_merge_into_one(recorded: Path, tmp_path: Path) -> None:
    with near():
        done = orchestrator(tmp_path, "task=noop", "task.value=2,3", "device=cpu", "verdict=off")
    assert done.code == 0, done.err
    merged = tmp_path / "merged.jsonl"
    for number, place in enumerate((recorded, tmp_path)):
        output = tmp_path / str(number)
        words = ("report", "adhoc", "--format", "leaderboard", "--output", str(output))
        assert orchestrator(place, *words).out.strip() == str(output / "leaderboard.jsonl")
        with merged.open("a") as file:
            file.write((output / "leaderboard.jsonl").read_text())
    rows = [json.loads(line) for line in merged.read_text().splitlines()]
    values = [row["metrics"]["value"]["median"] for row in rows]
    assert sorted(values) == [1, 2, 2, 3]
    both = {
        row["hash"]: row["conditions"] for row in rows if row["metrics"]["value"]["median"] == 2
    }
    # One trial, measured under the same conditions by both.
    assert len(both) == 1
    assert len({row["conditions"] for row in rows}) == 1
    printed = orchestrator(recorded, "report", "adhoc", "--format", "leaderboard", "--json")
    assert [json.loads(line) for line in printed.out.splitlines()] == rows[:2]
