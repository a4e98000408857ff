"""The gate: rules as data, one worst row, an exit code, JUnit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome, Verdict
from orchestrator.conditions import Conditions
from orchestrator.measure import Absent, Metric, Samples, Value
from orchestrator.report.analyse.gate import GateResult, GateRow, gate
from orchestrator.report.analyse.gate_rules import (
    load_rules,
    rules_from,
)
from orchestrator.report.show.gate_view import GateView
from orchestrator.report.show.junit import junit_xml
from testing.printed import printed
from testing.trial import ok_report

CONF = Path(__file__).resolve().parents[2] / "conf" / "gate"
SHORT, LONG, EXTRA = "a" * 64, "b" * 64, "c" * 64


def config(new_tokens: int, kind: str = "cpu") -> dict[str, Any]:
    return {
        "task": {"name": "inference", "new_tokens": new_tokens},
        "device": {"kind": kind, "threads": None},
    }


CONFIGS = {SHORT: config(64), LONG: config(512)}


def attempt(*metrics: Metric, **changes: Any) -> AttemptReport:
    return ok_report(*metrics, **{"config_hash": SHORT, **changes})


def noisy(name: str, centre: float, seed: int = 0, *, n: int = 20, count: int = 5) -> list[Metric]:
    rng = np.random.default_rng(seed)
    return [
        Samples(
            name,
            "s" if not name.endswith("_per_s") else "tokens/s",
            tuple((centre * rng.lognormal(rng.normal(0.0, 0.003), 0.01, n)).tolist()),
        )
        for _ in range(count)
    ]


def side(centre: float = 0.05, seed: int = 0, name: str = "tpot_s") -> list[AttemptReport]:
    return [attempt(metric) for metric in noisy(name, centre, seed)]


def rules(*listed: dict[str, Any], **terms: Any) -> Any:
    return rules_from({"rules": list(listed), **terms})


DIFFERENCE = {"kind": "difference", "metrics": ["tpot_s"]}
CHANGE = {"kind": "change", "metric": "tpot_s"}


def states(result: GateResult, rule: str) -> list[str]:
    return [row.state for row in result.rows if row.rule == rule]


# --- exit codes


@pytest.mark.parametrize(
    ("factor", "code", "state"),
    [(1.0, 0, "pass"), (0.8, 0, "pass"), (1.1, 1, "regression"), (1.03, 2, "inconclusive")],
)
def test_the_exit_code_says_how_it_came_out(factor: float, code: int, state: str) -> None:
    result = gate({SHORT: side(0.05 * factor, 1)}, {SHORT: side(0.05, 2)}, rules(DIFFERENCE))
    assert (result.exit_code, result.state) == (code, state)


def test_other_hardware_is_incomparable_unless_asked_for() -> None:
    elsewhere = side(seed=1)
    for report in elsewhere:
        report.facts["hardware_fingerprint"] = "elsewhere"
    both = ({SHORT: elsewhere}, {SHORT: side(seed=2)}, rules(DIFFERENCE))
    result = gate(*both)
    assert result.exit_code == 3
    assert "different hardware" in (result.rows[0].reason or "")
    assert gate(*both, allow_different=True).exit_code == 0


def test_the_worst_row_decides() -> None:
    base = {SHORT: side(seed=2), LONG: side(seed=3), EXTRA: [attempt(outcome=Outcome.LOST)]}
    new = {SHORT: side(seed=4), LONG: side(0.06, seed=5), EXTRA: side(seed=6)}
    result = gate(new, base, rules(DIFFERENCE))
    assert sorted(states(result, "difference")) == ["incomparable", "pass", "regression"]
    assert result.exit_code == 1
    del new[LONG]
    assert gate(new, base, rules(DIFFERENCE)).exit_code == 3


def test_the_order_of_what_is_worst() -> None:
    order = ["regression", "incomparable", "inconclusive", "pass"]
    codes = []
    while order:
        rows = tuple(GateRow("limit", SHORT, None, state) for state in reversed(order))
        found = GateResult("rules", (*rows, GateRow("limit", SHORT, None, "skipped")))
        assert found.state == order.pop(0)
        codes.append(found.exit_code)
    assert codes == [1, 3, 2, 0]


def under(torch: str, *reports: AttemptReport) -> list[AttemptReport]:
    """As they are with that software."""
    return [replace(r, conditions=Conditions({}, {"torch": torch}, {})) for r in reports]


def test_earlier_conditions_are_not_pooled_with_the_newest() -> None:
    load = [attempt(Value("load_s", "s", seconds)) for seconds in (1.0, 1.0, 9.0)]
    new = [*under("1", *load[:2]), *under("2", load[2])]
    limit = rules({"kind": "limit", "metric": "load_s", "at_most": 5.0})
    assert gate({SHORT: new}, {SHORT: under("1", *load[:2])}, limit).exit_code == 1
    completes = rules({"kind": "completes"})
    broken = [*under("1", *load[:2]), *under("2", attempt(outcome=Outcome.ERROR))]
    result = gate({SHORT: broken}, {SHORT: under("1", *load[:2])}, completes)
    assert (result.exit_code, result.rows[0].reason) == (
        1,
        "no attempt is ok (1 error): no reason given",
    )


@pytest.mark.parametrize("rule", [DIFFERENCE, {**CHANGE, "max_increase": 0.1}])
def test_one_metric_in_two_units_has_no_ratio(rule: dict[str, Any]) -> None:
    base = [attempt(Samples("tpot_s", "ms", (50.0, 51.0, 52.0))) for _ in range(3)]
    result = gate({SHORT: side()}, {SHORT: base}, rules(rule))
    assert (result.exit_code, result.rows[0].reason) == (3, "the baseline is in ms, new in s")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({**DIFFERENCE, "when": {"task.new_token": 64}}, "no trial has task.new_token"),
        (
            {"kind": "capacity", "over": "load.rat", "limits": {"ttft_s": 0.5}},
            "no trials of both sides that differ in load.rat alone",
        ),
        (
            {"kind": "limit", "metric": "tpots_s", "at_most": 1.0},
            "no trial has tpots_s, and no task declares it. Did you mean tpot_s",
        ),
    ],
)
def test_a_rule_about_no_trial_is_said_to_be(rule: dict[str, Any], reason: str) -> None:
    both = {SHORT: side()}, {SHORT: side(seed=2)}
    result = gate(*both, rules({"kind": "completes"}, rule), configs=CONFIGS)
    assert result.exit_code == 0
    unused = [row for row in result.rows if not row.hash]
    ((state, said),) = [(row.state, row.reason or "") for row in unused]
    assert (state, said[: len(reason)]) == ("skipped", reason)
    assert f"{rule['kind']}: {reason}" in printed(GateView(result, labels={}), 200)
    assert reason in junit_xml(result.to_json())


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"kind": "difference", "metrics": ["ttft_s"]}, 3),
        ({"kind": "change", "metric": "ttft_s", "max_increase": 0.1}, 3),
        ({"kind": "limit", "metric": "ttft_s", "at_most": 1.0}, 2),
    ],
)
def test_attempts_that_kept_up_do_not_speak_for_those_whose_queue_grew(
    rule: dict[str, Any], code: int
) -> None:
    kept_up = side(name="ttft_s")
    grown = attempt(
        Absent("ttft_s", "s", "the queue grew all the time"), Value("queue_growth", "1", 0.4)
    )
    result = gate({SHORT: [*kept_up[:2], grown]}, {SHORT: kept_up}, rules(rule))
    assert result.exit_code == code
    assert "in 1 of 3 attempts the queue grew all the time" in (result.rows[0].reason or "")


@pytest.mark.parametrize(
    ("bound", "after", "code"),
    [
        ({"max_increase": 0.1}, 0.0, 0),
        ({"max_increase": 0.1}, 0.2, 1),
        ({"max_decrease": 0.1}, 0.2, 0),
        ({"max_decrease": 0.1}, -0.2, 3),
    ],
)
def test_from_zero_only_zero_is_no_increase(
    bound: dict[str, float], after: float, code: int
) -> None:
    new, base = ({SHORT: [attempt(Value("error_ratio", "1", v))]} for v in (after, 0.0))
    assert gate(new, base, rules({**CHANGE, "metric": "error_ratio", **bound})).exit_code == code


def test_a_limit_of_nothing_is_shown() -> None:
    limit = rules({"kind": "limit", "metric": "error_ratio", "at_most": 0.0})
    both = [{SHORT: [attempt(Value("error_ratio", "1", 0.0))]} for _ in range(2)]
    assert [row.limit for row in gate(*both, limit).rows] == [0.0]


def test_nothing_to_compare_is_no_pass() -> None:
    for new, base in (({}, {}), ({SHORT: side(), LONG: side()}, {EXTRA: side()})):
        result = gate(new, base, rules(DIFFERENCE))
        assert (result.exit_code, result.rows) == (3, ())
        assert result.reason == "the baseline and the new attempts share no trial"
    nothing = gate({SHORT: [attempt()]}, {SHORT: [attempt()]}, rules(DIFFERENCE))
    assert (nothing.exit_code, nothing.reason) == (3, "no rule had data to judge")
    limit = rules({"kind": "limit", "metric": "loud_s", "at_most": 3})
    found = gate({SHORT: [attempt()]}, {SHORT: [attempt()]}, limit)
    assert (found.exit_code, found.reason) == (
        3,
        "no rule had data to judge: no loud_s was measured",
    )


def test_a_baseline_without_a_valid_attempt_is_incomparable() -> None:
    base = [attempt(outcome=Outcome.ERROR), *(attempt(m) for m in noisy("tpot_s", 0.05))]
    for report in base[1:]:
        report.verdict = Verdict("invalid")
    result = gate({SHORT: side()}, {SHORT: base}, rules(DIFFERENCE))
    assert result.exit_code == 3
    assert result.rows[0].reason == (
        "the baseline has no valid attempt (1 error, 5 invalid by its verdict)"
    )


def test_unpaired_trials_are_shown_and_do_not_count() -> None:
    result = gate(
        {SHORT: side(seed=1), LONG: side()},
        {SHORT: side(seed=2), EXTRA: side()},
        rules(DIFFERENCE),
    )
    assert result.exit_code == 0
    skipped = {row.hash: row.reason for row in result.rows if row.state == "skipped"}
    assert skipped == {LONG: "no baseline", EXTRA: "not measured again"}


# --- the kinds of rule


def test_one_sample_is_inconclusive() -> None:
    one = [attempt(Value("load_s", "s", 1.0))]
    result = gate({SHORT: one}, {SHORT: one}, rules({"kind": "difference", "metrics": ["load_s"]}))
    assert result.exit_code == 2
    assert result.rows[0].reason == "one sample: its uncertainty cannot be known"


def test_noise_of_the_hardware_widens_the_tolerance() -> None:
    new, base = {SHORT: side(0.055, 1)}, {SHORT: side(0.05, 2)}
    assert gate(new, base, rules(DIFFERENCE)).exit_code == 1
    assert gate(new, base, rules(DIFFERENCE), noise=0.10).exit_code == 0


def test_holm_corrects_for_the_number_of_tests() -> None:
    """A borderline regression among many even metrics may be chance, and is not called one."""
    borderline = ({SHORT: side(0.0517, 1)}, {SHORT: side(0.05, 2)})
    alone = gate(*borderline, rules(DIFFERENCE))
    assert alone.exit_code == 1
    names = [f"m{i}_s" for i in range(200)]
    for reports in (borderline[0][SHORT], borderline[1][SHORT]):
        for name in names:
            for report, metric in zip(reports, noisy(name, 1.0, 7), strict=True):
                report.metrics[name] = metric
    crowd = gate(*borderline, rules({"kind": "difference", "metrics": ["tpot_s", *names]}))
    assert crowd.exit_code == 2
    (row,) = (r for r in crowd.rows if r.metric == "tpot_s")
    assert row.state == "inconclusive"
    assert "Holm's correction over 201 tests" in (row.reason or "")
    assert (row.p_value or 0.0) > (alone.rows[0].p_value or 1.0)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.OOM_DEVICE, "regression"),
        (Outcome.ERROR, "regression"),
        (Outcome.LOST, "incomparable"),
        (Outcome.INVALID, "incomparable"),
    ],
)
def test_what_completed_must_complete(outcome: Outcome, state: str) -> None:
    failed = [attempt(outcome=outcome, reason="no room")]
    result = gate({SHORT: failed}, {SHORT: side()}, rules({"kind": "completes"}))
    assert states(result, "completes") == [state]
    assert result.rows[0].reason == f"no attempt is ok (1 {outcome.value}): no room"
    retried = gate({SHORT: [*failed, *side()]}, {SHORT: side()}, rules({"kind": "completes"}))
    assert retried.exit_code == 0


def throughput(short: float, long: float) -> dict[str, Sequence[AttemptReport]]:
    name = "decode_tokens_per_s"
    return {
        SHORT: [attempt(Samples(name, "tokens/s", (short,) * 5))],
        LONG: [attempt(Samples(name, "tokens/s", (long,) * 5))],
    }


@pytest.mark.parametrize(
    ("short", "long", "code"),
    [(88.1, 85.1, 0), (87.9, 100.0, 1), (100.0, 84.9, 1), (87.0, 86.0, 1)],
)
def test_throughput_may_drop_by_so_much_and_no_more(short: float, long: float, code: int) -> None:
    result = gate(
        throughput(short, long),
        throughput(100.0, 100.0),
        load_rules(CONF / "llm_baseline.yaml"),
        configs=CONFIGS,
    )
    assert result.exit_code == code
    assert states(result, "change").count("regression") == (code == 1)


def tails(short: float, long: float, n: int = 200) -> dict[str, Sequence[AttemptReport]]:
    return {
        SHORT: [attempt(Samples("itl_s", "s", (short,) * n))],
        LONG: [attempt(Samples("itl_s", "s", (long,) * n))],
    }


@pytest.mark.parametrize(
    ("short", "long", "broken"),
    [
        (1.09, 1.3, []),
        (1.11, 1.3, ["change"]),
        (1.0, 1.31, ["long_over_short"]),
        (1.2, 1.7, ["change", "long_over_short"]),
    ],
)
def test_tails_may_drift_and_stretch_by_so_much(
    short: float, long: float, broken: list[str]
) -> None:
    result = gate(
        tails(short, long), tails(1.0, 1.2), load_rules(CONF / "llm_baseline.yaml"), configs=CONFIGS
    )
    assert [row.rule for row in result.rows if row.state == "regression"] == broken
    assert result.exit_code == int(bool(broken))


def test_a_tail_of_too_few_samples_is_inconclusive_not_extrapolated() -> None:
    result = gate(
        tails(1.0, 1.0, n=199),
        tails(1.0, 1.0, n=199),
        load_rules(CONF / "llm_baseline.yaml"),
        configs=CONFIGS,
    )
    assert result.exit_code == 2
    reasons = {row.reason for row in result.rows if row.state == "inconclusive"}
    assert reasons == {"p95 cannot be told from 199 samples"}


def test_long_and_short_are_paired_among_trials_alike() -> None:
    rule = {
        "kind": "long_over_short",
        "metric": "itl_s",
        "by": "task.new_tokens",
        "short": {"at_most": 128},
        "long": {"at_least": 129},
        "at_most": 1.3,
    }
    configs = {SHORT: config(64, "cpu"), LONG: config(512, "cuda")}
    result = gate(tails(1.0, 9.0), tails(1.0, 1.0), rules(rule), configs=configs)
    assert (states(result, "long_over_short"), result.exit_code) == (["skipped"], 3)
    assert result.rows[0].reason == "no trials of both sides that differ in task.new_tokens alone"
    configs[LONG] = config(512, "cpu")
    result = gate(tails(1.0, 9.0), tails(1.0, 1.0), rules(rule), configs=configs)
    assert [(r.hash, r.value) for r in result.rows] == [(LONG, 9.0)]


def test_absolute_limits() -> None:
    limits = rules(
        {"kind": "limit", "metric": "load_s", "at_most": 60.0},
        {"kind": "limit", "metric": "mfu", "at_least": 0.4},
    )

    def run(load: float, mfu: float) -> list[str]:
        new = [attempt(Value("load_s", "s", load), Value("mfu", "1", mfu))]
        return states(gate({SHORT: new}, {SHORT: side()}, limits), "limit")

    assert run(60.0, 0.4) == ["pass", "pass"]
    assert run(60.1, 0.39) == ["regression", "regression"]


def test_a_rule_about_an_unknown_configuration_is_inconclusive() -> None:
    rule = {
        "kind": "change",
        "metric": "tpot_s",
        "max_increase": 0.1,
        "when": {"task.new_tokens": {"at_most": 128}},
    }
    both = ({SHORT: side(seed=1)}, {SHORT: side(seed=2)}, rules(rule))
    assert gate(*both).exit_code == 2
    assert gate(*both, configs={SHORT: config(64)}).exit_code == 0
    assert gate(*both, configs={SHORT: config(512)}).reason == "no rule had data to judge"


# --- output


def test_json_and_junit_tell_the_same() -> None:
    base = {SHORT: side(seed=2), LONG: side(seed=3), EXTRA: [attempt(outcome=Outcome.LOST)]}
    new = {SHORT: side(0.0515, seed=4), LONG: side(0.06, seed=5), EXTRA: side(seed=6)}
    result = gate(new, base, rules(DIFFERENCE))
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert (data["state"], data["exit_code"]) == ("regression", 1)
    assert data["counts"] == {"inconclusive": 1, "regression": 1, "incomparable": 1}
    suite = ElementTree.fromstring(junit_xml(result.to_json())).find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    assert [child.tag for case in suite for child in case] == ["skipped", "failure", "error"]


def test_junit_of_nothing_is_an_error() -> None:
    suite = ElementTree.fromstring(junit_xml(gate({}, {}, rules(DIFFERENCE)).to_json()))
    assert [e.get("message") for e in suite.iter("error")] == [
        "the baseline and the new attempts share no trial"
    ]


def test_junit_survives_what_a_program_printed() -> None:
    failed = [attempt(outcome=Outcome.CRASHED, reason="\x1b[31m<segfault> & \x00 'core'")]
    result = gate({SHORT: failed}, {SHORT: side()}, rules({"kind": "completes"}))
    (failure,) = ElementTree.fromstring(junit_xml(result.to_json())).iter("failure")
    assert "<segfault> & ?" in (failure.get("message") or "")
