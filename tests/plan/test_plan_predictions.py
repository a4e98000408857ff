"""Predictions beside what was measured: what is added where a report is shown, and left absent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome, Slot
from orchestrator.measure import Absent, Samples, Value
from orchestrator.model import Measured, read_architecture, step_flops
from orchestrator.model.known_ceilings import keep_ceilings, load_ceilings, load_this
from orchestrator.model.measured_device import OPERATIONS
from orchestrator.plan.predictions import ceilings_key, needed_ceilings, with_predictions
from orchestrator.tasks.training.training import TrainingConfig
from testing.trial import TINY

CONFIG = {**TINY, "max_position_embeddings": 2048}
SLOT = Slot("n", "h", (0, 1))
FLAT = Measured(
    "this",
    {"product.far.float32": ((5e5, 1.0, 1e-5),)},
    ((1e6, 1e10),),
    ((1e6, 1e10),),
    1e-5,
    1 << 33,
    operations=frozenset(OPERATIONS),
)
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 1 << 36}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))


def identity(kind: str = "cpu", task: str = "inference") -> dict[str, Any]:
    return {
        "task": {
            "name": task,
            "batch_size": 1,
            "prompt_tokens": 16,
            "new_tokens": 4,
        },
        "engine": {"name": "transformers", "attention": "sdpa", "compile": False},
        "model": {"source": "hub", "id": "somebody/something"},
        "quant": {"scheme": "none", "dtype": "float32", "double_quant": False},
        "device": {"kind": kind, "threads": None},
        "protocol": {},
        "seed": 0,
    }


def training() -> dict[str, Any]:
    options = dataclasses.asdict(TrainingConfig(batch_size=2, context_tokens=16))
    return {**identity(), "task": options}


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
        slot=SLOT,
        provenance={"packages": {"torch": "2.13.0"}},
    )


def keep(measured: Measured = FLAT, of: AttemptReport | None = None, kind: str = "cpu") -> None:
    key = ceilings_key(of or report(), identity(kind))
    assert key is not None
    keep_ceilings(key, measured, this=kind)


def number(found: AttemptReport, name: str) -> float:
    metric = found.metrics[name]
    assert isinstance(metric, Value), metric
    return metric.value


def absent(found: AttemptReport, name: str) -> str:
    metric = found.metrics[name]
    assert isinstance(metric, Absent), metric
    return metric.reason


def test_predicted_measured_and_their_ratio() -> None:
    keep()
    recorded = report()
    before = dict(recorded.metrics)
    found = with_predictions(recorded, identity())
    assert recorded.metrics == before
    assert number(found, "predicted_weights_bytes") == 361_792
    assert number(found, "measured_over_predicted.weights_bytes") == 1.0
    assert number(found, "predicted_kv_bytes") == 19 * 2 * 2 * 2 * 16 * 4
    assert number(found, "measured_over_predicted.ttft_s") == pytest.approx(
        0.2 / number(found, "predicted_ttft_s")
    )
    assert number(found, "measured_over_predicted.tpot_s") > 1
    assert "CPU" in absent(found, "predicted_ttft_s.datasheet")


def test_a_training_step_is_held_against_the_best_that_products_reached() -> None:
    found = report()
    found.metrics["step_s"] = Samples("step_s", "s", (0.5, 0.25))
    # Without ceilings there is no peak either, and the reason stands there.
    assert "not measured" in absent(with_predictions(found, training()), "mfu.measured_peak")
    keep()
    shown = with_predictions(found, training())
    flops = step_flops(read_architecture(CONFIG), 2, 16)
    for name, work in (("mfu", flops.model), ("hfu", flops.hardware)):
        shares = shown.metrics[f"{name}.measured_peak"]
        assert isinstance(shares, Samples)
        assert shares.values == pytest.approx((work / (0.5 * 1e11), work / (0.25 * 1e11)))


def test_ceilings_belong_to_hardware_threads_and_torch() -> None:
    keep()
    other = report(hardware_fingerprint="another")
    fewer = dataclasses.replace(report(), slot=Slot("n", "h", (0,)))
    newer = dataclasses.replace(report(), provenance={"packages": {"torch": "9"}})
    for unlike in (
        other,
        fewer,
        newer,
        dataclasses.replace(report(), facts={"model_config": CONFIG}),
    ):
        found = with_predictions(unlike, identity())
        assert "not measured" in absent(found, "predicted_ttft_s")
        assert number(found, "predicted_weights_bytes") == 361_792
    assert number(with_predictions(report(), identity()), "predicted_ttft_s") > 0


def test_only_what_its_operations_need_is_asked_for() -> None:
    assert needed_ceilings(report(), identity()) == {"inference.float32"}
    assert needed_ceilings(report(), training()) == {"inference.float32", "training.float32"}
    keep(dataclasses.replace(FLAT, operations=frozenset({"inference.bfloat16"})))
    assert "inference.float32" in absent(with_predictions(report(), identity()), "predicted_ttft_s")


def test_a_busy_machine_has_no_ceilings_and_says_so() -> None:
    keep(dataclasses.replace(FLAT, spread=3.0))
    found = with_predictions(report(), identity())
    assert "too busy" in absent(found, "predicted_ttft_s")
    assert number(found, "predicted_weights_bytes") == 361_792


def test_a_gpu_is_held_against_its_data_sheet_too() -> None:
    measured = report(hardware={"gpus": [H100]})
    keep(of=measured, kind="cuda")
    found = with_predictions(measured, identity("cuda"))
    assert number(found, "predicted_tpot_s.datasheet") < number(found, "predicted_tpot_s")
    assert number(found, "measured_over_predicted.tpot_s.datasheet") > 1
    unknown = with_predictions(
        report(hardware={"gpus": [{"name": "NVIDIA Riva"}]}), identity("cuda")
    )
    assert "NVIDIA Riva" in absent(unknown, "predicted_tpot_s.datasheet")


@pytest.mark.parametrize("facts", [{"simulated": True}, {"hardware": {"gpus": [H100, H100]}}])
def test_simulated_and_several_gpus_are_not_predicted_in_time(facts: dict[str, Any]) -> None:
    found = with_predictions(report(**{"hardware": {"gpus": [H100]}, **facts}), identity("cuda"))
    assert absent(found, "predicted_ttft_s")
    assert needed_ceilings(report(**facts), identity("cuda")) == frozenset()


@pytest.mark.parametrize(
    "facts",
    [
        {"model_config": None},
        {"model_config": {"model_type": "mamba"}},
        {"model_config": {"model_type": "llama"}},
        {"model_config": 7},
    ],
)
def test_what_arithmetic_does_not_know_leaves_the_metrics_alone(facts: dict[str, Any]) -> None:
    measured = report(**facts)
    assert with_predictions(measured, identity()).metrics == measured.metrics
    assert needed_ceilings(measured, identity()) == frozenset()


def test_failed_attempts_and_tasks_without_arithmetic_are_left_alone() -> None:
    failed = dataclasses.replace(report(), outcome=Outcome.ERROR)
    assert with_predictions(failed, identity()) is failed
    other = report()
    assert with_predictions(other, identity(task="noop")) is other
    assert needed_ceilings(failed, identity()) == frozenset()


@pytest.mark.parametrize(
    ("before", "after", "kept"), [(1.1, 3.0, 1.1), (3.0, 2.0, 2.0), (1.0, 1.2, 1.2)]
)
def test_of_two_measurements_the_newer_is_kept_unless_only_it_was_disturbed(
    before: float, after: float, kept: float
) -> None:
    for spread in (before, after):
        keep(dataclasses.replace(FLAT, spread=spread))
    assert load_this().spread == kept


def test_what_was_measured_before_stays_beside_what_is_new() -> None:
    def part(name: str, at_s: float) -> Measured:
        return dataclasses.replace(
            FLAT,
            timings={f"product.far.{name}": ((5e5, 1.0, at_s),)},
            operations=frozenset({f"inference.{name}"}),
        )

    keep(part("float32", 1.0))
    keep(part("bfloat16", 2.0))
    keep(part("float32", 3.0))
    key = ceilings_key(report(), identity())
    assert key is not None
    found = load_ceilings(key)
    assert found is not None
    assert found.operations == {"inference.float32", "inference.bfloat16"}
    assert found.timings["product.far.float32"] == ((5e5, 1.0, 3.0),)
    assert found.timings["product.far.bfloat16"] == ((5e5, 1.0, 2.0),)
    assert load_this() == found


def test_what_was_measured_without_layers_leaves_the_cost_of_a_launch() -> None:
    known = dataclasses.replace(FLAT, launch_s=2e-6)
    without = dataclasses.replace(FLAT, launch_s=0.0, operations=frozenset({"int8"}))
    assert known.merged(without).launch_s == without.merged(known).launch_s == 2e-6
    assert known.merged(dataclasses.replace(known, launch_s=1e-6)).launch_s == 1e-6
    assert without.merged(without).launch_s == 0.0
