"""Columns that a table derives from samples: a percentile, and long output against short."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Resources, Trial, Verdict
from orchestrator.measure import Samples
from orchestrator.plan.plan import Plan
from orchestrator.plan.schema import Settings
from orchestrator.report import build_table

P95, LONG = "itl_s.p95", "itl_s.p95_long_over_short"


def plan(lengths: tuple[int, ...] = (64, 512), threads: tuple[int, ...] = (1, 2)) -> Plan:
    trials = tuple(
        Trial(
            hash=hashlib.sha256(f"{new} {count}".encode()).hexdigest(),
            identity={"task": {"name": "inference", "prompt_tokens": 128, "new_tokens": new}},
            axes={"task.new_tokens": new, "device.threads": count},
            resources=Resources(cpus=2),
            timeout_s=60.0,
            infeasible=None,
        )
        for count in threads
        for new in lengths
    )
    axes = {
        "task.new_tokens": tuple(map(str, lengths)),
        "device.threads": tuple(map(str, threads)),
    }
    return Plan("long_context", "", trials, Settings(), {"device.threads": "1"}, axes, 0)


def report(trial: Trial, n: int = 400, *, slow: float = 1.0) -> AttemptReport:
    values = tuple(slow * 0.01 * (1 + i / n) for i in range(n))
    return AttemptReport(
        attempt_id=trial.hash,
        config_hash=trial.hash,
        outcome=Outcome.OK,
        metrics={"itl_s": Samples("itl_s", "s", values)},
        verdict=Verdict("valid"),
    )


def cells(plan: Plan, reports: dict[str, list[AttemptReport]]) -> dict[str, Any]:
    table = build_table(plan, reports)
    assert table.metrics[:1] == ("itl_s",)
    return {row.hash: row.cells for row in table.rows}


def test_long_output_is_held_against_the_shortest_of_the_same_threads() -> None:
    found = plan()
    slow = dict(zip([t.hash for t in found.trials], (1.0, 1.2, 2.0, 3.0), strict=True))
    got = cells(found, {t.hash: [report(t, slow=slow[t.hash])] for t in found.trials})
    ratios = [got[t.hash][LONG].median for t in found.trials]
    assert ratios == pytest.approx([1.0, 1.2, 1.0, 1.5])
    p95 = [got[t.hash][P95] for t in found.trials]
    assert p95[0].median == pytest.approx(0.01 * 1.95, rel=0.01)
    assert p95[0].unit == "s"
    # Against the baseline (one thread): how they came out, without a verdict.
    assert p95[2].ratio == pytest.approx(2.0)
    assert p95[2].standing == "inconclusive"


def test_too_few_samples_are_no_tail() -> None:
    found = plan()
    got = cells(
        found, {t.hash: [report(t, n=199 if i == 0 else 400)] for i, t in enumerate(found.trials)}
    )
    first, second, *others = (got[t.hash] for t in found.trials)
    assert first[P95].median is None
    assert "199 samples" in first[P95].reason
    assert "shortest output's p95" in second[LONG].reason
    assert all(cell[LONG].median == pytest.approx(1.0) for cell in others)


def test_attempts_of_other_machines_have_no_ratio() -> None:
    found = plan()
    reports = {t.hash: [report(t)] for t in found.trials}
    for place, (made,) in enumerate(reports.values()):
        made.facts["hardware_fingerprint"] = "this" if place in (0, 1, 2) else "other"
    table = build_table(found, reports)
    got = {row.hash: row.cells for row in table.rows}
    alike, other = (got[found.trials[place].hash] for place in (2, 3))
    assert alike[P95].ratio == pytest.approx(1.0)
    assert other[P95].ratio is None
    assert other[P95].median is not None
    assert other[LONG].median is None
    reason = "different hardware: this and other"
    assert other[LONG].reason == reason
    # No ratio of any metric: the table says why.
    assert [row.hash for row in table.missing_ratios[reason]] == [found.trials[3].hash]


def test_a_trial_that_was_measured_in_another_unit_has_no_value() -> None:
    found = plan(lengths=(64,))
    reports = {trial.hash: [report(trial)] for trial in found.trials}
    (older,), (newer,) = reports.values()
    newer.started_at = 1.0
    older.metrics["wait"] = Samples("wait", "s", (0.01, 0.011))
    newer.metrics["wait"] = Samples("wait", "ms", (10.0, 11.0))
    table = build_table(found, reports, metrics=["wait"])
    assert table.specs["wait"].unit == "ms"
    one, other = (row.cells["wait"] for row in table.rows)
    assert other.median == pytest.approx(10.5)
    assert (one.median, one.reason) == (None, "in s, where newer trials are in ms")


def test_without_the_axis_there_is_no_such_column() -> None:
    found = plan(lengths=(64,))
    table = build_table(found, {t.hash: [report(t)] for t in found.trials})
    assert P95 in table.metrics
    assert LONG not in table.metrics
