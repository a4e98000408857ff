"""One set of attempts, five views: table, page, answer, compare and gate agree on every ratio."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from orchestrator.measure import Absent
from orchestrator.report.analyse.compare import compare
from orchestrator.report.analyse.gate import gate
from orchestrator.report.analyse.gate_rules import rules_from
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.answer import sentences
from orchestrator.report.show.compare_view import ComparisonView
from orchestrator.report.show.export import to_json, to_markdown
from orchestrator.report.show.gate_view import STATES
from orchestrator.report.show.html import page
from orchestrator.report.show.style import STANDING_MARKS
from orchestrator.report.show.table import TableView
from orchestrator.report.show.units import ratio
from testing.printed import printed

METRICS = ("tpot_s", "ttft_s", "decode_tokens_per_s", "load_s", "weights_bytes", "perplexity")
MARK = "|".join(re.escape(mark) for mark, _, _ in STANDING_MARKS.values())
SAID = re.compile(rf"({MARK})\s([\d.]+×)")
# Noise within a process, attempts, slowness of what is set against fp32, A/A noise.
WORLDS = [
    (0.003, 1, {"bf16": 1.031, "int8": 0.94, "nf4": 1.2}, None),
    (0.02, 3, {"bf16": 1.03, "int8": 0.97, "nf4": 1.06}, None),
    (0.02, 5, {"bf16": 1.0, "int8": 0.9, "nf4": 1.1}, 0.04),
    (0.15, 2, {"bf16": 1.1, "int8": 0.8, "nf4": 1.3}, None),
]


def lines_of(view) -> list[str]:
    return printed(view, 240).splitlines()


def world(make, monkeypatch, noise, attempts, slowness):
    monkeypatch.setattr("tests.report.conftest.SLOWNESS", {"fp32": 1.0, **slowness})
    plan = make.plan(prompts=(512,))
    reports = {
        t.hash: [make.report(t, n, noise=noise) for n in range(1, attempts + 1)]
        for t in plan.trials
    }
    return plan, reports


@pytest.mark.parametrize(("noise", "attempts", "slowness", "aa"), WORLDS)
def test_all_views_agree_on_every_ratio(make, monkeypatch, noise, attempts, slowness, aa):
    plan, reports = world(make, monkeypatch, noise, attempts, slowness)
    table = build_table(plan, reports, metrics=METRICS, noise=aa)
    base = table.rows[0]
    terminal = {line.split()[0]: SAID.findall(line) for line in lines_of(TableView(table)) if line}
    rows = re.findall(r"<code>(\w{12})</code>(.*?)</tr>", page(table, ()))
    paged = {short: SAID.findall(unescape(cells)) for short, cells in rows}
    marked = re.findall(r"`(\w{12})` \|(.*)", to_markdown(table))
    markdown = {short: SAID.findall(cells) for short, cells in marked}
    exported = {t["hash"]: t["metrics"] for t in to_json(table)["trials"]}
    rules = rules_from({"rules": [{"kind": "difference", "metrics": list(METRICS)}]})
    for row in table.rows[1:]:
        a, b = {base.hash: reports[base.hash]}, {row.hash: reports[row.hash]}
        comparison = compare(a, b, noise=aa, metrics=METRICS)
        judged = {found.spec.name: found.judged for found in comparison.rows}
        assert judged == {name: cell.judged for name, cell in row.cells.items()}
        expected = [(STANDING_MARKS[j.finding][0], ratio(j.ratio)) for j in judged.values()]
        assert terminal[row.hash[:12]] == expected
        assert paged[row.hash[:12]] == expected
        assert markdown[row.hash[:12]] == expected
        shown = lines_of(ComparisonView(comparison))
        data = {found["metric"]: found["verdict"] for found in comparison.to_json()["rows"]}
        gated = {found.metric: found for found in gate(b, a, rules, noise=aa).rows}
        for name, found in judged.items():
            assert exported[row.hash][name]["standing"] == data[name] == found.finding
            mark, _, word = STANDING_MARKS[found.finding]
            line = next(x for x in shown if x.startswith(f"  {table.title(name)}  "))
            assert line.rstrip().endswith(f"{mark} {word}")
            state = gated[name].state
            corrected = "Holm" in (gated[name].reason or "")
            assert state == (found.finding if found.finding in STATES else "pass") or corrected
            assert gated[name].value == found.ratio
        if f"{row.own_label} is best" in (said := sentences(table)[0]):
            assert f"{STANDING_MARKS[judged['tpot_s'].finding][2]})" in said


def test_the_worlds_above_have_every_finding(make, monkeypatch):
    found = set()
    for noise, attempts, slowness, aa in WORLDS:
        plan, reports = world(make, monkeypatch, noise, attempts, slowness)
        table = build_table(plan, reports, metrics=METRICS, noise=aa)
        found |= {cell.standing for row in table.rows[1:] for cell in row.cells.values()}
    assert found == set(STANDING_MARKS) - {"incomparable"}


def test_who_is_not_told_apart_from_the_best_is_judged_too(make, monkeypatch):
    plan, reports = world(make, monkeypatch, 0.02, 3, {"bf16": 0.90, "int8": 0.895, "nf4": 1.3})
    table = build_table(plan, reports, metrics=METRICS)
    best = sentences(table)[0]
    winner, other = ("bf16", "int8") if best.startswith("bf16") else ("int8", "bf16")
    rows = {row.own_label: row for row in table.rows}
    assert table.judged("tpot_s", rows[other], rows[winner]).finding != "regression"
    assert f"not distinguishable from {other} (" in best
    assert "nf4" not in best


@pytest.mark.parametrize("ended", ["invalid", "failed"])
def test_a_baseline_without_a_valid_attempt_gives_no_ratio_and_says_why(make, ended):
    from orchestrator.attempt import Outcome

    plan = make.plan()
    reports = make.reports(plan)
    fp32 = plan.trials[0]
    bad = make.report(fp32, outcome=Outcome.INVALID, verdict="invalid")
    failed = make.report(fp32, outcome=Outcome.OOM_HOST, reason="killed at 7.9 GiB")
    reports[fp32.hash] = [bad if ended == "invalid" else failed]
    why = "invalid: steal time 8.2 % (limit 5 %)"
    if ended == "failed":
        why = "oom_host: killed at 7.9 GiB"
    reason = f"the baseline fp32 · 512→32 is {why}"
    table = build_table(plan, reports, metrics=METRICS)
    for row in table.rows:
        ratios = {cell.ratio for cell in row.cells.values()}
        beside_it = row.axes["task.prompt_tokens"] == 512 or row.baseline
        assert (ratios == {None}) == beside_it, row.label
        if beside_it and row.axes["quant"] != "fp32":
            assert {cell.standing for cell in row.cells.values()} == {"incomparable"}
    assert f"no ratios: {reason}" in [line.rstrip() for line in lines_of(TableView(table))]
    assert f"No ratios: {reason}." in sentences(table)
    assert reason in unescape(page(table, ()))
    assert reason in to_markdown(table).replace("\\", "")


def test_other_hardware_than_the_baselines_gives_no_ratio_and_says_why(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    reports[plan.trials[3].hash][0].facts["hardware_fingerprint"] = "another"
    table = build_table(plan, reports, metrics=METRICS)
    assert [row.cells["tpot_s"].ratio is None for row in table.rows] == [True, False, False, True]
    assert list(table.missing_ratios) == ["different hardware: unknown and another"]
    text = "\n".join(lines_of(TableView(table)))
    assert "no ratios: different hardware: unknown and another" in text
    found = compare(
        {plan.trials[0].hash: reports[plan.trials[0].hash]},
        {plan.trials[3].hash: reports[plan.trials[3].hash]},
    )
    assert {row.judged.finding for row in found.rows} == {"incomparable"}


def test_what_may_not_be_compared_is_not_called_the_best(make, monkeypatch):
    plan, reports = world(make, monkeypatch, 0.003, 2, {"bf16": 0.5, "int8": 0.8, "nf4": 1.2})
    for report in reports[plan.trials[1].hash]:
        report.facts["hardware_fingerprint"] = "another"
    said = sentences(build_table(plan, reports, metrics=METRICS))
    # bf16 was faster, on another machine.
    assert said[0].split(":")[0].endswith("int8 is best")
    assert not [line for line in said if "bf16" in line and "is smallest" not in line]
    for trial in plan.trials[1:]:
        for report in reports[trial.hash]:
            report.facts["hardware_fingerprint"] = "another"
    said = sentences(build_table(plan, reports, metrics=METRICS))
    assert said == ["No ratios: different hardware: unknown and another."]


def test_what_has_no_quality_is_not_said_to_keep_it(make, monkeypatch):
    plan, reports = world(make, monkeypatch, 0.003, 2, {"bf16": 0.5, "int8": 0.8, "nf4": 1.2})
    bf16 = plan.trials[1].hash
    unknown = {"perplexity": Absent("perplexity", "1", "the server gives no logits")}
    reports[bf16] = [replace(r, metrics={**r.metrics, **unknown}) for r in reports[bf16]]
    said = sentences(build_table(plan, reports, metrics=METRICS))
    assert said[0].startswith("With perplexity at most 5 % above the baseline's: int8 is best")
    assert said[1].startswith("Beyond that limit bf16 is better still")
    assert said[1].endswith("perplexity not measured.")
