"""Predictions of a finished attempt: what is added, measured for it, and left absent."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.measure import Absent, Samples, Value
from orchestrator.model import Measured, read_architecture, step_flops
from orchestrator.model.known_ceilings import (
    RETRY_AFTER_S,
    ceilings_directory,
    load_ceilings,
    load_this,
)
from orchestrator.schedule.supervise.predictions import add_predictions, ceilings_key

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
SLOT = Slot("n", "h", (0, 1))
FLAT = Measured(
    "this",
    {"product.far.float32": ((5e5, 1.0, 1e-5),)},
    ((1e6, 1e10),),
    ((1e6, 1e10),),
    1e-5,
    1 << 33,
)
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 1 << 36}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))


class Ceilings:
    """Stands where an isolation does; its attempt of ``task=ceilings`` ends as it is told."""

    def __init__(self, ended: Measured | Outcome = FLAT) -> None:
        self.ended = ended
        self.asked: list[AttemptSpec] = []

    def run(self, spec: AttemptSpec, slot: Slot) -> Iterator[AttemptReport]:
        self.asked.append(spec)
        report = AttemptReport(spec.attempt_id, "", Outcome.OK)
        if isinstance(self.ended, Measured):
            report.facts["ceilings"] = self.ended.to_json()
        else:
            report.outcome, report.reason = self.ended, "no time"
        yield report


def spec(kind: str = "cpu", task: str = "inference") -> AttemptSpec:
    identity = {
        "task": {
            "name": task,
            "batch_size": 1,
            "prompt_tokens": 16,
            "new_tokens": 4,
            "attention": "sdpa",
            "compile": False,
        },
        "model": {"source": "hub", "id": "somebody/something"},
        "quant": {"scheme": "none", "dtype": "float32", "double_quant": False},
        "device": {"kind": kind, "threads": None},
        "protocol": {},
        "seed": 0,
    }
    return AttemptSpec("a", "c" * 64, identity)


def report(**facts: Any) -> AttemptReport:
    return AttemptReport(
        "a",
        "c" * 64,
        Outcome.OK,
        metrics={
            "weights_bytes": Value("weights_bytes", "bytes", 361_792.0),
            "ttft_s": Samples("ttft_s", "s", (0.2, 0.1, 0.3)),
            "tpot_s": Samples("tpot_s", "s", (0.02, 0.02)),
        },
        facts={"model_config": CONFIG, "hardware_fingerprint": "fp", **facts},
    )


def number(found: AttemptReport, name: str) -> float:
    metric = found.metrics[name]
    assert isinstance(metric, Value), metric
    return metric.value


def test_predicted_measured_and_their_ratio() -> None:
    found, isolation = report(), Ceilings()
    add_predictions(found, spec(), SLOT, isolation)  # type: ignore[arg-type]
    assert number(found, "predicted_weights_bytes") == 361_792
    assert number(found, "measured_over_predicted.weights_bytes") == 1.0
    assert number(found, "predicted_kv_bytes") == 19 * 2 * 2 * 2 * 16 * 4
    assert number(found, "measured_over_predicted.ttft_s") == pytest.approx(
        0.2 / number(found, "predicted_ttft_s")
    )
    assert number(found, "measured_over_predicted.tpot_s") > 1
    sheet = found.metrics["predicted_ttft_s.datasheet"]
    assert isinstance(sheet, Absent)
    assert "CPU" in sheet.reason
    assert isolation.asked[0].identity["task"] == {"name": "ceilings"}


def test_a_training_step_is_held_against_the_best_that_products_reached() -> None:
    asked = spec(task="training")
    asked.identity["task"] = {
        "name": "training",
        **{"batch_size": 2, "context_tokens": 16, "accumulation": 1, "attention": "sdpa"},
        **{"autocast": "none", "compile": False, "checkpointing": False, "optimizer": True},
        "memory_snapshot": False,
    }
    found = report(hardware={})
    found.metrics["step_s"] = Samples("step_s", "s", (0.5, 0.25))
    add_predictions(found, asked, SLOT, Ceilings())  # type: ignore[arg-type]
    flops = step_flops(read_architecture(CONFIG), 2, 16)
    for name, work in (("mfu", flops.model), ("hfu", flops.hardware)):
        shares = found.metrics[f"{name}.measured_peak"]
        assert isinstance(shares, Samples)
        assert shares.values == pytest.approx((work / (0.5 * 1e11), work / (0.25 * 1e11)))
    # Without ceilings there is no peak either, and the reason stands there.
    alone = report(hardware_fingerprint="another")
    alone.metrics["step_s"] = Samples("step_s", "s", (0.5,))
    add_predictions(alone, asked, SLOT, Ceilings(Outcome.TIMEOUT))  # type: ignore[arg-type]
    missing = alone.metrics["mfu.measured_peak"]
    assert isinstance(missing, Absent)
    assert "could not be measured" in missing.reason


def test_ceilings_are_measured_once_for_each_kind_of_hardware() -> None:
    isolation = Ceilings()
    for _ in range(3):
        add_predictions(report(), spec(), SLOT, isolation)  # type: ignore[arg-type]
    assert len(isolation.asked) == 1
    add_predictions(report(hardware_fingerprint="x"), spec(), SLOT, isolation)  # type: ignore[arg-type]
    assert len(isolation.asked) == 2
    assert load_ceilings(ceilings_key(report(), spec(), SLOT)) == FLAT
    assert load_this() == FLAT


def test_a_busy_machine_has_no_ceilings_and_says_so() -> None:
    import dataclasses

    busy = Ceilings(dataclasses.replace(FLAT, spread=3.0))
    for _ in range(2):
        found = report()
        add_predictions(found, spec(), SLOT, busy)  # type: ignore[arg-type]
        metric = found.metrics["predicted_ttft_s"]
        assert isinstance(metric, Absent)
        assert "too busy" in metric.reason
        assert number(found, "predicted_weights_bytes") == 361_792
    assert len(busy.asked) == 1
    for mark in ceilings_directory().glob("*.tried"):
        os.utime(mark, (0, time.time() - RETRY_AFTER_S - 1))
    found = report()
    add_predictions(found, spec(), SLOT, Ceilings())  # type: ignore[arg-type]
    assert number(found, "predicted_ttft_s") > 0


def test_ceilings_that_cannot_be_measured_cost_only_the_times() -> None:
    isolation = Ceilings(Outcome.TIMEOUT)
    for said in ("no time", "within the last hour"):
        found = report()
        add_predictions(found, spec(), SLOT, isolation)  # type: ignore[arg-type]
        metric = found.metrics["predicted_tpot_s"]
        assert isinstance(metric, Absent)
        assert said in metric.reason
        assert found.outcome is Outcome.OK
    assert len(isolation.asked) == 1


def test_a_gpu_is_held_against_its_data_sheet_too() -> None:
    found = report(hardware={"gpus": [H100]})
    add_predictions(found, spec("cuda"), SLOT, Ceilings())  # type: ignore[arg-type]
    assert number(found, "predicted_tpot_s.datasheet") < number(found, "predicted_tpot_s")
    assert number(found, "measured_over_predicted.tpot_s.datasheet") > 1
    unknown = report(hardware={"gpus": [{"name": "NVIDIA Riva"}]})
    add_predictions(unknown, spec("cuda"), SLOT, Ceilings())  # type: ignore[arg-type]
    metric = unknown.metrics["predicted_tpot_s.datasheet"]
    assert isinstance(metric, Absent)
    assert "NVIDIA Riva" in metric.reason


def test_a_simulated_gpu_is_not_predicted_in_time() -> None:
    found, isolation = report(simulated=True, hardware={"gpus": [H100]}), Ceilings()
    add_predictions(found, spec("cuda"), SLOT, isolation)  # type: ignore[arg-type]
    assert isinstance(found.metrics["predicted_ttft_s"], Absent)
    assert not isolation.asked


@pytest.mark.parametrize(
    "facts",
    [
        {"model_config": None},
        {"model_config": {"model_type": "mamba"}},
        {"model_config": {"model_type": "llama"}},
        {"model_config": 7},
    ],
)
def test_what_arithmetic_does_not_know_leaves_the_report_alone(facts: dict[str, Any]) -> None:
    found, isolation = report(**facts), Ceilings()
    before = dict(found.metrics)
    add_predictions(found, spec(), SLOT, isolation)  # type: ignore[arg-type]
    assert found.metrics == before
    assert not isolation.asked


def test_failed_attempts_and_tasks_without_arithmetic_are_left_alone() -> None:
    isolation = Ceilings()
    failed = report()
    failed.outcome = Outcome.ERROR
    add_predictions(failed, spec(), SLOT, isolation)  # type: ignore[arg-type]
    other = report()
    add_predictions(other, spec(task="noop"), SLOT, isolation)  # type: ignore[arg-type]
    assert not any(name.startswith("predicted") for name in (*failed.metrics, *other.metrics))
    assert not isolation.asked


def test_what_task_ceilings_measured_is_kept() -> None:
    found = AttemptReport("a", "c", Outcome.OK, facts={"ceilings": FLAT.to_json()})
    found.facts["hardware_fingerprint"] = "fp"
    add_predictions(found, spec(task="ceilings"), SLOT, Ceilings())  # type: ignore[arg-type]
    assert load_this() == FLAT


@pytest.mark.parametrize(
    ("before", "after", "kept"), [(1.1, 3.0, 1.1), (3.0, 2.0, 2.0), (1.0, 1.2, 1.2)]
)
def test_of_two_measurements_the_newer_is_kept_unless_only_it_was_disturbed(
    before: float, after: float, kept: float
) -> None:
    import dataclasses

    for spread in (before, after):
        measured = dataclasses.replace(FLAT, spread=spread)
        found = AttemptReport("a", "c", Outcome.OK, facts={"ceilings": measured.to_json()})
        found.facts["hardware_fingerprint"] = "fp"
        add_predictions(found, spec(task="ceilings"), SLOT, Ceilings())  # type: ignore[arg-type]
    assert load_this().spread == kept
