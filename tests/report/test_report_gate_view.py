"""The gate's answer is its first line; what does not pass follows with its figures."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from orchestrator.measure import Samples
from orchestrator.measure.vocabulary import VOCABULARY
from orchestrator.report.analyse.gate import GateResult, GateRow, gate
from orchestrator.report.analyse.gate_rules import rules_from
from orchestrator.report.analyse.labels import labels_of
from orchestrator.report.show.gate_view import GateView
from testing.printed import printed


def test_a_slowdown_is_told_with_its_ratio_and_limit(make):
    plan = make.plan(quants=("fp32", "nf4"), prompts=(512,))
    base = make.reports(plan, 3)
    new = {t.hash: [make.report(t, n) for n in (7, 8, 9)] for t in plan.trials}
    for report in new[plan.trials[1].hash]:
        slow = tuple(1.2 * v for v in report.metrics["tpot_s"].values)
        report.metrics["tpot_s"] = Samples("tpot_s", "s", slow)
    rules = rules_from(
        {
            "rules": [
                {"kind": "difference", "metrics": ["tpot_s"]},
                {"kind": "limit", "metric": "load_s", "at_most": 3.0},
            ]
        },
        name="default",
    )
    text = printed(GateView(gate(new, base, rules), labels=labels_of(plan)))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "▼ gate default: regression  2 regression · 2 pass  exit 1"
    nf4 = f"nf4  {plan.trials[1].hash[:12]}"
    assert any(
        line.startswith(f"  ▼ {nf4}  difference  TPOT  1.2") and line.endswith("limit 1.03×")
        for line in lines
    )
    assert any(
        line.startswith(f"  ▼ {nf4}  limit  load  5.5") and line.endswith("limit 3 s")
        for line in lines
    )
    assert "fp32" not in text, "what passes is counted, not listed"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_figures_that_do_not_fit_stand_on_a_line_of_their_own(width):
    figures = {"value": 1.106, "ci_low": 0.804, "ci_high": 1.842, "limit": 1.03}
    row = GateRow("difference", "a" * 64, "ttft_s", "inconclusive", **figures)
    label = {"a" * 64: "inference · smollm2_135m · bfloat16 · prompt 512"}
    text = printed(GateView(GateResult("default", (row,), None, VOCABULARY), labels=label), width)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[-1].endswith("difference  TTFT  1.11×  [0.804 – 1.842]  limit 1.03×")
    assert (len(lines) == 2) == (width == 140)
    assert max(map(cell_len, lines)) <= width


def test_a_pass_is_one_line():
    rows = (GateRow("completes", "a" * 64, None, "pass"),)
    assert printed(GateView(GateResult("default", rows))).splitlines() == [
        "✓ gate default: pass  1 pass  exit 0"
    ]


def test_trials_of_one_side_alone_are_named():
    rows = [GateRow("completes", "a" * 64, None, "pass")]
    rows += [GateRow("paired", c * 64, None, "skipped", reason="not measured again") for c in "bc"]
    text = printed(GateView(GateResult("default", tuple(rows)), labels={"b" * 64: "nf4"}))
    assert text.splitlines()[1:] == [f"  – not measured again: nf4  {'b' * 12}, {'c' * 12}"]


def test_nothing_compared_does_not_pass():
    text = printed(GateView(GateResult("default", (), "the baseline shares no trial")))
    assert "incomparable" in text
    assert "exit 3" in text
    assert "the baseline shares no trial" in text


@pytest.mark.parametrize("width", [60, 100])
def test_many_rows_are_cut(width):
    row = GateRow("completes", "a" * 64, None, "regression", reason="no attempt is ok\nat all")
    text = printed(GateView(GateResult("default", (row,) * 500)), width)
    assert "… and 440 more" in text
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
