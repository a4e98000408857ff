"""Two profiles against each other: differences add up, what appeared and vanished is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.commands.compare import _operator_diffs
from orchestrator.record.selection import Selection
from orchestrator.report.analyse.operators import diff_operators, read_operators
from orchestrator.report.show.operators_view import OperatorDiffView, operator_table
from testing.printed import printed

A, B = "a" * 64, "b" * 64


def table(of: str = "host", **self_s: float) -> dict[str, Any]:
    whole = sum(self_s.values())
    return {
        "self_time_of": of,
        "self_s": whole,
        "operators": [
            {"name": name, "self_s": s, "share": s / whole, "calls": 10}
            for name, s in self_s.items()
        ],
    }


BEFORE = table(mm=6.0, copy=3.0, norm=1.0)
AFTER = table(mm=2.0, copy=3.3, matmul_4bit=1.5, view=0.0)


def test_differences_come_largest_first_and_add_up_to_the_whole() -> None:
    diff = diff_operators(A, BEFORE, B, AFTER)
    assert [c.name for c in diff.changes] == ["mm", "matmul_4bit", "norm", "copy", "view"]
    assert [c.state for c in diff.changes] == ["both", "appeared", "vanished", "both", "appeared"]
    assert sum(c.delta_s for c in diff.changes) == pytest.approx(diff.self_s_b - diff.self_s_a)
    by_name = {c.name: c for c in diff.changes}
    assert by_name["mm"].ratio == pytest.approx(1 / 3)
    assert by_name["copy"].delta_s == pytest.approx(0.3)
    assert by_name["norm"].b is None
    assert by_name["norm"].ratio is None
    for side, whole in (("a", 1.0), ("b", 1.0)):
        shares = [getattr(c, side).share for c in diff.changes if getattr(c, side)]
        assert sum(shares) == pytest.approx(whole)
    plain = json.loads(json.dumps(diff.to_json()))
    assert plain["changes"][1]["state"] == "appeared"
    assert plain["changes"][1]["a"] is None


def test_time_of_a_host_is_not_held_against_a_device() -> None:
    diff = diff_operators(A, BEFORE, B, table("device", mm=1.0))
    assert diff.changes == ()
    assert "of the host in A, of the device in B" in (diff.reason or "")


def test_what_is_no_table_is_none() -> None:
    assert read_operators(json.dumps(BEFORE).encode()) == BEFORE
    assert read_operators(b"[]") is None
    assert read_operators(b"{}") is None
    assert read_operators(b"\x00") is None


def test_the_view_says_what_took_longer_and_what_the_rest_is() -> None:
    many = table(**{f"op{i:02}": 1.0 + i for i in range(20)})
    text = printed(
        OperatorDiffView(diff_operators(A, BEFORE, B, many), labels={A: "fp32", B: "nf4"})
    )
    assert "A: fp32  aaaaaaaaaaaa" in text
    assert "+ op19" in text
    assert "- mm" in text
    assert "+ appeared · - vanished" in text
    # Fifteen rows of 23, the others in one, then the whole: 10 s against 210 s.
    (others,) = [line for line in text.splitlines() if "others" in line]
    assert others.split()[0] == "8"
    (whole,) = [line for line in text.splitlines() if line.split()[:1] == ["all"]]
    assert whole.split()[1:5] == ["10", "210", "+200", "21.00×"]
    assert "not a verdict" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_figures_are_not_squeezed(width: int) -> None:
    text = printed(OperatorDiffView(diff_operators(A, BEFORE, B, AFTER)), width)
    assert "0.33×" in text
    assert max(map(len, text.splitlines())) <= width


def test_top_operators_of_one_profile_by_phase() -> None:
    rows = [
        {
            "name": "mm",
            "self_s": 0.5,
            "share": 0.8,
            "phases": {"prefill": 0.3, "decode": 0.5},
            "calls": 12,
            "bound": "memory",
        },
        {"name": "copy", "self_s": 0.1, "share": 0.2, "phases": {"decode": 0.2}, "calls": 3},
    ]
    lines = printed(operator_table(rows)).splitlines()
    assert lines[0].split() == ["operator", "self", "share", "prefill", "decode", "calls", "bound"]
    assert lines[1].split() == ["mm", "500", "ms", "80", "%", "30", "%", "50", "%", "12", "memory"]
    rows[0]["name"] = "aten::_scaled_dot_product_flash_attention_for_cpu"
    narrow = printed(operator_table(rows), width=70)
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 70


class Kept:
    """A store with the tables of two attempts."""

    def artifact(self, run_id: str, name: str) -> bytes:
        assert name == "operators.json"
        if run_id == "run of c":
            raise FileNotFoundError(name)
        return json.dumps({"run of a": BEFORE, "run of b": AFTER}[run_id]).encode()


def selection(which: str, task: str = "profile", outcome: str = "ok") -> Selection:
    config_hash = which * 64
    report = AttemptReport(attempt_id=which, config_hash=config_hash, outcome=Outcome(outcome))
    configs = {config_hash: {"task": {"name": task}}}
    return Selection(which, {config_hash: [report]}, configs, {which: f"run of {which}"})


def test_compared_profiles_are_those_that_left_a_table() -> None:
    store: Any = Kept()
    (diff,) = _operator_diffs(store, selection("a"), selection("b"))
    assert (diff.hash_a, diff.hash_b) == (A, B)
    assert diff.changes[0].name == "mm"
    for other in (
        selection("c"),
        selection("b", task="inference"),
        selection("b", outcome="crashed"),
    ):
        assert _operator_diffs(store, selection("a"), other) == []
