"""The final table: right rows, right ratios, honest marks, at any width and number of trials."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from orchestrator.attempt import Outcome
from orchestrator.measure import Samples
from orchestrator.report.analyse.rows import build_table, headline
from orchestrator.report.show.export import to_csv, to_json_text, to_markdown
from orchestrator.report.show.table import final_table
from testing.printed import printed

METRICS = (
    "tpot_s",
    "ttft_s",
    "decode_tokens_per_s",
    "load_s",
    "weights_bytes",
    "perplexity",
    "energy_j",
)


@pytest.fixture
def swept(make):
    """A sweep with a failure, an invalid trial and a trial of three attempts."""
    plan = make.plan()
    reports = make.reports(plan)
    bf16, int8, nf4 = plan.trials[2], plan.trials[5], plan.trials[6]
    reports[bf16.hash] = [make.report(bf16, n, verdict="flagged") for n in (1, 2, 3)]
    reports[int8.hash] = [make.report(int8, outcome=Outcome.OOM_HOST, reason="killed at 7.9 GiB")]
    reports[nf4.hash] = [make.report(nf4, outcome=Outcome.INVALID, verdict="invalid")]
    return plan, reports


def test_the_baseline_leads_its_group_and_ratios_are_to_it(swept):
    plan, reports = swept
    table = build_table(plan, reports, metrics=METRICS)
    rows = {row.label: row for row in table.rows}
    assert [r.label for r in table.rows] == [
        *("fp32 · 512→32", "bf16 · 512→32", "int8 · 512→32", "nf4 · 512→32"),
        *("fp32 · 1024→32", "bf16 · 1024→32", "int8 · 1024→32", "nf4 · 1024→32"),
    ]
    assert [r.label for r in table.rows if r.baseline] == ["fp32 · 512→32", "fp32 · 1024→32"]
    for prompt in (512, 1024):
        new, base = rows[f"bf16 · {prompt}→32"], rows[f"fp32 · {prompt}→32"]
        for name in ("tpot_s", "ttft_s", "weights_bytes"):
            cell = new.cells[name]
            assert cell.ratio == pytest.approx(cell.median / base.cells[name].median, rel=1e-6)
    assert rows["fp32 · 512→32"].cells["tpot_s"].ratio is None
    assert table.metrics == METRICS


def test_a_fact_that_the_task_names_stands_beneath_its_trial(make, monkeypatch):
    from orchestrator.measure.registry import find_task

    plan = make.plan()
    reports = make.reports(plan)
    task = find_task(plan.trials[0].identity["task"]["name"])
    monkeypatch.setattr(
        "orchestrator.measure.registry.find_task",
        lambda name: replace(task, named=("bottleneck", "weather")),
    )
    for report in reports[plan.trials[1].hash]:
        report.facts["bottleneck"] = "disk"
    text = printed(final_table(plan, reports, metrics=METRICS))
    assert f"{plan.trials[1].hash[:12]} · disk" in text
    assert text.count(" · disk") == text.count(plan.trials[1].hash[:12] + " · disk")


def test_a_baseline_that_is_not_first_still_leads(make):
    plan = make.plan(quants=("nf4", "fp32"), baseline={"quant": "fp32"})
    table = build_table(plan, make.reports(plan), metrics=METRICS)
    assert [row.label for row in table.rows][:2] == ["fp32 · 512→32", "nf4 · 512→32"]


def test_without_a_baseline_the_first_value_of_the_first_axis_serves(make):
    plan = make.plan(baseline={})
    table = build_table(plan, make.reports(plan), metrics=METRICS)
    assert {row.axes["quant"] for row in table.rows if row.baseline} == {"fp32"}


def test_a_baseline_that_failed_leaves_no_ratio(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    fp32 = plan.trials[0]
    reports[fp32.hash] = [make.report(fp32, outcome=Outcome.ERROR, reason="no such file")]
    table = build_table(plan, reports, metrics=METRICS)
    assert all(cell.ratio is None for row in table.rows for cell in row.cells.values())
    assert "no such file" in printed(final_table(plan, reports, metrics=METRICS))


def test_disbelieved_numbers_do_not_count_beside_believed_ones(make):
    plan = make.plan(quants=("fp32", "nf4"), prompts=(512,))
    reports = make.reports(plan)
    nf4 = plan.trials[1]
    slow = make.report(nf4, 2, outcome=Outcome.INVALID, verdict="invalid")
    slow.metrics["tpot_s"] = Samples("tpot_s", "s", (9.0, 9.1, 9.2))
    alone = build_table(plan, reports, metrics=METRICS).rows[1]
    reports[nf4.hash].append(slow)
    both = build_table(plan, reports, metrics=METRICS).rows[1]
    assert both.cells["tpot_s"] == alone.cells["tpot_s"]
    assert (both.outcome, both.verdict, both.attempts) == ("ok", "valid", 1)


def test_one_timing_a_side_is_no_difference(make):
    plan = make.plan(prompts=(512,))
    table = build_table(plan, make.reports(plan), metrics=METRICS)
    load, weights = (table.rows[3].cells[n] for n in ("load_s", "weights_bytes"))
    assert load.ratio == pytest.approx(2.9, rel=0.1)
    assert (load.standing, load.ratio_low) == ("inconclusive", None)
    assert load.judged.reason == "one sample: its uncertainty cannot be known"
    assert weights.standing == "improvement"


def test_headline_metrics_come_from_the_task(make):
    from orchestrator.measure.registry import find_task

    assert headline(make.plan()) == list(find_task("inference").headline)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_table_keeps_to_the_width(swept, width):
    plan, reports = swept
    text = printed(final_table(plan, reports, metrics=METRICS), width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text, "nothing is squeezed: what does not fit is named"
    assert "not shown" not in text
    assert all(text.count(f" {unit} ") or f" {unit}\n" in text for unit in ("ms", "MiB", "s"))


def test_a_long_table_names_the_columns_that_do_not_fit(make):
    plan = make.plan(prompts=tuple(range(1, 8)))
    text = printed(final_table(plan, make.reports(plan), metrics=METRICS), 60)
    assert "not shown for lack of width: " in text
    assert "TTFT" in text


def test_the_table_reads(swept):
    plan, reports = swept
    lines = [x.rstrip() for x in printed(final_table(plan, reports, metrics=METRICS)).splitlines()]
    assert lines[0].split() == ["TPOT", "TTFT", "decode", "load", "weights", "perplexity"]
    assert lines[1].split() == ["quant", "ms", "ms", "tok/s", "s", "MiB"]
    assert lines[2] == "prompt 512"
    assert re.fullmatch(r"✓ fp32 +6\d\.\d ±\d\.\d +4\d\d ±\d .*17\.5", lines[3])
    assert re.fullmatch(r"  [0-9a-f]{12} +baseline", lines[4])
    assert lines[5].startswith("! bf16 (3)")
    assert re.match(rf"  {plan.trials[2].hash[:12]} +▲ 0\.80× +▲ 0\.80× +▲ 1\.2\d×", lines[6])
    assert lines[9].startswith("✗ nf4")
    assert lines[10].split() == [plan.trials[6].hash[:12]], "no ratio of what is not believed"
    assert lines[12] == "prompt 1024"
    text = "\n".join(lines)
    assert re.search(r"✗ int8 +oom_host\n", text)
    assert "no energy: no NVML on this machine" in text
    assert "2 of 8 trials without a result to rely on: 1 invalid, 1 oom_host" in text
    assert re.search(r"oom_host  int8 · 1024→32  [0-9a-f]{12}  killed at 7\.9 GiB", text)
    assert re.search(
        r"invalid   nf4 · 512→32    [0-9a-f]{12}  steal time 8\.2 % \(limit 5 %\)", text
    )
    assert f"python -m orchestrator reproduce {plan.trials[0].hash[:12]}" in text


def test_colours_say_nothing_that_signs_do_not(swept, monkeypatch):
    plan, reports = swept
    view = final_table(plan, reports, metrics=METRICS)
    coloured = printed(view, force_terminal=True, color_system="truecolor")
    assert "\x1b[31m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(view, force_terminal=True)
    assert "\x1b[31m" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == re.sub(r"\x1b\[[0-9;]*m", "", plain)


def test_many_trials_are_cut_with_a_note_and_failures_are_still_told(make):
    plan = make.plan(prompts=tuple(range(1, 751)))
    reports = {t.hash: [make.report(t)] for t in plan.trials[:400]}
    last = plan.trials[399]
    reports[last.hash] = [make.report(last, outcome=Outcome.TIMEOUT, reason="ran past 1800 s")]
    text = printed(final_table(plan, reports, metrics=("tpot_s",), max_rows=20))
    assert "… and 380 more of 400 trials" in text
    assert "2600 of 3000 trials have not run" in text
    assert "ran past 1800 s" in text
    assert len(text.splitlines()) < 120


def test_nothing_measured_is_said_not_drawn(make):
    plan = make.plan()
    assert "8 of 8 trials have not run" in printed(final_table(plan, {}, metrics=METRICS))
    reports = {
        t.hash: [make.report(t, outcome=Outcome.CRASHED, reason="SIGSEGV")] for t in plan.trials
    }
    text = printed(final_table(plan, reports, metrics=METRICS))
    assert "8 of 8 trials without a result to rely on: 8 crashed" in text
    assert text.count("SIGSEGV") == 1
    assert text.count("as above") == 7
    of = dict(zip(reports, ("SIGSEGV", "no memory", None, "SIGSEGV") * 2, strict=True))
    for config_hash, reason in of.items():
        reports[config_hash][0].reason = reason
    text = printed(final_table(plan, reports, metrics=METRICS))
    assert [text.count(said) for said in ("SIGSEGV", "no memory", "as above")] == [1, 1, 5]


def test_a_trial_that_cannot_be_done_is_a_row_with_its_reason(make):
    plan = make.plan(prompts=(512,))
    trials = (*plan.trials[:3], replace(plan.trials[3], infeasible="nf4 needs another device"))
    plan = replace(plan, trials=trials)
    reports = make.reports(plan)
    reports.pop(trials[3].hash)
    text = printed(final_table(plan, reports, metrics=METRICS))
    assert re.search(r"✗ nf4 .* infeasible|✗ nf4 +infeasible", text)
    assert "nf4 needs another device" in text


def test_csv_holds_base_units_and_every_digit(swept):
    plan, reports = swept
    table = build_table(plan, reports, metrics=METRICS)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == 8
    first = rows[0]
    assert float(first["tpot_s"]) == table.rows[0].cells["tpot_s"].median
    assert (first["quant"], first["task.prompt_tokens"], first["baseline"]) == (
        "fp32",
        "512",
        "true",
    )
    failed = next(row for row in rows if row["outcome"] == "oom_host")
    assert (failed["tpot_s"], failed["reason"]) == ("", "killed at 7.9 GiB")


def test_json_reads_back(swept):
    plan, reports = swept
    table = build_table(plan, reports, metrics=METRICS)
    data = json.loads(to_json_text(table))
    assert [t["hash"] for t in data["trials"]] == [row.hash for row in table.rows]
    assert data["trials"][0]["metrics"]["energy_j"] == {
        "value": None,
        "unit": "J",
        "reason": "no NVML on this machine",
    }


def test_markdown_survives_hostile_text(swept):
    plan, reports = swept
    reports[plan.trials[5].hash][0].reason = "a | b\n<script>*x*</script>"
    text = to_markdown(build_table(plan, reports, metrics=METRICS), summary=["Take bf16."])
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {len(METRICS) - 1 + 3}
    assert "Take bf16." in lines
    assert "\\|" in text
    assert "<script>" not in text.replace("\\<", "")
    assert "| ✓ **fp32 · 512→32** |" in text


def test_the_rungs_of_a_ladder_are_held_against_its_foot(make):
    plan = make.plan(prompts=(512,))
    axes = ("quant", "task.depth", "task.transfer")
    rungs = [("fp32", 1, "sync"), ("bf16", 1, "async"), ("int8", 2, "async"), ("nf4", 4, "async")]
    trials = tuple(
        replace(trial, axes=dict(zip(axes, rung, strict=True)))
        for trial, rung in zip(plan.trials, rungs, strict=True)
    )
    values = {a: tuple(dict.fromkeys(str(t.axes[a]) for t in trials)) for a in axes}
    ladder = replace(plan, trials=trials, axes=values, baseline={"task.transfer": "sync"})
    table = build_table(ladder, make.reports(ladder), metrics=["tpot_s"])
    assert [row.baseline for row in table.rows] == [True, False, False, False]
    assert all(row.cells["tpot_s"].ratio is not None for row in table.rows[1:])
    assert {row.group for row in table.rows} == {()}


def test_names_too_long_for_their_column_say_what_changed(make):
    plan = make.plan(prompts=(512,))
    axes = ("quant", "task.resident", "task.buffer", "task.transfer", "task.depth")
    rungs = [
        ("bf16", "nothing_at_all", "tensor", "sync", 1),
        ("bf16", "embedding_and_head", "tensor", "sync", 2),
        ("bf16", "embedding_and_head", "single", "async", 2),
        ("nf4", "embedding_and_head", "single", "async", 4),
    ]
    trials = tuple(
        replace(trial, axes=dict(zip(axes, rung, strict=True)))
        for trial, rung in zip(plan.trials, rungs, strict=True)
    )
    values = {a: tuple(dict.fromkeys(str(t.axes[a]) for t in trials)) for a in axes}
    ladder = replace(plan, trials=trials, axes=values, baseline={"task.resident": "nothing_at_all"})
    said = printed(final_table(ladder, make.reports(ladder), metrics=["tpot_s"]))
    assert re.search(r"^✓ bf16 · nothing_at_all · .*\n  tensor · depth 1 ", said, re.M)
    names = re.findall(r"^✓ (….*?)  +\d", said, re.M)
    assert names == ["… embedding_and_head · depth 2", "… single", "… nf4 · depth 4"]
    assert "… otherwise as above" in " ".join(said.split())
    short = printed(final_table(plan, make.reports(plan), metrics=["tpot_s"]))
    assert "otherwise as above" not in short


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_wide_letters_and_many_attempts_cut_no_figure(make, width):
    def named(trial, name):
        return replace(trial, axes={**trial.axes, "quant": name})

    plan = make.plan(quants=("fp32", "bf16"), prompts=(512,))
    names = ("零" * 14, "四比特" * 4)
    trials = tuple(map(named, plan.trials, names))
    plan = replace(plan, trials=trials, axes={"quant": names}, baseline={"quant": names[0]})
    reports = {t.hash: [make.report(t, n) for n in range(1, 102)] for t in trials[:1]}
    reports[trials[1].hash] = [make.report(trials[1])]
    lines = printed(final_table(plan, reports, metrics=METRICS), width).splitlines()
    assert max(map(cell_len, lines)) <= width
    drawn = lines[: next(n for n, line in enumerate(lines) if line.startswith("median ±"))]
    assert not [line for line in drawn if "…" in line]
    assert [line for line in drawn if f"{names[0]} (101)" in line]
