"""A trial over time: points as everywhere, what is new, what differed, and both views of it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.conditions import Conditions
from orchestrator.measure.metric import MetricSpec, Value
from orchestrator.report.analyse.differences import differences
from orchestrator.report.analyse.history import History, Series, Taken, points_of, series_of
from orchestrator.report.show.figures.levels import draw_over_time
from orchestrator.report.show.history_page import history_page
from orchestrator.report.show.history_view import HistoryView, spark
from orchestrator.statistics.summary import summarise, summarise_attempts
from testing.printed import printed
from testing.seeds import drawing_seed
from testing.trial import ok_report

DAY_S = 86_400.0
BEGAN = 1_750_000_000.0
TPOT = MetricSpec("tpot_s", "s", "lower", title="TPOT")
RATE = MetricSpec("decode_tokens_per_s", "tokens/s", "higher", title="rate")


def nights(levels: list[float], *, spread: float = 0.005, hash: str = "a" * 64) -> list[Taken]:
    """One attempt a night, on these levels."""
    rng = np.random.default_rng(drawing_seed())
    medians = [level * math.exp(rng.normal(0.0, spread)) for level in levels]
    return [
        Taken(
            f"run{night}", f"id{night}", hash, BEGAN + DAY_S * night, median,
            median * (1 - spread), median * (1 + spread),
        )
        for night, median in enumerate(medians)
    ]  # fmt: skip


def series(levels: list[float], spec: MetricSpec = TPOT, **how: Any) -> Series:
    return series_of("nf4 · 512→32", spec, "", nights(levels, **how))


def history(*found: Series) -> History:
    return History("quant", found)


@pytest.mark.parametrize("between", [0.0, 0.02])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_point_is_what_the_bootstrap_of_the_samples_says(count: int, between: float) -> None:
    rng = np.random.default_rng([drawing_seed(), count, round(1000 * between)])
    samples = [
        tuple(rng.lognormal(rng.normal(0.0, between), 0.02, 30).tolist()) for _ in range(count)
    ]
    alone = [summarise(each) for each in samples]
    (point,) = points_of(
        [
            Taken("run", str(at), "h", BEGAN, one.median or 0.0, one.ci_low, one.ci_high)
            for at, one in enumerate(alone)
        ]
    )
    whole = summarise_attempts(samples)
    assert whole.ci_low is not None
    assert whole.ci_high is not None
    assert point.median == pytest.approx(whole.median)
    assert point.ci_low is not None
    assert point.ci_high is not None
    # The bootstrap's own error, and the normal law for a median of thirty.
    assert point.ci_high - point.ci_low == pytest.approx(whole.ci_high - whole.ci_low, rel=0.35)


def test_a_value_that_is_measured_once_has_no_interval() -> None:
    one, two = (
        points_of([Taken("run", str(at), "h", BEGAN, 100.0 + at) for at in range(count)])[0]
        for count in (1, 2)
    )
    assert (one.ci_low, one.error) == (None, None)
    assert two.median == 100.5
    assert two.ci_low is not None


@pytest.mark.parametrize(
    ("spec", "factor", "finding", "code"),
    [
        (TPOT, 1.2, "regression", 1),
        (TPOT, 0.8, "improvement", 0),
        (RATE, 0.8, "regression", 1),
        (RATE, 1.2, "improvement", 0),
        (replace(TPOT, better=None), 1.2, "inconclusive", 0),
    ],
)
def test_which_way_is_worse_is_the_metric_s(
    spec: MetricSpec, factor: float, finding: str, code: int
) -> None:
    found = series([1.0] * 12 + [factor], spec)
    (step,) = found.steps
    assert (step.place, step.judged.finding, step.is_new) == (12, finding, True)
    assert history(found).exit_code == code


def test_a_regression_is_new_once_and_then_known() -> None:
    codes = [history(series(([1.0] * 12 + [1.2] * 6)[:runs])).exit_code for runs in range(10, 19)]
    assert codes == [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_a_small_one_is_new_with_the_run_that_makes_it_known() -> None:
    """Wherever that is: the first that is sure of it rings, and none before the step."""
    levels = [1.0] * 20 + [1.08] * 12
    found = [series(levels[:runs], spread=0.015) for runs in range(15, len(levels) + 1)]
    codes = [history(each).exit_code for each in found]
    sure = [any(s.judged.finding == "regression" for s in each.steps) for each in found]
    assert sure[-1]
    assert codes.index(1) == sure.index(True) > 5
    # Again only after a run that was not sure of it.
    assert all(
        was_not
        for code, was_not in zip(codes, (not s for s in [False, *sure]), strict=False)
        if code
    )


def test_only_the_last_run_of_all_brings_news() -> None:
    """A trial that is not measured any more, or on a machine that is gone, rings no bell."""
    stopped = series([1.0] * 12 + [1.2])
    going_on = series([1.0] * 14)
    assert history(stopped).exit_code == 1
    assert history(stopped, going_on).exit_code == 0


def test_a_change_within_the_tolerance_is_a_step_and_no_regression() -> None:
    found = series([1.0] * 20 + [1.02] * 20, spread=0.002)
    (step,) = found.steps
    assert (step.place, step.judged.finding) == (20, "equivalent")
    assert history(series([1.0] * 20 + [1.02], spread=0.0005)).exit_code == 0


def test_values_that_are_not_positive_have_points_and_no_levels() -> None:
    taken = [Taken("a", "1", "h", BEGAN, 0.0), Taken("b", "2", "h", BEGAN + DAY_S, 1.0)]
    found = series_of("trial", MetricSpec("faults", "1"), "", taken)
    assert (len(found.points), found.levels, found.steps) == (2, (), ())
    assert draw_over_time(found, "trial").data
    for both in (history(found), history(found, series([1.0] * 9))):
        text = printed(HistoryView(both))
        assert "not judged: 1 trial (a median is not positive" in text
        assert text.count("not judged") == 2
        assert "every trial that could be judged" in history_page(both)


def reported(software: dict[str, str], **provenance: Any) -> Any:
    return ok_report(
        Value("tpot_s", "s", 1.0),
        conditions=Conditions({}, software, {}),
        provenance=provenance,
        facts={"hardware": {"gpus": [{"driver_version": provenance.pop("driver", None)}]}},
    )


def test_differences_are_named_the_engine_s_own_first() -> None:
    before = reported(
        {"python": "3.11", "torch": "2.1+cpu", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        packages={"abc": "1", "torch": "2.1", "gone": "1"},
        kernel="6.1",
        git={"commit": "a" * 40, "dirty": True},
        driver="550.1",
    )
    after = reported(
        {"python": "3.12", "torch": "2.2+cpu"},
        packages={"abc": "2", "torch": "2.2"},
        kernel="6.1",
        git={"commit": "b" * 40},
        driver="550.2",
    )
    assert list(map(str, differences(before, after))) == [
        "torch 2.1+cpu → 2.2+cpu",
        "python 3.11 → 3.12",
        "ONEDNN_MAX_CPU_ISA AVX2 → none",
        "driver 550.1 → 550.2",
        "commit aaaaaaaaaaaa+changes → bbbbbbbbbbbb",
        "abc 1 → 2",
        "gone 1 → none",
    ]
    assert differences(before, before) == ()


def test_in_an_environment_its_lock_says_which_packages_there_were() -> None:
    report = reported({"torch": "2.1"}, packages={"torch": "9", "ray": "1"})
    locks = tuple({"python": "3.11", "packages": {"torch": "2.1", "x": v}} for v in "12")
    assert list(map(str, differences(report, report, (locks[0], locks[1])))) == ["x 1 → 2"]


def test_only_what_can_be_put_together_differently_is_bisected() -> None:
    (step,) = series([1.0] * 12 + [1.2] * 3).steps
    kernel = differences(reported({}, kernel="6.1"), reported({}, kernel="6.2"))
    package = differences(reported({"torch": "1"}), reported({"torch": "2"}))
    assert replace(step, differences=kernel).command("tpot_s") is None
    assert replace(step, differences=package).command("tpot_s") == (
        "python -m orchestrator bisect aaaaaaaaaaaa --metric tpot_s --good id11 --bad id12"
    )


@pytest.fixture
def two() -> History:
    """Two trials that step with one run for one reason, one of them earlier too; a third stays."""
    package = differences(reported({"torch": "1"}), reported({"torch": "2"}))

    def explained(found: Series) -> Series:
        return replace(
            found, steps=tuple(replace(step, differences=package) for step in found.steps)
        )

    return History(
        "quant",
        (
            replace(explained(series([1.0] * 10 + [0.9] * 10 + [1.2] * 4)), label="<b>nf4</b>"),
            explained(series([1.0] * 20 + [1.3] * 4)),
            series([1.0] * 24),
        ),
        {"invalid": 2},
    )


def test_steps_of_one_run_and_one_reason_stand_together_newest_first(two: History) -> None:
    text = printed(HistoryView(two))
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "quant over time: no new regression in the last run"
    assert lines[1] == "3 trials in 24 runs, 2025-06-15 to 2025-07-08 (UTC): TPOT"
    assert lines[2] == "left out: 2 attempts (2 invalid)"
    dated = [line for line in lines if line.startswith("2025-")]
    assert dated == ["2025-07-05  torch 1 → 2", "2025-06-25  torch 1 → 2"]
    assert text.count("orchestrator bisect") == 2
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_view_fits_any_width(two: History, width: int) -> None:
    text = printed(HistoryView(two), width)
    assert max(map(len, text.splitlines())) <= width
    assert "▼ worse" in text


def test_a_sparkline_shows_steps_and_not_noise() -> None:
    assert len(set(spark(series([1.0] * 40, spread=0.01)))) <= 3
    stepped = spark(series([1.0] * 40 + [1.5] * 40))
    assert (len(stepped), stepped[0], stepped[-1]) == (16, "▁", "█")


def test_the_page_escapes_and_says_what_the_terminal_says(two: History) -> None:
    page = history_page(two)
    assert "<b>nf4</b>" not in page
    assert "&lt;b&gt;nf4&lt;/b&gt;" in page
    for said in ("no new regression in the last run", "left out: 2 attempts (2 invalid)"):
        assert said in page
    assert page.count("<figure>") == 3
    assert page.count("torch 1 → 2") >= 2
    assert "None: every trial stayed" in history_page(history(series([1.0] * 9)))
