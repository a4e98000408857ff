"""A task that changed a metric's unit: what is not alike is neither pooled nor passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.measure import Samples
from orchestrator.report.analyse.cell import pool
from orchestrator.report.analyse.gate import gate
from orchestrator.report.analyse.gate_rules import rules_from
from orchestrator.report.analyse.measured import spec_of
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.bundle import report_files
from orchestrator.report.show.trial_view import ShowView
from testing.printed import printed

WHY = "in s and in ms: delete the older attempts in MLflow to have a number"


@pytest.fixture
def changed(make):
    """A plan of two trials; the second attempt of each says milliseconds for what was seconds."""
    plan = make.plan(quants=("fp32", "nf4"), prompts=(512,))
    reports = {trial.hash: [make.report(trial, n) for n in (1, 2)] for trial in plan.trials}
    for first, second in reports.values():
        values = tuple(1000 * value for value in first.metrics["tpot_s"].values)
        later = {**second.metrics, "tpot_s": Samples("tpot_s", "ms", values)}
        reports[first.config_hash][1] = replace(second, metrics=later)
    return plan, reports


def test_no_view_pools_them(changed):
    plan, reports = changed
    trial = plan.trials[0]
    attempts = reports[trial.hash]
    cell = pool(attempts, spec_of(attempts, "tpot_s"))
    assert (cell.median, cell.reason) == (None, WHY)
    row = build_table(plan, reports).rows[0]
    assert not row.has("tpot_s")
    assert row.has("ttft_s")
    shown = [(str(n), report) for n, report in enumerate(attempts)]
    assert f"not had: tpot_s ({WHY})" in printed(ShowView(trial.hash, trial.identity, shown), 200)
    assert WHY in report_files(plan, reports)["report.md"].decode()


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "difference", "metrics": ["tpot_s"]},
        {"kind": "change", "metric": "tpot_s", "max_increase": 0.1},
        {"kind": "limit", "metric": "tpot_s", "at_most": 1.0},
    ],
)
def test_a_gate_does_not_pass_what_it_cannot_read(changed, rule):
    _, reports = changed
    found = gate(reports, reports, rules_from({"rules": [rule]}))
    assert [WHY in (row.reason or "") for row in found.rows] == [True, True]
    assert found.exit_code in (2, 3)
