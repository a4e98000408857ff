"""Rows that an axis puts into other software, and evaluations that are paired by item."""

from __future__ import annotations

import dataclasses

import pytest

from orchestrator.conditions import Conditions
from orchestrator.measure import Value
from orchestrator.report.analyse.compare import compare
from orchestrator.report.analyse.rows import build_table
from orchestrator.report.show.export import to_json
from orchestrator.report.show.html import page
from orchestrator.report.show.table import final_table
from testing.printed import printed


def two(make, axes):
    """Two trials, the second with other packages; by the axis given as its name and two values."""
    plan = make.plan(quants=("fp32", "bf16"), prompts=(512,))
    name, *values = axes
    trials = tuple(
        dataclasses.replace(trial, axes={**trial.axes, name: value})
        for trial, value in zip(plan.trials, values, strict=True)
    )
    plan = dataclasses.replace(plan, trials=trials, axes={**plan.axes, name: tuple(values)})
    reports = {}
    for trial, version in zip(trials, ("5.23.0", "5.19.0"), strict=True):
        conditions = Conditions({"CPU": "a"}, {"transformers": version}, {"weights": "w"})
        reports[trial.hash] = [
            dataclasses.replace(make.report(trial, n), conditions=conditions) for n in (1, 2)
        ]
    return plan, reports


@pytest.mark.parametrize(
    ("axes", "compared"),
    [
        (("environment", "none", "vllm_cpu"), True),
        (("environment.pins.transformers", "5.23.0", "5.19.0"), True),
        (("task.batch_size", 1, 2), False),
    ],
)
def test_software_that_an_axis_asks_for_may_differ(make, axes, compared):
    plan, reports = two(make, axes)
    (_, row) = build_table(plan, reports, metrics=("tpot_s",)).rows
    judged = row.cells["tpot_s"].judged
    assert (judged.ratio is not None) == compared
    if not compared:
        assert "transformers 5.23.0 → 5.19.0" in judged.reason


def test_every_package_of_two_environments_is_named(make):
    plan, reports = two(make, ("environment.pins.transformers", "5.23.0", "5.19.0"))
    locks = ("5.23.0", "0.23.2"), ("5.19.0", "0.22.1")
    trials = tuple(
        dataclasses.replace(
            trial,
            identity={
                **trial.identity,
                "environment": {
                    "python": "3.11",
                    "packages": {"transformers": one, "tokenizers": other, "numpy": "2.4.6"}
                    | ({"truststore": "0.10.5"} if one == "5.19.0" else {}),
                },
            },
        )
        for trial, (one, other) in zip(plan.trials, locks, strict=True)
    )
    plan = dataclasses.replace(plan, trials=trials)
    said = (
        "transformers 5.23.0 → 5.19.0",
        "tokenizers 0.23.2 → 0.22.1",
        "truststore none → 0.10.5",
    )
    table = build_table(plan, reports, metrics=("tpot_s",))
    assert [row.software for row in table.rows] == [(), said]
    label = table.rows[1].label
    line = f"{label}: {', '.join(said)}"
    assert line in printed(final_table(plan, reports, metrics=("tpot_s",)), 100)
    assert line in page(table, ()).replace("&gt;", ">")
    assert to_json(table)["trials"][1]["software"] == list(said)
    a, b = ({trial.hash: reports[trial.hash]} for trial in trials)
    configs = {trial.hash: trial.identity for trial in trials}
    (row,) = compare(a, b, configs=configs, metrics=("tpot_s",)).rows
    assert row.note == ", ".join(said)


def evaluated(make, digest="d"):
    plan = make.plan(quants=("fp32", "bf16"), prompts=(512,))
    sides = []
    for trial, extra, of in zip(plan.trials, (0.0, 0.2), ("d", digest), strict=True):
        scores = [0.5 + 0.1 * (n % 7) + extra * (n % 2) for n in range(100)]
        report = make.report(trial)
        name = "evaluation.item_loss"
        facts = {"evaluation": {"digest": of}, "evaluation_items": {name: scores}}
        metrics = {name: Value(name, "nats", sum(scores) / 100)}
        sides.append(
            dataclasses.replace(
                report,
                metrics={**report.metrics, **metrics},
                facts={**report.facts, **facts},
            )
        )
    return {sides[0].config_hash: sides[:1]}, {sides[1].config_hash: sides[1:]}


def test_evaluations_are_compared_item_by_item(make):
    (row,) = compare(*evaluated(make), metrics=("evaluation.item_loss",)).rows
    assert row.judged.finding == "regression"
    assert row.judged.note == "paired by item, 100 items"
    low, high = row.judged.ci_low, row.judged.ci_high
    assert 1.03 < low < row.judged.ratio < high
    # The items scatter by a third of their mean; their differences by far less.
    assert high - low < 0.06


def test_other_items_do_not_compare(make):
    (row,) = compare(*evaluated(make, "another"), metrics=("evaluation.item_loss",)).rows
    assert (row.judged.finding, row.judged.reason) == ("incomparable", "evaluated on other items")


def test_every_metric_of_an_evaluation_has_a_column(make):
    """The names are the harness's: a headline cannot list them."""
    plan = make.plan(quants=("fp32",), prompts=(512,))
    (trial,) = plan.trials
    names = [f"evaluation.{name}" for name in ("acc", "exact_match.last-word", "f1")]
    report = make.report(trial)
    metrics = {name: Value(name, "1", 0.5) for name in (*reversed(names), "not.of.it")}
    report = dataclasses.replace(report, metrics={**report.metrics, **metrics})
    shown = build_table(plan, {trial.hash: [report]}).metrics
    assert [name for name in shown if name in metrics] == [names[0], names[2], names[1]]
