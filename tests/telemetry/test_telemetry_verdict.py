"""The verdict: every rule breaks at its limit and names value and limit; the shipped rules load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.attempt import AttemptReport, Outcome, RuleResult, Slot
from orchestrator.errors import ConfigError
from orchestrator.measure import Absent, Metric, Phase, Samples, Value
from orchestrator.telemetry.verdict import CHECKS, judge, limit_of

CONF = Path(__file__).resolve().parents[2] / "conf" / "verdict"
RULES: dict[str, Any] = yaml.safe_load((CONF / "default.yaml").read_text())["rules"]
HEALTHY = {
    "throttle_thermal_s": 0.0,
    "throttle_hardware_s": 0.0,
    "throttle_power_brake_s": 0.0,
    "throttle_power_cap_s": 0.0,
    "foreign_processes": 0,
    "display_processes": 0,
    "sm_clock_ratio": 0.97,
    "swap_bytes": 0,
    "cgroup_throttled_ratio": 0.0,
    "steal_ratio": 0.001,
    "other_cpu_ratio": 0.02,
}


LOAD = {
    "lag_p99_s": 0.001,
    "generator_stalled_ratio": 0.0,
    "generator_cpu_ratio": 0.3,
    "achieved_ratio": 1.0,
    "error_ratio": 0.0,
    "queue_growth": 0.0,
}


def report(*, gpu: bool = True, **changes: float | None) -> AttemptReport:
    """A healthy attempt but for ``changes``; None makes a figure absent."""
    figures = {**HEALTHY, **changes}
    telemetry: dict[str, Metric] = {}
    for name, number in figures.items():
        key = f"measured.{name}"
        absent = Absent(key, "", "this GPU does not support it")
        telemetry[key] = absent if number is None else Value(key, "", float(number))
    return AttemptReport(
        "a",
        "h",
        Outcome.OK,
        slot=Slot("n", "host", (0, 1), ("GPU-1",) if gpu else ()),
        phases=[Phase("decode", 0, 10**9)],
        telemetry=telemetry,
        metrics={"tpot_s": samples("ci", 20)},
        facts={"telemetry": {"lost": {}, "device_memory_before_bytes": {"GPU-1": 2.0e8}}},
    )


def samples(stop: str, count: int, *, two_modes: bool = False) -> Samples:
    values = [1.0 + 0.001 * (i * 7919 % 13) for i in range(count)]
    if two_modes:
        values = [v * (1.5 if i % 2 else 1.0) for i, v in enumerate(values)]
    return Samples("tpot_s", "s", tuple(values), stop_reason=stop)


def result(verdict: Any, rule: str) -> RuleResult:
    return next(r for r in verdict.rules if r.rule == rule)


def loaded(**changes: float) -> AttemptReport:
    """A healthy attempt of a server under load, but for ``changes``."""
    made = report()
    made.metrics |= {name: Value(name, "1", value) for name, value in {**LOAD, **changes}.items()}
    return made


@pytest.mark.parametrize(
    ("rule", "metric", "within", "past", "state"),
    [
        ("lag", "lag_p99_s", 0.010, 0.011, "invalid"),
        ("stalls", "generator_stalled_ratio", 0.002, 0.0025, "invalid"),
        ("generator_cpu", "generator_cpu_ratio", 0.9, 0.91, "invalid"),
        ("achieved_rate", "achieved_ratio", 0.99, 0.98, "invalid"),
        ("errors", "error_ratio", 0.01, 0.011, "invalid"),
        ("saturated", "queue_growth", 0.1, 0.11, "flagged"),
    ],
)
def test_rules_of_a_load(rule: str, metric: str, within: float, past: float, state: str) -> None:
    assert result(judge(loaded(**{metric: within}), RULES), rule).state == "pass"
    found = judge(loaded(**{metric: past}), RULES)
    assert found.state == state
    assert result(found, rule).state == state
    assert f"{past:.4g}" in (result(found, rule).reason or "")


def test_no_other_task_has_rules_of_a_load() -> None:
    assert not {r.rule for r in judge(report(), RULES).rules} & {"lag", "errors", "saturated"}


def test_healthy_attempt_is_valid_and_every_rule_was_looked_at() -> None:
    verdict = judge(loaded(), RULES)
    assert verdict.state == "valid"
    assert {r.rule for r in verdict.rules} == set(RULES)
    assert all(r.state == "pass" for r in verdict.rules)


@pytest.mark.parametrize(
    ("rule", "figure", "within", "past", "state"),
    [
        ("thermal_slowdown", "throttle_thermal_s", 0.0, 0.01, "invalid"),
        ("hardware_slowdown", "throttle_hardware_s", 0.0, 0.05, "invalid"),
        ("power_brake", "throttle_power_brake_s", 0.0, 0.05, "invalid"),
        ("foreign_process", "foreign_processes", 0, 1, "invalid"),
        ("sm_clock", "sm_clock_ratio", 0.75, 0.7499, "invalid"),
        ("swap", "swap_bytes", 0, 4096, "invalid"),
        ("cgroup_throttling", "cgroup_throttled_ratio", 0.0, 0.001, "invalid"),
        ("steal", "steal_ratio", 0.05, 0.0501, "invalid"),
        ("power_cap", "throttle_power_cap_s", 0.0, 3.0, "flagged"),
        ("display", "display_processes", 0, 1, "flagged"),
        ("other_load", "other_cpu_ratio", 0.10, 0.101, "flagged"),
    ],
)
def test_rule_breaks_just_past_its_limit(
    rule: str, figure: str, within: float, past: float, state: str
) -> None:
    assert judge(report(**{figure: within}), RULES).state == "valid"
    verdict = judge(report(**{figure: past}), RULES)
    assert verdict.state == state
    broken = result(verdict, rule)
    assert (broken.state, broken.value) == (state, past)
    assert broken.limit == RULES[rule]["limit"]
    assert broken.reason is not None
    assert "(limit " in broken.reason
    assert [r.rule for r in verdict.rules if r.state != "pass"] == [rule]


def test_gpu_rules_do_not_apply_to_an_attempt_without_a_gpu() -> None:
    verdict = judge(report(gpu=False, throttle_thermal_s=9.0), RULES)
    assert verdict.state == "valid"
    assert not {r.rule for r in verdict.rules} & {n for n, c in CHECKS.items() if c.gpu}


def test_a_gpu_that_nobody_watched_is_unverified_also_without_its_uuid() -> None:
    unwatched = report(gpu=False)
    unwatched.slot = Slot("n", "host", (0, 1), (), "0")
    unwatched.facts["telemetry"] = {"lost": {}, "unopened": {"0": "the driver is not loaded"}}
    for name in [n for n in unwatched.telemetry if "throttle" in n or "sm_clock" in n]:
        del unwatched.telemetry[name]
    verdict = judge(unwatched, RULES)
    assert verdict.state == "unverified"
    assert result(verdict, "device_lost").reason == "the driver is not loaded"


def test_clocks_and_other_load_say_nothing_where_nothing_was_timed() -> None:
    of_time = ("throttle_", "sm_clock", "steal", "cgroup_throttled", "other_cpu")
    quality = report(**{n: None for n in HEALTHY if n.startswith(of_time)})
    quality.phases = [Phase("load", 0, 5, measured=False), Phase("quality", 5, 9, measured=False)]
    quality.metrics = {}
    verdict = judge(quality, RULES)
    assert verdict.state == "valid"
    clocks = {"thermal_slowdown", "hardware_slowdown", "power_brake", "power_cap", "sm_clock"}
    load = {"steal", "cgroup_throttling", "other_load"}
    assert not {r.rule for r in verdict.rules} & (clocks | load)
    assert {"foreign_process", "device_lost", "swap"} <= {r.rule for r in verdict.rules}
    quality.phases = []
    assert judge(quality, RULES).state == "unverified", "a task that tells no phase proves nothing"


def test_the_clock_of_a_gpu_that_was_never_busy_says_nothing() -> None:
    idle = report(sm_clock_ratio=None)
    idle.telemetry["measured.sm_clock_ratio"] = Absent("x", "1", "the GPU was never busy")
    verdict = judge(idle, RULES)
    assert verdict.state == "valid"
    assert "sm_clock" not in {r.rule for r in verdict.rules}


def test_no_telemetry_is_unverified_not_valid() -> None:
    bare = AttemptReport("a", "h", Outcome.OK, metrics={"tpot_s": samples("ci", 20)})
    verdict = judge(bare, RULES)
    assert verdict.state == "unverified"
    assert result(verdict, "steal") == RuleResult(
        "steal", "unknown", None, RULES["steal"]["limit"], "no telemetry"
    )


def test_rule_that_could_not_be_checked_is_unknown_with_its_reason() -> None:
    verdict = judge(report(throttle_thermal_s=None), RULES)
    assert verdict.state == "unverified"
    unknown = result(verdict, "thermal_slowdown")
    assert (unknown.state, unknown.value) == ("unknown", None)
    assert unknown.reason == "this GPU does not support it"
    # What only flags may stay unknown; a broken rule outweighs an unknown one.
    assert judge(report(throttle_power_cap_s=None), RULES).state == "valid"
    assert judge(report(throttle_thermal_s=None, steal_ratio=0.2), RULES).state == "invalid"


def test_figure_of_the_whole_attempt_stands_in_for_windows_too_short() -> None:
    short = report(steal_ratio=None)
    short.telemetry["attempt.steal_ratio"] = Value("attempt.steal_ratio", "1", 0.01)
    assert judge(short, RULES).state == "valid"
    short.telemetry["attempt.steal_ratio"] = Value("attempt.steal_ratio", "1", 0.2)
    assert judge(short, RULES).state == "invalid"


def test_slow_clock_of_one_phase_is_not_hidden_by_the_others() -> None:
    uneven = report(sm_clock_ratio=0.9)
    uneven.telemetry["decode.sm_clock_ratio"] = Value("decode.sm_clock_ratio", "1", 0.6)
    assert result(judge(uneven, RULES), "sm_clock").value == 0.6


def test_lost_gpu_invalidates_and_one_never_opened_leaves_unverified() -> None:
    lost = report()
    lost.facts["telemetry"]["lost"] = {"GPU-1": "the GPU fell off the bus"}
    verdict = judge(lost, RULES)
    assert verdict.state == "invalid"
    assert result(verdict, "device_lost").reason == "GPU-1: the GPU fell off the bus"
    never = report()
    never.facts["telemetry"]["unopened"] = {"GPU-1": "no permission to read it"}
    assert judge(never, RULES).state == "unverified"


def test_memory_in_use_before_the_attempt_is_invalid() -> None:
    dirty = report()
    dirty.facts["telemetry"]["device_memory_before_bytes"] = {"GPU-1": 5.0 * 2**30}
    verdict = judge(dirty, RULES)
    assert verdict.state == "invalid"
    assert result(verdict, "memory_before").reason == (
        "5 GiB of the GPU's memory were still in use before the attempt (limit 1 GiB)"
    )


def test_one_gpu_of_several_that_was_not_read_leaves_unverified() -> None:
    two = report()
    two.slot = Slot("n", "host", (0, 1), ("GPU-1", "GPU-2"))
    verdict = judge(two, RULES)
    assert verdict.state == "unverified"
    told = "memory of GPU-2 was not read before the attempt"
    assert result(verdict, "memory_before").reason == told
    two.facts["telemetry"]["device_memory_before_bytes"]["GPU-2"] = 0.0
    assert judge(two, RULES).state == "valid"


def test_a_lost_gpu_is_not_hidden_by_one_that_was_never_opened() -> None:
    two = report()
    two.facts["telemetry"] |= {
        "lost": {"GPU-1": "the GPU fell off the bus"},
        "unopened": {"GPU-2": "no permission to read it"},
    }
    assert result(judge(two, RULES), "device_lost").state == "invalid"


def test_the_limit_of_one_rule() -> None:
    assert limit_of({"rules": RULES}, "memory_before") == 2**30
    off = {"state": "off", "limit": 3}
    for rules in ({}, {"memory_before": off}, {"memory_before": {**off, "limit": None}}):
        assert limit_of({"rules": rules, "retries": 1}, "memory_before") is None


def test_samples_in_two_modes_are_flagged() -> None:
    doubtful = report()
    doubtful.metrics = {"tpot_s": samples("ci", 40, two_modes=True)}
    verdict = judge(doubtful, RULES)
    assert verdict.state == "flagged"
    assert [r.rule for r in verdict.rules if r.state == "flagged"] == ["bimodal"]


@pytest.mark.parametrize(
    "series",
    [samples("max_repetitions", 20), samples("max_time", 20), samples("ci", 4)],
    ids=lambda s: f"{s.stop_reason}-{len(s.values)}",
)
def test_how_precise_a_median_is_does_not_cost_valid(series: Samples) -> None:
    wide = report()
    wide.metrics = {"tpot_s": series}
    assert judge(wide, RULES).state == "valid"


def test_rules_are_data() -> None:
    hot = report(throttle_thermal_s=0.4)
    rule = {"state": "invalid", "limit": 0.5}
    assert judge(hot, {"thermal_slowdown": rule}).state == "valid"
    assert judge(hot, {"thermal_slowdown": {**rule, "limit": 0.3}}).state == "invalid"
    flagged = {"thermal_slowdown": {"state": "flagged", "limit": 0.3}}
    assert judge(hot, flagged).state == "flagged"
    for off in ({"state": "off", "limit": 0.3}, {"state": "invalid", "limit": None}):
        assert judge(hot, {"thermal_slowdown": off}).rules == ()
    assert judge(hot, {}).state == "unverified", "without rules nothing was checked"
    assert judge(hot, {"retries": 1, "cooldown_s": 1.0, "rules": RULES}).state == "invalid"


@pytest.mark.parametrize(
    "rules",
    [
        {"thermal_slowdwn": {"state": "invalid", "limit": 0}},
        {"steal": {"state": "fatal", "limit": 0}},
        {"steal": {"state": "invalid"}},
        {"steal": {"state": "invalid", "limit": "much"}},
        {"steal": {"state": "invalid", "limit": float("nan")}},  # which nothing would exceed
        {"steal": 0.05},
    ],
)
def test_rule_that_cannot_be_meant_is_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        judge(report(), rules)


@pytest.mark.parametrize("name", ["default", "strict", "off"])
def test_shipped_rules_are_understood(name: str) -> None:
    rules = yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("rules", {})
    judge(report(), {**RULES, **rules})


def test_default_rules_cover_every_check() -> None:
    assert set(RULES) == set(CHECKS)
