"""The report page: sentences that follow from the table, figures with data, nothing that runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from orchestrator.attempt import Outcome
from orchestrator.measure import Samples
from orchestrator.measure.figures import Bars, Breakdown, Distribution, Pareto, Scaling
from orchestrator.report.answer import pareto_front, sentences
from orchestrator.report.bundle import report_files
from orchestrator.report.figures import default_figures, draw, exponent
from orchestrator.report.html import common_provenance, page
from orchestrator.report.rows import build_table

METRICS = ("tpot_s", "ttft_s", "weights_bytes", "perplexity")


@pytest.fixture
def swept(make):
    plan = make.plan(prompts=(128, 512, 1024))
    reports = make.reports(plan, 2)
    int8 = next(t for t in plan.trials if t.axes == {"quant": "int8", "task.prompt_tokens": 512})
    reports[int8.hash] = [make.report(int8, outcome=Outcome.OOM_HOST, reason="killed at 8 GiB")]
    return plan, reports


@pytest.fixture
def table(swept):
    return build_table(*swept, metrics=METRICS)


def test_the_answer_is_what_the_table_holds(table):
    best, smallest, failed = sentences(table)
    assert re.fullmatch(r"bf16 is best in all 3 groups: TPOT 0\.79× to 0\.80× the baseline\.", best)
    assert re.match(
        r"nf4 · 128→32 is smallest: weights 98\.2 MiB, 0\.19× the baseline; "
        r"it comes with TPOT 2\.\d\d× and perplexity 18\.2 \(1\.04×\)\.",
        smallest,
    )
    assert failed == "1 trial has no result, of 12: int8 · 512→32 (oom_host: killed at 8 GiB)."


def test_the_answer_differs_by_group_where_it_does(make, swept):
    plan, reports = swept
    bf16 = next(t for t in plan.trials if t.axes == {"quant": "bf16", "task.prompt_tokens": 512})
    reports[bf16.hash] = [make.report(bf16, outcome=Outcome.INVALID, verdict="invalid")]
    said = sentences(build_table(plan, reports, metrics=METRICS))
    assert said[0].startswith("bf16 is best at prompt 128: TPOT 4")
    assert said[1].startswith("Nothing beats the baseline fp32 at prompt 512: TPOT 6")
    assert any(s.startswith("Not to be believed: bf16 · 512→32 (steal time") for s in said)


def test_nothing_is_concluded_from_nothing(make):
    plan = make.plan()
    assert sentences(build_table(plan, {}, metrics=METRICS)) == []


def test_the_front_holds_what_nothing_beats(table):
    rows = [row for row in table.rows if row.axes["task.prompt_tokens"] == 128]
    front = {row.axes["quant"] for row in pareto_front(rows, ("tpot_s", "weights_bytes"))}
    assert front == {"bf16", "int8", "nf4"}, "fp32 is slower and larger than bf16"
    assert pareto_front(rows, ("value",)) == []


def test_an_exponent_is_fitted_from_three_points_on():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2.0)
    assert exponent([1, 2], [1, 4]) is None
    assert exponent([1, 1, 1], [1, 2, 3]) is None
    assert exponent([1, 2, 4], [5, 5, 5]) == 0.0


def test_bars_carry_values_and_whiskers(table, swept):
    drawn = draw(Bars("tpot_s"), table, swept[1])
    series = {trace["name"]: trace for trace in drawn.data}
    assert set(series) == {"prompt 128", "prompt 512", "prompt 1024"}
    row = next(row for row in table.rows if row.label == "nf4 · 128→32")
    at = list(series["prompt 128"]["x"]).index("nf4")
    cell = row.cells["tpot_s"]
    assert series["prompt 128"]["y"][at] == pytest.approx(1e3 * cell.median)
    whisker = series["prompt 128"]["error_y"]["array"][at]
    assert whisker == pytest.approx(1e3 * (cell.ci_high - cell.median))
    assert "int8" not in series["prompt 512"]["x"], "a failure has no bar"


def test_scaling_has_a_line_each_and_its_exponent(table, swept):
    drawn = draw(Scaling("ttft_s", over="task.prompt_tokens"), table, swept[1])
    names = [trace["name"] for trace in drawn.data]
    assert [name.split()[0] for name in names] == ["fp32", "bf16", "int8", "nf4"]
    assert re.fullmatch(r"fp32  ∝ x\^(1\.0\d|0\.9\d)", names[0])
    assert drawn.layout["xaxis"]["type"] == "log"
    assert draw(Scaling("ttft_s", over="quant"), table, swept[1]) is None
    assert draw(Scaling("ttft_s", over="task.batch_size"), table, swept[1]) is None


def test_a_distribution_keeps_both_ends(table, swept):
    plan, reports = swept
    drawn = draw(Distribution("itl_s"), table, reports)
    assert len(drawn.data) == 11
    samples = [v for r in reports[plan.trials[0].hash] for v in r.metrics["itl_s"].values]
    line = next(trace for trace in drawn.data if trace["name"] == "fp32 · 128→32")
    assert line["x"][0] == pytest.approx(1e3 * min(samples))
    assert line["x"][-1] == pytest.approx(1e3 * max(samples))
    assert list(line["y"]) == sorted(line["y"])
    assert line["y"][-1] == 1.0


def test_a_breakdown_stacks_what_there_is(table, swept):
    drawn = draw(Breakdown(("ttft_s", "tpot_s", "nowhere_s")), table, swept[1])
    assert [trace["name"] for trace in drawn.data] == ["TTFT", "TPOT"]
    assert draw(Breakdown(("nowhere_s",)), table, swept[1]) is None


def test_pareto_needs_every_metric(table, swept):
    assert draw(Pareto("weights_bytes", "tpot_s", "perplexity"), table, swept[1]) is not None
    assert draw(Pareto("weights_bytes", "energy_j"), table, swept[1]) is None


def test_default_figures_suit_what_was_measured(table):
    kinds = [type(figure).__name__ for figure in default_figures(table)]
    assert kinds[0] == "Pareto"
    assert {"Bars", "Scaling", "Distribution"} <= set(kinds)


class Page(HTMLParser):
    """What a browser would run and fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.fetched: list[str] = []
        self.text: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self._in_script = tag in ("script", "style")
        if tag == "script":
            self.scripts.append(found)
        self.fetched += [found[a] for a in ("src", "href") if found.get(a)]

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if not self._in_script:
            self.text.append(data)


