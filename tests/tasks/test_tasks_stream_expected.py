"""What arithmetic expects of streaming: the bytes that a run reads, times from measured rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure.metric import Absent, Metric, Samples, Value
from orchestrator.measure.predicted import Limits, predicted_metrics
from orchestrator.model import Expectation, load_datasheet
from orchestrator.tasks.streaming.streaming_expected import expect_streaming

Identity = Callable[..., dict[str, Any]]
RATE = 1e6


def expectation(asked: dict[str, Any]) -> Expectation:
    found = expect_streaming(asked, None)
    assert found is not None
    return found


def predicted(asked: dict[str, Any], measured: dict[str, Metric]) -> dict[str, Metric]:
    sheet = load_datasheet("h100")
    return predicted_metrics(expectation(asked), measured, Limits("not asked", sheet))


def seconds(found: dict[str, Metric]) -> float:
    metric = found["predicted_tpot_s.datasheet"]
    assert isinstance(metric, Value), metric
    return metric.value


@pytest.mark.parametrize(
    "resident",
    [
        {},
        {"resident_embedding": False, "resident_norm": False, "resident_head": False},
        {"resident_head": False, "transfer": "sync"},
    ],
)
def test_it_expects_the_bytes_that_a_run_reads(
    identity: Identity, run: Callable[..., Any], saved_model: Path, resident: dict[str, Any]
) -> None:
    model = {"source": "path", "path": str(saved_model)}
    asked = identity(
        "fp32", task="streaming", model=model, prompt_tokens=8, new_tokens=2, **resident
    )
    events = run(asked)
    sizes = expectation(asked).sizes_bytes
    for name in ("weights_bytes", "disk_bytes"):
        assert sizes[name] == events.value(name)


def test_memory_grows_with_slots_and_residents_not_with_layers(identity: Identity) -> None:
    def memory(**options: Any) -> int:
        return expectation(identity("bf16", task="streaming", **options)).memory_bytes

    assert memory(transfer="sync") < memory(depth=1) < memory(depth=2)
    assert memory(depth=3) - memory(depth=2) == memory(depth=2) - memory(depth=1)
    assert memory(resident_embedding=False, resident_head=False, depth=1) != memory(depth=1)
    found = expectation(identity("nf4", task="streaming"))
    assert found.floor_bytes is not None
    assert found.floor_bytes < found.memory_bytes


def test_a_step_is_its_longest_stage_or_all_of_them(identity: Identity) -> None:
    slow = {"disk_bandwidth_bytes_per_s": Value("disk_bandwidth_bytes_per_s", "bytes/s", RATE)}
    fast = {"disk_bandwidth_bytes_per_s": Value("disk_bandwidth_bytes_per_s", "bytes/s", 1e18)}
    ahead = identity("bf16", task="streaming")
    onward = identity("bf16", task="streaming", transfer="sync")
    disk_s = expectation(ahead).sizes_bytes["disk_bytes"] / RATE
    computing_s = seconds(predicted(ahead, fast))
    assert seconds(predicted(ahead, slow)) == disk_s > computing_s
    assert seconds(predicted(onward, slow)) == pytest.approx(disk_s + computing_s)


def test_without_a_measured_disk_there_is_no_time_and_with_one_a_ratio(identity: Identity) -> None:
    asked = identity("bf16", task="streaming")
    missing = predicted(asked, {})["predicted_tpot_s.datasheet"]
    assert isinstance(missing, Absent)
    assert "disk_bandwidth_bytes_per_s" in missing.reason
    measured: dict[str, Metric] = {
        "disk_bandwidth_bytes_per_s": Value("disk_bandwidth_bytes_per_s", "bytes/s", RATE),
        "tpot_s": Samples("tpot_s", "s", (3.0,)),
    }
    found = predicted(asked, measured)
    ratio = found["measured_over_predicted.tpot_s.datasheet"]
    assert isinstance(ratio, Value)
    assert ratio.value == pytest.approx(3.0 / seconds(found))


def test_a_gpu_has_the_bus_as_well(identity: Identity) -> None:
    asked = identity("bf16", task="streaming")
    asked["device"] = {"kind": "cuda", "threads": None}
    disk = {"disk_bandwidth_bytes_per_s": Value("disk_bandwidth_bytes_per_s", "bytes/s", 1e12)}
    assert isinstance(predicted(asked, disk)["predicted_tpot_s.datasheet"], Absent)
    bus = {"h2d_bandwidth_bytes_per_s": Value("h2d_bandwidth_bytes_per_s", "bytes/s", RATE)}
    read = expectation(asked).sizes_bytes["disk_bytes"]
    assert seconds(predicted(asked, {**disk, **bus})) == read / RATE
