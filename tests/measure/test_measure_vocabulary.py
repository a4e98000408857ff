"""What a metric is: declared, defined by the protocol, or said by its name and unit."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.measure import MetricSpec, Value
from orchestrator.measure.columns import Column
from orchestrator.measure.registry import TASKS, find_task
from orchestrator.measure.vocabulary import VOCABULARY, spec_for


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ttft_s", "TTFT"),
        ("load_s", "load"),
        ("weights_bytes", "weights"),
        ("decode_tokens_per_s", "decode"),
        ("decode.power_w", "decode power"),
        ("decode.gpu_idle_s", "decode gpu idle"),
        ("value", "value"),
    ],
)
def test_metrics_are_called_what_people_call_them(name: str, title: str) -> None:
    assert spec_for(name).title == title


@pytest.mark.parametrize(
    ("name", "unit", "better"),
    [
        ("wait_s", "s", "lower"),
        ("cache_bytes", "bytes", "lower"),
        ("rows_per_s", "rows/s", "higher"),
        ("room_temperature", "degC", "lower"),
        ("batches", "1", None),
        ("predicted_tpot_s", "s", None),
        ("measured_over_predicted.tpot_s", "1", None),
        ("decode.energy_j", "J", "lower"),
        ("mfu", "1", "higher"),
        ("perplexity", "1", "lower"),
    ],
)
def test_what_nobody_declared_has_a_direction_by_name_and_unit(
    name: str, unit: str, better: str | None
) -> None:
    assert spec_for(name, unit).better == better


def test_a_unit_that_is_not_told_is_what_the_name_ends_in() -> None:
    units = {name: spec_for(name).unit for name in ("a_tokens_per_s", "b_bytes", "c_s", "d")}
    assert units == {"a_tokens_per_s": "tokens/s", "b_bytes": "bytes", "c_s": "s", "d": "1"}


@pytest.mark.parametrize("unit", ["degC", "celsius", "°C"])
def test_degrees_have_one_spelling(unit: str) -> None:
    assert MetricSpec("temperature_max_c", unit).unit == "°C"
    assert spec_for("decode.temperature_max_c", unit) == spec_for("decode.temperature_max_c", "°C")


def test_what_was_declared_outweighs_the_protocol_and_the_name() -> None:
    own = MetricSpec("tpot_s", "s", "higher", title="slowness")
    assert spec_for("tpot_s", "s", {"tpot_s": own}) is own
    phase = spec_for("decode.tpot_s", "s", {"tpot_s": own})
    assert (phase.better, phase.title) == ("higher", "decode slowness")


def test_a_memory_peak_is_not_exact_and_a_size_is() -> None:
    exact = {name for name, spec in VOCABULARY.items() if spec.exact}
    assert exact == {
        *("weights_bytes", "weights_bits_per_parameter"),
        *("perplexity", "kl_to_reference", "kl_top_to_reference", "top1_agreement"),
    }
    assert not spec_for("cache_bytes", "bytes").exact


@pytest.mark.parametrize("name", TASKS.names())
def test_what_a_task_declares_is_not_the_protocols_and_once(name: str) -> None:
    declared = [spec.name for spec in find_task(name).metrics]
    assert len(declared) == len(set(declared))
    if name != "estimate":  # computed, so exact, by the same names
        assert not VOCABULARY.keys() & set(declared)


def test_a_report_carries_what_its_metrics_are() -> None:
    spec = MetricSpec("loudness", "dB", "higher", title="how loud", meaning="at one metre")
    report = AttemptReport("a", "h", Outcome.OK, metrics={"loudness": Value("loudness", "dB", 3.0)})
    report.specs["loudness"] = spec
    data = json.loads(json.dumps(report.to_json()))
    assert AttemptReport.from_json(data).specs == {"loudness": spec}
    assert data["specs"] == [asdict(spec)]
    del data["specs"]  # as recorded before metrics were declared
    assert AttemptReport.from_json(data).specs == {}


def test_a_column_is_what_its_metric_is() -> None:
    itl = VOCABULARY["itl_s"]
    tail = Column("itl_s", "p95").spec(itl)
    assert (tail.name, tail.title, tail.unit, tail.better) == (
        *("itl_s.p95", "ITL p95"),
        *("s", "lower"),
    )
    assert tail.meaning == "95 of 100 of these are lower"
    long = Column("itl_s", "p95", over="task.new_tokens").spec(itl)
    assert (long.unit, long.better, long.title) == ("1", "lower", "p95 long over short")
