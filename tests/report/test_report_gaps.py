"""What a table has no value or no ratio of is said with its reason, in every view."""

from __future__ import annotations

from dataclasses import replace
from html import unescape

from orchestrator.measure import Absent, Value
from orchestrator.report.analyse.gaps import gaps
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.export import to_json, to_markdown
from orchestrator.report.show.html import page
from orchestrator.report.show.table import TableView
from testing.printed import printed

METRICS = ("tpot_s", "ttft_s", "drift_s", "weights_bytes", "energy_j")


def tabled(make, **limit):
    """fp32 with all but energy; bf16 whose queue grew; int8 with a drift below 0; nf4 like fp32."""
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    for at, trial in enumerate(plan.trials):
        (report,) = reports[trial.hash]
        more = {
            "drift_s": Value("drift_s", "s", -1e-3 if at == 2 else 1e-3),
            # Exactly nothing, all alike.
            "weights_bytes": Value("weights_bytes", "bytes", 0.0),
        }
        if at == 1:
            more["ttft_s"] = Absent("ttft_s", "s", "the queue grew\nall the time")
        reports[trial.hash] = [replace(report, metrics={**report.metrics, **more})]
    return build_table(plan, reports, metrics=METRICS, **limit)


LINES = [
    "no energy: no NVML on this machine",
    "no TTFT of bf16: the queue grew all the time",
    "no ratio of drift of int8: a median is not positive: there is no ratio",
]


def test_each_gap_is_told_once_with_its_reason_in_every_view(make):
    table = tabled(make)
    assert gaps(table, table.rows) == LINES
    terminal = printed(TableView(table), 200)
    paged, markdown = unescape(page(table, ())), to_markdown(table).replace("\\", "")
    for line in LINES:
        assert line in terminal
        assert f"N{line[1:]}." in paged
        assert f"N{line[1:]}." in markdown
    trials = {trial["label"]: trial["metrics"] for trial in to_json(table)["trials"]}
    assert trials["bf16"]["ttft_s"]["reason"] == "the queue grew\nall the time"
    drifts = {label: found["drift_s"].get("ratio_reason") for label, found in trials.items()}
    assert [reason for reason in drifts.values() if reason] == [drifts["int8"]]


def test_two_zeros_that_are_the_same_are_called_so(make):
    table = tabled(make)
    assert [row.cells["weights_bytes"].ratio for row in table.rows] == [None] * 4
    assert printed(TableView(table), 200).count("= same") == 3 + 1  # the legend has one
    assert to_markdown(table).count("(=\u00a0same)") == 3


def test_rows_that_are_only_counted_lack_nothing(make):
    table = tabled(make, limit=2)
    text = printed(TableView(table, max_rows=2), 200)
    assert "… and 2 more of 4 trials" in text
    assert "not measured" not in text


def test_many_reasons_do_not_bury_the_table(make):
    plan = make.plan(prompts=tuple(range(512, 532)))
    reports = make.reports(plan)
    for at, trial in enumerate(plan.trials):
        (report,) = reports[trial.hash]
        found = Absent("ttft_s", "s", f"the queue grew by {at}") if at % 2 else Value("x", "1", 1)
        reports[trial.hash] = [replace(report, metrics={**report.metrics, found.name: found})]
    table = build_table(plan, reports, metrics=METRICS)
    told = gaps(table, table.rows)
    assert len(told) == 13
    assert told[-1] == "… and 29 more in table.json"