def test_the_page_is_whole_small_and_runs_nothing_of_others(make):
    hostile = "</script><script>alert(1)</script>"
    plan = make.plan(sweep=f"quant{hostile}", description=hostile, quants=("fp32", hostile))
    reports = make.reports(plan)
    failed = plan.trials[-1]
    reports[failed.hash] = [make.report(failed, outcome=Outcome.ERROR, reason=hostile)]
    reports[plan.trials[0].hash][0].provenance[hostile] = hostile
    files = report_files(plan, reports, command=f"python -m orchestrator +sweep=quant{hostile}")
    assert set(files) == {"report.html", "report.md", "table.csv", "table.json"}
    assert len(files["report.html"]) < 6_000_000
    html = files["report.html"].decode()
    parsed = Page()
    parsed.feed(html)
    figures = [s for s in parsed.scripts if s.get("type") == "application/json"]
    assert len(parsed.scripts) == 2 + len(figures), "plotly, ours, and data"
    assert len(figures) >= 5
    assert parsed.fetched == [], "works offline"
    assert "".join(parsed.text).count("alert(1)") >= 5, "shown as text"
    for found in re.findall(
        r'<script type="application/json" id="figure-\d+">(.*?)</script>', html
    ):
        assert json.loads(found)["data"]


def test_a_large_sweep_stays_a_page(make):
    plan = make.plan(prompts=tuple(range(1, 751)))
    reports = {t.hash: [make.report(t)] for t in plan.trials}
    table = build_table(plan, reports, metrics=METRICS, limit=40)
    drawn = [d for f in default_figures(table) if (d := draw(f, table, reports)) is not None]
    html = page(table, drawn)
    assert len(html.encode()) < 6_000_000
    assert "The first 500 of 3000" in html


def test_a_sweep_without_results_still_has_a_page(make):
    plan = make.plan()
    html = report_files(plan, {})["report.html"].decode()
    assert "8 not_run" in html
    assert "<h2>Figures" not in html


def test_provenance_says_where_attempts_differ(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    reports[plan.trials[1].hash][0].provenance["host"] = "node-2"
    found = common_provenance(reports)
    assert found["host"] == "2 different"
    assert found["git_commit"] == "0123abcd"


def test_samples_never_reach_the_page_as_nan(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    reports[plan.trials[0].hash][0].metrics["tpot_s"] = Samples("tpot_s", "s", ())
    assert b"NaN" not in report_files(plan, reports)["table.json"]
