"""Comparing trials: which attempts may be compared, and the verdict of each metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.attempt import AttemptReport, Outcome, Verdict
from orchestrator.conditions import AS_THREADS, Conditions
from orchestrator.measure import Absent, Metric, Samples, Value
from orchestrator.report.analyse.compare import Comparison, compare
from orchestrator.report.analyse.pairing import choose, pair
from testing.trial import ok_report

HASH = "a" * 64
OTHER = "b" * 64
MACHINE = {"hardware_fingerprint": "machine-1", "weights_digest": "w1"}


def series(name: str, unit: str, values: Sequence[float]) -> Samples:
    return Samples(name, unit, tuple(float(v) for v in values))


def attempt(*metrics: Metric, **changes: Any) -> AttemptReport:
    return ok_report(*metrics, **{"config_hash": HASH, "facts": dict(MACHINE), **changes})


def side(
    factor: float = 1.0, *, name: str = "tpot_s", unit: str = "s", seed: int = 0, attempts: int = 5
) -> list[AttemptReport]:
    """Attempts with 1 % noise within and 0.3 % between processes."""
    rng = np.random.default_rng(seed)
    return [
        attempt(
            series(name, unit, factor * rng.lognormal(rng.normal(0.0, 0.003), 0.01, 20)),
        )
        for _ in range(attempts)
    ]


def only(found: Comparison) -> Any:
    (row,) = found.rows
    return row


@pytest.mark.parametrize(
    ("name", "unit", "factor", "verdict"),
    [
        ("tpot_s", "s", 1.10, "regression"),
        ("tpot_s", "s", 0.90, "improvement"),
        ("tpot_s", "s", 1.00, "equivalent"),
        ("decode_tokens_per_s", "tokens/s", 0.90, "regression"),
        ("decode_tokens_per_s", "tokens/s", 1.10, "improvement"),
        ("mfu", "1", 0.90, "regression"),
        ("perplexity", "1", 1.10, "regression"),
        ("top1_agreement", "1", 0.90, "regression"),
        ("peak_memory_over_weights_bytes", "bytes", 1.10, "regression"),
        ("joules_per_token", "J/token", 1.10, "regression"),
    ],
)
def test_a_verdict_knows_which_way_is_worse(
    name: str, unit: str, factor: float, verdict: str
) -> None:
    a = {HASH: side(name=name, unit=unit, seed=1)}
    b = {HASH: side(factor, name=name, unit=unit, seed=2)}
    row = only(compare(a, b))
    assert (row.spec.name, row.judged.finding) == (name, verdict)
    assert row.judged.ratio == pytest.approx(factor, abs=0.01)
    assert row.judged.ci_low < row.judged.ratio < row.judged.ci_high
    assert row.judged.ratio == pytest.approx(row.median_b / row.median_a)


def test_the_ratio_is_b_over_a() -> None:
    row = only(compare({HASH: side(1.0)}, {HASH: side(2.0)}))
    assert row.judged.ratio == pytest.approx(2.0)
    assert row.median_b == pytest.approx(2.0 * row.median_a)


def test_close_to_the_tolerance_nothing_is_claimed() -> None:
    row = only(compare({HASH: side(seed=1)}, {HASH: side(1.03, seed=2)}))
    assert row.judged.finding == "inconclusive"
    assert row.judged.ci_low < 1.03 < row.judged.ci_high


# --- which attempts may be compared


def test_trials_pair_by_hash_or_as_the_only_ones() -> None:
    one = [attempt()]
    assert pair({HASH: one, OTHER: one}, {OTHER: one}) == [(OTHER, OTHER)]
    assert pair({HASH: one}, {OTHER: one}) == [(HASH, OTHER)]
    assert pair({HASH: one, OTHER: one}, {"c" * 64: one}) == []
    found = compare({HASH: side(), OTHER: side()}, {OTHER: side(), "c" * 64: side()})
    assert (found.only_a, found.only_b) == ((HASH,), ("c" * 64,))
    assert {row.hash_a for row in found.rows} == {OTHER}


def of_locks(**numpy: str) -> dict[str, dict[str, Any]]:
    """Configurations by hash that differ in the version of a package their environment holds."""
    return {
        h * 64: {"task": {"name": "noop"}, "environment": {"packages": {"numpy": version}}}
        for h, version in numpy.items()
    }


def test_trials_that_differ_in_their_packages_alone_pair() -> None:
    one, lock = [attempt()], of_locks(a="1", b="2", c="3")
    other = {"d" * 64: {"task": {"name": "inference"}, "environment": None}}
    configs = {**lock, **other}
    a, b, c, d = configs
    assert pair({a: one, d: one}, {b: one, d: one}, configs) == [(d, d), (a, b)]
    assert pair({a: one, d: one}, {b: one}, configs) == [(a, b)]
    # Which of two environments of one run it goes with is not known.
    assert pair({a: one, b: one, d: one}, {c: one, d: one}, configs) == [(d, d)]
    assert pair({a: one, d: one}, {b: one, d: one}) == [(d, d)]


def test_what_they_read_must_be_the_same_then() -> None:
    configs = of_locks(a="1", b="2")
    new = [attempt(*r.metrics.values(), config_hash=OTHER) for r in side(1.2)]
    found = compare({HASH: side()}, {OTHER: new}, configs=configs)
    assert only(found).judged.finding == "regression"
    for report in new:
        report.facts["weights_digest"] = "w2"
    found = compare({HASH: side()}, {OTHER: new}, configs=configs)
    assert only(found).judged.reason == "different weights: w1 and w2"
    assert only(compare({HASH: side()}, {OTHER: new})).judged.finding == "regression"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"hardware_fingerprint": "machine-2"}, "different hardware: machine-1 and machine-2"),
        ({"weights_digest": "w2"}, "different weights: w1 and w2"),
        ({"hardware_fingerprint": None}, "different hardware: machine-1 and unknown"),
    ],
)
def test_other_conditions_are_incomparable_unless_asked_for(
    facts: dict[str, Any], reason: str
) -> None:
    a = {HASH: side()}
    b = {HASH: side(1.2)}
    for report in b[HASH]:
        report.facts.update(facts)
    row = only(compare(a, b))
    assert (row.judged.finding, row.judged.reason, row.judged.ratio) == (
        "incomparable",
        reason,
        None,
    )
    assert only(compare(a, b, allow_different=True)).judged.finding == "regression"


def test_cores_that_a_trial_asks_for_are_no_other_conditions() -> None:
    def on(cores: int | str, factor: float = 1.0, **changes: Any) -> list[AttemptReport]:
        conditions = Conditions({"CPU": "a", "cores": cores, **changes})
        return [
            attempt(*r.metrics.values(), config_hash=OTHER, conditions=conditions)
            for r in side(factor)
        ]

    def found(base: list[AttemptReport], new: list[AttemptReport]) -> Any:
        of_another = [replace(r, config_hash=HASH) for r in base]
        return only(compare({HASH: of_another}, {OTHER: new})).judged

    one_thread = on(AS_THREADS)
    assert found(one_thread, on(AS_THREADS, 0.5)).finding == "improvement"
    # Of all cores that there are, however many.
    assert found(one_thread, on(2, 0.5)).finding == "improvement"
    assert found(on(2), one_thread).finding == "equivalent"
    assert found(on(1), on(2)).reason == "different conditions: cores 1 → 2"
    assert found(one_thread, on(2, CPU="b")).reason == "different conditions: CPU a → b"


@pytest.mark.parametrize("place", ["facts", "provenance"])
def test_simulated_never_compares_with_real(place: str) -> None:
    simulated = side()
    for report in simulated:
        getattr(report, place)["simulated"] = True
    for allowed in (False, True):
        row = only(compare({HASH: side()}, {HASH: simulated}, allow_different=allowed))
        assert row.judged.finding == "incomparable"
        assert row.judged.reason == "simulated attempts do not compare with real ones"
    assert only(compare({HASH: simulated}, {HASH: simulated})).judged.finding == "equivalent"


def test_only_attempts_under_shared_conditions_are_taken() -> None:
    stray = attempt(series("tpot_s", "s", [9.0] * 20), facts={"hardware_fingerprint": "other"})
    row = only(compare({HASH: side()}, {HASH: [*side(seed=1), stray]}))
    assert (row.judged.finding, row.attempts_b) == ("equivalent", 5)
    assert "1 attempt under other conditions, or unknown ones, left out" in row.note


def test_only_believed_attempts_are_taken() -> None:
    bad = side(3.0)
    disbelieved = [attempt(*r.metrics.values(), verdict=Verdict("invalid")) for r in bad]
    failed = [attempt(outcome=Outcome.OOM_DEVICE)]
    row = only(compare({HASH: side()}, {HASH: [*side(seed=1), *disbelieved, *failed]}))
    assert (row.judged.finding, row.attempts_b) == ("equivalent", 5)


def test_a_side_without_a_valid_attempt_says_so() -> None:
    failed = [attempt(outcome=Outcome.OOM_HOST)] * 2
    disbelieved = [attempt(series("tpot_s", "s", [1.0]), verdict=Verdict("invalid"))]
    row = only(compare({HASH: [*failed, *disbelieved]}, {HASH: side()}))
    assert row.judged.finding == "incomparable"
    assert row.judged.reason == "A has no valid attempt (1 invalid by its verdict, 2 oom_host)"
    assert choose([], side()).reason == "A has no valid attempt (none recorded)"


# --- metrics


def test_what_was_not_measured_says_why() -> None:
    absent = attempt(Absent("energy_j", "J", "no NVML"))
    measured = attempt(Value("energy_j", "J", 5.0))
    row = only(compare({HASH: [measured]}, {HASH: [absent]}))
    assert (row.judged.finding, row.judged.reason) == ("incomparable", "B: no NVML")
    assert compare({HASH: side()}, {HASH: side()}, metrics=["energy_j"]).rows == ()


def test_one_sample_a_side_decides_nothing() -> None:
    a, b = attempt(Value("load_s", "s", 1.0)), attempt(Value("load_s", "s", 9.0))
    row = only(compare({HASH: [a]}, {HASH: [b]}))
    assert (row.judged.finding, row.judged.ratio, row.judged.ci_low) == ("inconclusive", 9.0, None)
    assert row.judged.reason == "one sample: its uncertainty cannot be known"


def test_what_a_configuration_has_is_decided_by_one_value() -> None:
    a, b = (attempt(Value("weights_bytes", "bytes", n)) for n in (100.0, 150.0))
    assert only(compare({HASH: [a]}, {HASH: [b]})).judged.finding == "regression"
    assert only(compare({HASH: [a]}, {HASH: [a]})).judged.finding == "equivalent"


def test_no_variance_is_no_trouble() -> None:
    a, b = side(), [attempt(series("tpot_s", "s", [2.0] * 10)) for _ in range(3)]
    for report in a:
        report.metrics["tpot_s"] = series("tpot_s", "s", [1.0] * 10)
    row = only(compare({HASH: a}, {HASH: b}))
    assert (row.judged.finding, row.judged.ci_low, row.judged.ci_high) == ("regression", 2.0, 2.0)


def test_a_ratio_to_nothing_is_not_made_up() -> None:
    nothing = [attempt(series("kl_to_reference", "nats", [0.0] * 5)) for _ in range(2)]
    something = [attempt(series("kl_to_reference", "nats", [0.1] * 5)) for _ in range(2)]
    row = only(compare({HASH: nothing}, {HASH: something}))
    assert (row.judged.finding, row.judged.ratio) == ("inconclusive", None)
    assert row.judged.reason == "a median is not positive: there is no ratio"


def test_a_metric_without_a_direction_is_compared_only_when_asked_for() -> None:
    reports = [attempt(series("batches", "1", [3.0, 3.1, 3.0])) for _ in range(3)]
    assert compare({HASH: reports}, {HASH: reports}).rows == ()
    more = [attempt(series("batches", "1", [6.0, 6.1, 6.0])) for _ in range(3)]
    row = only(compare({HASH: reports}, {HASH: more}, metrics=["batches"]))
    assert (row.judged.finding, row.judged.ratio) == ("inconclusive", 2.0)
    assert row.judged.reason == "neither more nor less of it is known to be better"


def test_telemetry_is_compared_when_asked_for() -> None:
    reports = side()
    for number, report in enumerate(reports):
        report.telemetry["decode.energy_j"] = Value("decode.energy_j", "J", 5.0 + number / 100)
    row = only(compare({HASH: reports}, {HASH: reports}, metrics=["decode.energy_j"]))
    assert (row.judged.finding, row.samples_a) == ("equivalent", 5)


def test_json_carries_the_terms() -> None:
    found = compare({HASH: side()}, {HASH: side(seed=3)}, noise=0.025)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert {"hash_a", "hash_b", "metric", "ratio", "ci_low", "ci_high", "verdict"} <= set(
        data["rows"][0]
    )
    assert (data["tau"], data["confidence"]) == (0.05, 0.95)
