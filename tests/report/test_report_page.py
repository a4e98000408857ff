"""The report page: sentences that follow from the table, figures with data, nothing that runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from orchestrator.attempt import Outcome, RuleResult
from orchestrator.measure import Phase, Samples, Value
from orchestrator.measure.figures import Bars, Breakdown, Distribution, Pareto, Ranking, Scaling
from orchestrator.measure.series import SeriesSet
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.answer import pareto_front, sentences
from orchestrator.report.show.bundle import report_files
from orchestrator.report.show.figures import default_figures, draw, exponent
from orchestrator.report.show.figures.strips import STRIP_POINTS, draw_strips, stretches
from orchestrator.report.show.html import common_provenance, page
from orchestrator.telemetry.recorded_series import read_histories

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
    assert re.fullmatch(
        r"bf16 is best in all 3 groups: TPOT 0\.79× to 0\.80× the baseline"
        r" \(intervals 0\.7\d× to 0\.8\d×\)\.",
        best,
    )
    assert re.fullmatch(
        r"nf4 is smallest: weights 98\.2 MiB, 0\.19× the baseline; "
        r"it comes with TPOT 2\.\d\d×( to 2\.\d\d×)? and perplexity 1\.04×\.",
        smallest,
    )
    assert failed == "1 of 12 trials has no result: int8 · 512→32 (oom_host, killed at 8 GiB)."


def test_the_answer_differs_by_group_where_it_does(make, swept):
    plan, reports = swept
    bf16 = next(t for t in plan.trials if t.axes == {"quant": "bf16", "task.prompt_tokens": 512})
    reports[bf16.hash] = [make.report(bf16, outcome=Outcome.INVALID, verdict="invalid")]
    said = sentences(build_table(plan, reports, metrics=METRICS))
    assert said[0].startswith("bf16 is best at prompt 128: TPOT 4")
    assert said[1].startswith("No trial is better than the baseline fp32 at prompt 512: TPOT 6")
    assert any(s.startswith("Not to be believed: bf16 · 512→32 (steal time") for s in said)


def nf4_fast_and_bad(reports, plan):
    for trial in plan.trials:
        if trial.axes["quant"] == "nf4":
            for report in reports[trial.hash]:
                old = report.metrics["tpot_s"]
                report.metrics["tpot_s"] = Samples(
                    "tpot_s", "s", tuple(v / 6 for v in old.values), (), "ci"
                )
                report.metrics["perplexity"] = Value("perplexity", "1", 23.9)


def test_what_costs_too_much_quality_is_not_called_best(make):
    plan = make.plan()
    reports = make.reports(plan)
    nf4_fast_and_bad(reports, plan)
    best, beyond, *_ = sentences(build_table(plan, reports, metrics=METRICS))
    assert best.startswith(
        "With perplexity at most 5 % above the baseline's: bf16 is best in both groups: TPOT 0."
    )
    assert re.fullmatch(
        r"Beyond that limit nf4 is better still: TPOT 0\.4\d×( to 0\.\d\d×)? the baseline,"
        r" perplexity 1\.3\d×\.",
        beyond,
    )


def test_a_tie_is_called_a_tie(make):
    plan = make.plan(prompts=(512,))
    reports = {t.hash: [make.report(t, noise=0.4)] for t in plan.trials}
    best = sentences(build_table(plan, reports, metrics=METRICS))[0]
    assert "; not distinguishable from " in best


def test_flagged_trials_are_counted_by_rule(make):
    plan = make.plan(prompts=(512,))
    broken = (RuleResult("other_load", "flagged", 0.2, 0.1),)
    reports = {
        t.hash: [make.report(t, verdict="flagged", rules=broken if i else ())]
        for i, t in enumerate(plan.trials)
    }
    said = sentences(build_table(plan, reports, metrics=METRICS))[-1]
    assert said == "4 of 4 trials are flagged: other programs used the machine (3)."


def test_how_precise_trials_are_is_no_flag(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    for at, stop in enumerate(("max_time", "ci", "max_repetitions")):
        series = reports[plan.trials[at].hash][0].metrics["tpot_s"]
        reports[plan.trials[at].hash][0].metrics["tpot_s"] = replace(series, stop_reason=stop)
    table = build_table(plan, reports, metrics=METRICS)
    assert [row.precision for row in table.rows] == ["wide interval", None, "wide interval", None]
    assert {row.verdict for row in table.rows} == {"valid"}
    assert sentences(table)[-1] == (
        "2 of 4 trials have a wide interval: sampling was cut off before the interval was as narrow"
        " as the protocol asks."
    )
    assert "wide interval</small>" in report_files(plan, reports)["report.html"].decode()


def test_failures_of_one_cause_are_said_once(make):
    plan = make.plan()
    reason = "model needs 50.8 GiB, the device has 23.5 GiB. Take a smaller one"
    reports = {
        t.hash: [make.report(t, outcome=Outcome.INFEASIBLE, reason=reason)] for t in plan.trials
    }
    assert sentences(build_table(plan, reports, metrics=METRICS)) == [
        "8 of 8 trials have no result: 8 infeasible, model needs 50.8 GiB, the device has 23.5 GiB."
    ]


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


def test_a_trial_without_a_value_on_the_axis_is_no_point_of_it(make):
    plan = make.plan(quants=("fp32",), prompts=(128, 512, 1024))
    reports = make.reports(plan)
    without = replace(plan.trials[0], axes={"quant": "fp32", "task.prompt_tokens": None})
    table = build_table(replace(plan, trials=(without, *plan.trials[1:])), reports)
    (line,) = draw(Scaling("ttft_s", over="task.prompt_tokens"), table, reports).data
    assert list(line["x"]) == [512.0, 1024.0]


def test_the_roofline_lies_beside_the_measured_curve(make):
    plan = make.plan(quants=("fp32", "nf4"), prompts=(128, 512, 1024))
    reports = make.reports(plan)
    for trial in plan.trials:
        name, expected_s = "predicted_ttft_s", 1e-4 * trial.axes["task.prompt_tokens"]
        reports[trial.hash][0].metrics[name] = Value(name, "s", expected_s)
    table = build_table(plan, reports, metrics=["ttft_s", "predicted_ttft_s"])
    drawn = draw(Scaling("ttft_s", over="task.prompt_tokens"), table, reports)
    measured, predicted = drawn.data[:2]
    assert predicted["line"]["dash"] == "dash"
    assert predicted["line"]["color"] == measured["line"]["color"]
    assert predicted["y"] == pytest.approx([12.8, 51.2, 102.4])
    assert "dashed: roofline by measured ceilings" in drawn.caption
    assert "dotted" not in drawn.caption, "there is no data sheet"


def test_a_ranking_adds_up_to_the_whole(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    for trial in plan.trials[:2]:
        reports[trial.hash][0].facts["top_operators"] = [
            {"name": f"aten::op{i}", "share": 0.3 / (i + 1)} for i in range(9)
        ]
    table = build_table(plan, reports, metrics=METRICS)
    drawn = draw(Ranking("top_operators", "Top operators"), table, reports)
    assert [t["name"] for t in drawn.data][:2] == ["aten::op0", "aten::op1"]
    assert drawn.data[-1]["name"] == "all others"
    for at in range(2):
        assert sum(trace["x"][at] for trace in drawn.data) == pytest.approx(1.0)
    assert draw(Ranking("nothing", "Nothing"), table, reports) is None


def watched(origin_ns: int = 10**12, seconds: int = 20) -> SeriesSet:
    """A GPU at its power cap from 5 s to 8 s, its host idle; a reading every 50 ms."""
    series = SeriesSet(origin_ns)
    capped_s = 0.0
    for i in range(seconds * 20):
        at = origin_ns + i * 50_000_000
        capped_s += 0.05 if 5 <= i / 20 < 8 else 0.0
        series.add("GPU-1", "power_w", at, 600.0 if i == 77 else 300.0 + i % 3)
        series.add("GPU-1", "sm_clock_hz", at, 1.9e9)
        series.add("GPU-1", "temperature_c", at, 61.0 + i % 2)
        series.add("GPU-1", "device_memory_bytes", at, 8e9)
        series.add("GPU-1", "throttle_power_cap_s", at, capped_s, counter=True)
        series.add("process", "cpu_s", at, 2 * i / 20, counter=True)
        series.add("process", "rss_bytes", at, 1e9 + i)
        series.add("host", "cgroup_throttled_s", at, 0.0, counter=True)
    return series


def test_strips_show_what_was_read_phases_and_throttling(make):
    plan = make.plan()
    report = make.report(plan.trials[0])
    second = 10**9
    report.phases = [
        Phase("load", 10**12, 10**12 + 3 * second, measured=False),
        Phase("decode", 10**12 + 3 * second, 10**12 + 20 * second),
    ]
    drawn = draw_strips(report, read_histories(watched().to_parquet()))
    series = {trace["name"]: trace for trace in drawn.data}
    assert max(series["power"]["y"]) == 600.0, "peaks survive"
    assert len(series["power"]["y"]) <= STRIP_POINTS
    assert set(series["cores used by the attempt"]["y"]) == {2.0}, "a counter is shown as its rate"
    assert {"SM", "temperature", "GPU memory", "resident", "load", "decode"} <= set(series)
    shades = [s for s in drawn.layout["shapes"] if s["y0"] == 0]
    assert [(s["x0"], s["x1"]) for s in shades] == [(0.0, 3.0), (3.0, 20.0)]
    marks = [s for s in drawn.layout["shapes"] if s["y0"] > 0]
    assert [(s["x0"], s["x1"]) for s in marks] == [(pytest.approx(4.95), pytest.approx(7.95))]
    assert drawn.caption == "power cap 3.0 s"


def test_reasons_tell_of_throttling_where_counters_do_not():
    series = SeriesSet(0)
    for i, reasons in enumerate([0, 0x20, 0x20, 0, 0x8]):
        series.add("GPU-1", "clocks_event_reasons", i * 10**9, float(reasons))
        series.add("host", "steal_s", i * 10**9, 0.5 * (i == 4), counter=True)
    found = stretches(read_histories(series.to_parquet()))
    assert [(s.kind, s.begin_s, s.end_s) for s in found] == [
        ("thermal slowdown", 0.0, 2.0),
        ("CPU time stolen", 3.0, 4.0),
        ("hardware slowdown", 3.0, 4.0),
    ]


def test_nothing_read_draws_no_strips(make):
    report = make.report(make.plan().trials[0])
    assert draw_strips(report, read_histories(SeriesSet().to_parquet())) is None


def test_strips_of_many_attempts_leave_the_page_small(make):
    plan = make.plan(prompts=tuple(range(1, 17)))
    content = watched().to_parquet()
    files = report_files(plan, make.reports(plan), telemetry=lambda attempt: content)
    html = files["report.html"].decode()
    shown = html.count('<details class="strip"')
    assert 8 <= shown <= 60
    assert f"{shown} of 64 attempts" in html
    assert html.count(" open><summary>") == 1
    assert len(files["report.html"]) < 6_000_000


def test_a_damaged_series_costs_its_strip_only(make):
    plan = make.plan()
    files = report_files(plan, make.reports(plan), telemetry=lambda attempt: b"PAR1 not")
    assert b'<details class="strip"' not in files["report.html"]


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


def test_a_breakdown_of_many_trials_leaves_each_label_its_lines(make):
    heights = []
    for prompts in ((512,), tuple(range(512, 520))):
        plan = make.plan(prompts=prompts)
        reports = make.reports(plan)
        table = build_table(plan, reports, metrics=METRICS)
        figure = draw(Breakdown(("ttft_s", "tpot_s")), table, reports)
        lines = sum(name.count("<br>") + 1 for name in figure.data[0]["y"])
        heights.append(figure.height_px)
    assert heights[0] is None  # the page's usual height has room for a few
    assert heights[1] >= 16 * lines


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
    plan = make.plan(prompts=tuple(range(1, 151)))
    reports = {t.hash: [make.report(t)] for t in plan.trials}
    table = build_table(plan, reports, metrics=METRICS, limit=40)
    drawn = [d for f in default_figures(table) if (d := draw(f, table, reports)) is not None]
    html = page(table, drawn)
    assert len(html.encode()) < 6_000_000
    assert "The first 500 of 600" in html


def test_what_the_task_names_of_a_trial_stands_beneath_it(table):
    first, *rest = table.rows
    html = page(replace(table, rows=(replace(first, words=("disk & <b>",)), *rest)), ())
    assert f"<code>{first.hash[:12]}</code> · disk &amp; &lt;b&gt;</small>" in html
    assert html.count("disk &amp;") == 1


def test_a_reason_that_trials_share_is_told_once(make):
    plan = make.plan(prompts=(512,))
    reports = make.reports(plan)
    for trial in plan.trials[1:3]:
        reports[trial.hash] = [make.report(trial, outcome=Outcome.INFEASIBLE, reason="no room")]
    html = page(build_table(plan, reports, metrics=METRICS), ())
    told = html[html.index("Without a result to rely on") :]
    assert told.count("no room") == told.count("as above") == 1


def test_a_sweep_without_results_still_has_a_page(make):
    plan = make.plan()
    html = report_files(plan, {})["report.html"].decode()
    assert "8 not_run" in html
    assert "<h2>Figures" not in html


def test_the_page_has_the_command_as_a_shell_takes_it(make):
    plan = make.plan()
    provenance = {"command": ["python", "-m", "orchestrator", "model.path=a b"], "cgroup": {}}
    text = page(build_table(plan, make.reports(plan, 1)), [], provenance=provenance)
    assert "<dd>python -m orchestrator &#39;model.path=a b&#39;</dd>" in text
    assert "cgroup" not in text


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
