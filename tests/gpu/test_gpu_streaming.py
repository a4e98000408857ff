"""task=streaming on a real GPU: the resident model's tokens; skipped where there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from orchestrator.measure import OutOfMemory, Recorder, clock_for
from orchestrator.measure.registry import find_task

# The driver's control node: no need to import torch for seconds to learn that there is no GPU.
pytestmark = pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists(), reason="no NVIDIA driver on this machine"
)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch cannot use CUDA here")
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))


def run(tmp_path: Path, task: str, scheme: str = "none", **options: Any) -> list[dict[str, Any]]:
    """What the task emits on the GPU, in float32 where nothing is packed."""
    config = find_task(task).config(prompt_tokens=8, new_tokens=5, **options)
    identity = {
        "schema": 1,
        "task": dataclasses.asdict(config),
        "model": {
            **dict.fromkeys(("id", "revision", "path")),
            "source": "random",
            "architecture": dict(LLAMA),
            "trust_remote_code": False,
        },
        "quant": {
            "scheme": scheme,
            "dtype": "float32" if scheme == "none" else "bfloat16",
            "double_quant": scheme != "none",
        },
        "protocol": {
            "warmup": 1,
            "min_repetitions": 2,
            "max_repetitions": 2,
            "max_time_s": 60.0,
            "ci_relative_half_width": 0.5,
            "confidence": 0.95,
            "resamples": 100,
        },
        "device": {"kind": "cuda", "threads": 1},
        "seed": 0,
    }
    assert find_task(task).check(identity) is None
    events: list[dict[str, Any]] = []
    directory = tmp_path / f"{task}-{len(list(tmp_path.iterdir()))}"
    directory.mkdir()
    find_task(task).run(identity, Recorder(events.append, clock_for("cuda"), directory))
    return events


def of(events: list[dict[str, Any]], name: str) -> Any:
    (found,) = [e["value"] for e in events if name in (e.get("name"), e.get("key"))]
    return found


def samples(events: list[dict[str, Any]], name: str) -> list[float]:
    return [
        value
        for e in events
        if e["e"] == "samples" and e["name"] == name and e["role"] == "measured"
        for value in e["values"]
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"transfer": "sync", "buffer": "tensor"},
        {"transfer": "sync", "pinned": True},
        {"depth": 2, "workers": 2, "pinned": True},
        {"depth": 2, "workers": 2, "pinned": True, "buffer": "tensor"},
        {"resident_embedding": False, "resident_norm": False, "resident_head": False},
        {"page_cache": "warm", "direct": False},
    ],
)
def test_tokens_are_those_of_the_resident_model(tmp_path: Path, options: dict[str, Any]) -> None:
    streamed = run(tmp_path, "streaming", **options)
    resident = run(tmp_path, "inference")
    assert of(streamed, "output_digests") == of(resident, "output_digests")
    assert of(streamed, "h2d_bandwidth_bytes_per_s") > 0
    assert all(busy_s > 0 for busy_s in samples(streamed, "h2d_busy_s"))
    if options.get("transfer") == "sync":
        assert all(seconds > 0 for seconds in samples(streamed, "step_h2d_s"))


def test_categories_and_gaps_add_up_to_what_the_device_s_clock_saw(tmp_path: Path) -> None:
    events = run(tmp_path, "streaming", transfer="sync", pinned=True)
    names = ("disk_read", "pin", "h2d", "wait", "create", "forward", "free", "unattributed")
    for index, tpot_s in enumerate(samples(events, "tpot_s")):
        parts_s = [samples(events, f"step_{name}_s")[index] for name in names]
        assert sum(parts_s) == pytest.approx(tpot_s, rel=0.02)


def test_four_bits_are_unpacked_after_the_transfer(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    events = run(tmp_path, "streaming", "nf4", depth=2, workers=2, pinned=True)
    assert len(of(events, "output_digests")) == 1
    assert of(events, "weights_bytes") < 4 * 2_000_000


def test_a_budget_that_is_exceeded_is_the_device_s(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory) as caught:
        run(tmp_path, "streaming", budget_bytes=30_000_000, depth=4)
    assert caught.value.outcome == "oom_device"
