"""task=profile on a real GPU: kernels, copies, the trace and the allocator's snapshot."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import CudaClock, Recorder
from orchestrator.measure.registry import find_task

# The driver's control node: no need to import torch for seconds to learn that there is no GPU.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not Path("/dev/nvidiactl").exists(), reason="no NVIDIA driver on this machine"
    ),
]

IDENTITY: dict[str, Any] = {
    "schema": 1,
    "model": {
        "source": "random",
        "id": None,
        "revision": None,
        "path": None,
        "architecture": {
            "model_type": "llama",
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        "trust_remote_code": False,
    },
    "quant": {"scheme": "none", "dtype": "bfloat16", "double_quant": False},
    "protocol": {},
    "device": {"kind": "cuda", "threads": None},
    "seed": 0,
}


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch cannot use CUDA here")
    return torch


def profiled(directory: Path, **options: Any) -> dict[str, Any]:
    """Run the task; its values by name."""
    from dataclasses import asdict

    task = find_task("profile")
    asked = {**IDENTITY, "task": asdict(task.config(scenario="custom", **options))}
    events: list[dict[str, Any]] = []
    task.run(asked, Recorder(events.append, CudaClock(), directory))
    return {e["name"]: e["value"] for e in events if e["e"] == "value"}


def test_device_time_is_whole_and_copies_are_counted(torch: Any, tmp_path: Path) -> None:
    values = profiled(tmp_path, prompt_tokens=32, decode_steps=4)
    table = json.loads((tmp_path / "operators.json").read_text())
    assert table["self_time_of"] == "device"
    assert sum(row["share"] for row in table["operators"]) == pytest.approx(1, abs=0.001)
    assert sum(row["kernels"] for row in table["operators"]) > 0
    assert 0 < values["busy_fraction"] <= 1
    assert values["host_to_device_copies"] >= 0
    assert values["device_to_host_bytes"] >= 0
    with gzip.open(tmp_path / "trace.json.gz", "rt") as stream:
        trace = json.load(stream)["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in trace)


def snapshot(directory: Path) -> dict[str, Any]:
    # Written by this very process a moment ago.
    loaded: dict[str, Any] = pickle.loads((directory / "memory_snapshot.pickle").read_bytes())
    return loaded


def test_the_allocator_s_history_is_left(torch: Any, tmp_path: Path) -> None:
    profiled(tmp_path, prompt_tokens=32, decode_steps=2)
    found = snapshot(tmp_path)
    assert found["segments"]
    assert any(event["action"] == "alloc" for trace in found["device_traces"] for event in trace)


def test_the_history_is_left_where_memory_runs_out(torch: Any, tmp_path: Path) -> None:
    # Room for the model, not for the activations of a million tokens (128 MiB for one of them).
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((64 << 20) / whole)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            profiled(tmp_path, batch_size=4096, prompt_tokens=256, decode_steps=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert any(
        event["action"] == "oom" for trace in snapshot(tmp_path)["device_traces"] for event in trace
    )
