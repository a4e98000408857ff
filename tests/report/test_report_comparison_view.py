"""A comparison reads: counts first, worst pair first, an interval drawn around 1."""

from __future__ import annotations

import math
import re

import pytest
from rich.cells import cell_len

from orchestrator.measure import Samples
from orchestrator.report.analyse.compare import Comparison, compare
from orchestrator.report.analyse.labels import labels_of
from orchestrator.report.show.compare_view import ComparisonView, scale_line
from testing.printed import printed


@pytest.fixture
def compared(make):
    """bf16 decodes 15 % slower than before, int8 ran on another machine, nf4 was not run again."""
    plan = make.plan(prompts=(512,))
    before = make.reports(plan, 3)
    after = {t.hash: [make.report(t, n) for n in (7, 8, 9)] for t in plan.trials[:3]}
    for report in after[plan.trials[1].hash]:
        slow = tuple(1.15 * v for v in report.metrics["tpot_s"].values)
        report.metrics["tpot_s"] = Samples("tpot_s", "s", slow)
    for report in after[plan.trials[2].hash]:
        report.provenance = {"hardware_fingerprint": "another"}
    return plan, compare(before, after)


def test_the_regression_is_the_first_thing_said(compared):
    plan, comparison = compared
    text = printed(ComparisonView(comparison, labels=labels_of(plan), names=("old", "new")))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0].startswith("new against old: 1 worse · ")
    assert "tolerance ±3 %, intervals of 90 %" in lines[1]
    assert lines[3] == f"bf16  {plan.trials[1].hash[:12]}"
    assert lines[4].split() == ["old", "new", "ratio", "interval"]
    row = next(line for line in lines if line.startswith("  TPOT"))
    assert re.match(r"  TPOT +48\.\d ms +56\.\d ms  1\.1\d×  1\.1\d\d – 1\.1\d\d .*▼ worse$", row)
    assert "incomparable: different hardware: unknown and another" in text
    assert f"only in old: nf4  {plan.trials[3].hash[:12]}" in text
    assert text.count("no NVML on this machine") == 2, "said once a pair"


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_verdict_is_squeezed(compared, width):
    plan, comparison = compared
    text = printed(ComparisonView(comparison, labels=labels_of(plan)), width)
    assert "…" not in text
    assert "▼ worse" in text
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", range(50, 130, 7))
def test_long_figures_and_names_push_no_verdict_out(make, width):
    plan = make.plan(prompts=(512,))
    before = make.reports(plan, 3)
    for reports in before.values():
        for report in reports:
            name = "host_to_device_bytes_per_s"
            report.metrics[name] = Samples(name, "bytes/s", (1.23456e11, 1.3e11, 1.1e11))
    names = ("a-long-sweep-name@-2", "a-long-sweep-name@-1")
    text = printed(ComparisonView(compare(before, before), names=names), width)
    rows = [line.rstrip() for line in text.splitlines() if line.startswith("  TPOT")]
    assert len(rows) == len(plan.trials)
    assert all(row.endswith(("= same", "~ undecided")) for row in rows)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width


def test_two_different_trials_are_both_named(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    fp32, bf16 = (t.hash for t in plan.trials[:2])
    found = compare({fp32: reports[fp32]}, {bf16: reports[bf16]})
    text = printed(ComparisonView(found, labels=labels_of(plan)))
    assert f"bf16  {bf16[:12]}  against fp32  {fp32[:12]}" in text


def test_nothing_in_common_is_said():
    text = printed(ComparisonView(Comparison((), 0.03, ("a" * 64,), ("b" * 64,))))
    assert "nothing to compare" in text
    assert "only in A: " + "a" * 12 in text


def test_thousands_of_rows_are_cut(make):
    plan = make.plan(prompts=tuple(range(1, 101)))
    reports = {t.hash: [make.report(t)] for t in plan.trials}
    found = compare(reports, reports, metrics=("tpot_s", "ttft_s"))
    text = printed(ComparisonView(found))
    assert "… and 680 metrics of other trials" in text
    assert len(text.splitlines()) < 320


def test_the_scale_has_one_in_its_middle():
    reach = math.log(2)
    assert scale_line(0.98, 1.0, 1.02, reach) == "       ●       "
    assert scale_line(1.30, 1.42, 1.65, reach) == "       │  ├●┤  "
    assert scale_line(0.3, 0.4, 0.9, reach) == "◀─────┤│       "
    assert scale_line(3.0, 3.0, 3.0, reach) == "       │      ▶"
    assert scale_line(None, 1.0, None, reach) == ""
