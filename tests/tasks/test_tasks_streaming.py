"""task=streaming on tiny models: the resident model's tokens, and an account that adds up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.separate import NO_SPACE
from orchestrator.errors import ConfigError
from orchestrator.measure import InputError, Mismatch, OutOfMemory
from orchestrator.tasks.streaming.layout import (
    PAGE_BYTES,
    places_in,
)
from orchestrator.tasks.streaming.packed import Packer, Unpacker
from orchestrator.tasks.streaming.prefetch import HeldPipeline
from orchestrator.tasks.streaming.runner import ARCHITECTURES
from orchestrator.tasks.streaming.streaming_expected import expect_streaming
from orchestrator.tasks.streaming.write_units import main as write_main
from orchestrator.tasks.streaming.write_units import write
from testing.checks import check_of

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("streaming")


def streaming(identity: Identity, directory: Path, **options: Any) -> dict[str, Any]:
    """The identity of a run on a saved fp32 model, which is read as it is."""
    model = {"source": "path", "path": str(directory)}
    short = {"prompt_tokens": 8, "new_tokens": 5}
    return identity("fp32", task="streaming", model=model, **{**short, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"transfer": "sync", "buffer": "tensor"},
        pytest.param({"transfer": "sync", "buffer": "single"}, marks=pytest.mark.long),
        pytest.param({"transfer": "async", "buffer": "tensor"}, marks=pytest.mark.long),
        {"transfer": "async", "depth": 2, "workers": 2},
        {"depth": 3, "resident_embedding": False, "resident_norm": False, "resident_head": False},
        {"resident_head": False, "page_cache": "warm", "direct": False, "attention": "eager"},
        pytest.param(
            {"transfer": "async", "buffer": "tensor", "direct": False}, marks=pytest.mark.long
        ),
        {"batch_size": 3},
    ],
)
def test_tokens_are_those_of_the_resident_model(
    identity: Identity, run: Run, saved_model: Path, options: dict[str, Any]
) -> None:
    streamed = run(streaming(identity, saved_model, **options))
    model = {"source": "path", "path": str(saved_model)}
    same = {key: options[key] for key in ("batch_size", "attention") if key in options}
    resident = run(identity("fp32", model=model, prompt_tokens=8, new_tokens=5, **same))
    assert streamed.fact("output_digests") == resident.fact("output_digests")
    assert len(streamed.fact("output_digests")) == 1
    assert streamed.engaged("weights")["ok"]
    assert streamed.fact("streamed_from") == "checkpoint"


def test_a_layer_with_the_weights_of_another_is_a_mismatch(
    identity: Identity, run: Run, saved_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_of_each(ring: Any, loader: Any, ledger: Any, **_: int) -> HeldPipeline:
        return HeldPipeline(ring, loader, ledger)

    monkeypatch.setattr("orchestrator.tasks.streaming.session.AsyncPipeline", first_of_each)
    with pytest.raises(
        Mismatch, match="asked for streamed weights the logits of layers read one by one"
    ):
        run(streaming(identity, saved_model, transfer="async"))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_equal_bit_by_bit_in_every_known_architecture(
    identity: Identity,
    recorder: Any,
    tmp_path: Path,
    model_type: str,
    tied: bool,
) -> None:
    import torch
    from transformers import DynamicCache

    from orchestrator.engines import transformers as loading
    from orchestrator.engines.transformers import random_weights as architecture
    from orchestrator.tasks.streaming.options import StreamingConfig
    from orchestrator.tasks.streaming.session import StreamingSession

    shape = {
        "model_type": model_type,
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = architecture.configuration(shape)
    resident = architecture.build(config, 0, "float32", "sdpa").eval()
    directory = tmp_path / "model"
    resident.save_pretrained(directory)
    asked = streaming(identity, directory)
    write_to, _ = recorder
    prepared = loading.prepare(asked, write_to)
    ids = torch.arange(10, 22).reshape(2, 6)
    with torch.inference_mode():
        session = StreamingSession(prepared, asked, StreamingConfig(depth=2, workers=2), write_to)
        try:
            session.load()
            ours, theirs = DynamicCache(config=config), DynamicCache(config=config)
            for step in (ids, ids[:, :1], ids[:, 1:2]):
                got = session.streamed(input_ids=step, past_key_values=ours).logits
                expected = resident(input_ids=step, past_key_values=theirs).logits
                assert torch.equal(got, expected)
        finally:
            session.close()


def test_categories_and_gaps_add_up_to_the_wall(
    identity: Identity, run: Run, saved_model: Path, tmp_path: Path
) -> None:
    events = run(streaming(identity, saved_model, transfer="sync"))
    assert events.engaged("foreground categories")["ok"]
    names = ("disk_read", "wait", "create", "forward", "free", "unattributed")
    for index, tpot_s in enumerate(events.samples("tpot_s")):
        parts_s = [events.samples(f"step_{name}_s")[index] for name in names]
        assert sum(parts_s) == pytest.approx(tpot_s, rel=0.02)
    assert events.median("step_wait_s") == 0
    assert events.median("step_disk_read_s") > 0
    (file,) = tmp_path.glob("*/streaming.json")
    (first, *_) = json.loads(file.read_text())
    assert len(first["steps"]) == 4
    assert {"model.layers.0", "model.layers.1", "lm_head"} <= set(first["steps"][0])
    assert first["background"] == {}
    booked_s = [sum(sum(parts.values()) for parts in step.values()) for step in first["steps"]]
    assert sum(booked_s) / 4 == pytest.approx(events.samples("tpot_s")[0], rel=0.02)


def test_reading_ahead_is_reported_apart_from_the_foreground(
    identity: Identity, run: Run, saved_model: Path, tmp_path: Path
) -> None:
    events = run(streaming(identity, saved_model, transfer="async", depth=1))
    assert events.median("step_disk_read_s") == 0
    assert events.median("disk_busy_s") > 0
    assert events.value("bound_s") > 0
    # Nothing beats what no overlap can beat.
    assert events.value("tpot_over_bound") >= 1.0
    assert events.value("disk_achieved_share") > 0
    assert events.value("disk_bandwidth_bytes_per_s") > 0
    (file,) = tmp_path.glob("*/streaming.json")
    background = json.loads(file.read_text())[0]["background"]
    assert background["model.layers.1"]["disk_read"] > 0
    assert not [e for e in events if e.get("name", "").startswith(("step_h2d", "step_pin"))]


def test_a_slow_disk_is_hidden_behind_compute_only_as_far_as_it_can_be(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    rate = 2e6
    events = run(streaming(identity, saved_model, disk_bytes_per_s=rate, new_tokens=3))
    assert events.fact("bottleneck") == "disk"
    expected_s = events.value("disk_bytes") / rate
    assert events.median("tpot_s") >= 0.95 * expected_s
    # No faster than it is allowed to be, and what it really was is what the bound is made of.
    bandwidth = events.value("disk_bandwidth_bytes_per_s")
    assert 0 < bandwidth <= 1.01 * rate
    slowest_s = max(events.value("disk_bytes") / bandwidth, events.value("compute_bound_s"))
    assert events.value("bound_s") == pytest.approx(slowest_s)


def test_nf4_is_quantized_once_and_comes_back_as_bitsandbytes_has_it(
    saved_model: Path, tmp_path: Path
) -> None:
    import bitsandbytes.functional as functional
    import torch
    from safetensors.torch import load_file

    quant = {"scheme": "nf4", "dtype": "float32", "double_quant": True}
    request = {
        "files": [str(saved_model / "model.safetensors")],
        "quant": quant,
    }
    store = tmp_path / "store"
    store.mkdir()
    write(request, store)
    unpacker = Unpacker(store, torch.device("cpu"), torch.float32)
    assert unpacker.scheme == "nf4"
    dense = load_file(saved_model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    packed = {}
    for file in sorted(store.glob("unit-*.safetensors")):
        packed.update(load_file(file))
    flat = {key: tensor.flatten().view(torch.uint8) for key, tensor in packed.items()}
    expected = functional.dequantize_4bit(
        *functional.quantize_4bit(dense[name], compress_statistics=True, quant_type="nf4")
    )
    assert torch.equal(unpacker.unpack(name, flat), expected)
    assert not torch.equal(expected, dense[name])
    assert "model.embed_tokens.weight" not in unpacker
    assert torch.equal(packed["model.embed_tokens.weight"], dense["model.embed_tokens.weight"])


def test_nf4_runs_from_a_store_of_random_weights(identity: Identity, run: Run, cache: Path) -> None:
    asked = identity("nf4", task="streaming", prompt_tokens=8, new_tokens=3)
    events = run(asked)
    assert events.engaged("weights")["got"] == "nf4+double"
    assert events.fact("streamed_from") == "cache"
    (store,) = (cache / "streamed").iterdir()
    made = {file.name: file.stat().st_mtime_ns for file in store.iterdir()}
    assert "request.json" not in made
    for name in made:
        if name.startswith("unit-"):
            first = min(place.offset for place in places_in([store / name]).values())
            assert first % PAGE_BYTES == 0
    again = run(asked)
    assert again.fact("output_digests") == events.fact("output_digests")
    assert {file.name: file.stat().st_mtime_ns for file in store.iterdir()} == made
    assert again.value("weights_bytes") < 4 * 80_000
    expected = expect_streaming(asked, None)
    assert expected is not None
    for name in ("weights_bytes", "disk_bytes"):
        assert expected.sizes_bytes[name] == events.value(name)


def test_4_bit_weights_of_a_random_model_are_made_from_its_plain_ones(
    identity: Identity, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.engines.transformers import Prepared, random_weights
    from orchestrator.tasks.streaming import unit_files

    asked: list[bool] = []

    def in_this_process(request: dict[str, Any], directory: Path, where: str) -> None:
        asked.append(bool(request["files"]))
        directory.mkdir()
        write(request, directory)

    monkeypatch.setattr(unit_files, "_write", in_this_process)

    def made(quant: str) -> dict[str, bytes]:
        trial = identity(quant, task="streaming")
        architecture = trial["model"]["architecture"]
        config = random_weights.configuration(architecture)
        digest = random_weights.digest(architecture, trial["seed"])
        directory = unit_files.open_store(Prepared(config, None, (), digest), trial).directory
        assert directory is not None
        return {file.name: file.read_bytes() for file in directory.iterdir()}

    drawn = made("nf4")
    shutil.rmtree(cache / "streamed")
    made("bf16")
    assert made("nf4") == drawn
    assert asked == [False, False, True]


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"transfer": "warp"}, "task.transfer"),
        ({"buffer": "none"}, "task.buffer"),
        ({"page_cache": "hot"}, "task.page_cache"),
        ({"depth": 0}, "task.depth"),
        ({"new_tokens": 1}, "task.new_tokens"),
        ({"budget_bytes": 0}, "task.budget_bytes"),
    ],
)
def test_options_without_sense_are_refused(
    identity: Identity, options: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(identity(task="streaming", **options))
    assert caught.value.where == where


def test_what_cannot_be_done_here_is_infeasible(identity: Identity) -> None:
    assert check(identity(task="streaming")) is None
    assert "CUDA" in str(check(identity(task="streaming", pinned=True)))
    assert "direct=false" in str(check(identity(task="streaming", page_cache="warm")))
    assert check(identity(task="streaming", page_cache="warm", direct=False)) is None
    assert "depth" in str(check(identity(task="streaming", workers=2)))
    assert "int8" in str(check(identity("int8", task="streaming")))
    assert "context of" in str(check(identity(task="streaming", prompt_tokens=5000)))


def test_an_architecture_it_does_not_know_is_named_with_those_it_does(identity: Identity) -> None:
    with pytest.raises(ConfigError, match="gpt2") as caught:
        check(identity(task="streaming", model={"architecture": {"model_type": "gpt2"}}))
    assert "llama" in str(caught.value)


def test_a_layer_larger_than_the_budget(identity: Identity, run: Run, saved_model: Path) -> None:
    with pytest.raises(InputError, match=r"alone takes \d+ bytes, the budget is 1000"):
        run(streaming(identity, saved_model, budget_bytes=1000))


def test_residents_and_slots_over_the_budget(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    with pytest.raises(OutOfMemory) as caught:
        run(streaming(identity, saved_model, budget_bytes=400_000, depth=64))
    assert caught.value.outcome == "oom_host"


def test_a_budget_is_held_to_what_is_really_used(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    # Residents and slots fit, the activations of this prompt do not.
    with pytest.raises(OutOfMemory, match=r"took \d+ bytes"):
        run(
            streaming(
                identity, saved_model, budget_bytes=1_000_000, prompt_tokens=480, batch_size=64
            )
        )


def test_a_missing_shard_and_a_missing_tensor(
    identity: Identity, run: Run, saved_model: Path
) -> None:
    from safetensors.torch import load_file, save_file

    file = saved_model / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        run(streaming(identity, saved_model))
    names = {name: "model-00002-of-00002.safetensors" for name in tensors}
    index = {"metadata": {}, "weight_map": names}
    (saved_model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="missing"):
        run(streaming(identity, saved_model))


def test_a_disk_that_fills_while_writing_leaves_nothing(
    identity: Identity, run: Run, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from orchestrator.tasks.streaming import unit_files as store

    def full(request: dict[str, Any], directory: Path, where: str) -> None:
        directory.mkdir()
        (directory / "unit-00000.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(InputError, match="no space left"):
        run(identity("bf16", task="streaming"))
    assert list((cache / "streamed").iterdir()) == []


def test_the_writer_says_that_the_disk_is_full(
    saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    request = {
        "files": [str(saved_model / "model.safetensors")],
        "quant": {"scheme": "none", "dtype": "bfloat16", "double_quant": False},
    }
    order = tmp_path / "request.json"
    order.write_text(json.dumps(request))
    monkeypatch.setattr("sys.argv", ["write", str(order), str(tmp_path)])
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(SystemExit) as caught:
        write_main()
    assert caught.value.code == NO_SPACE


def test_packing_keeps_scales_plain_where_asked() -> None:
    import torch

    torch.manual_seed(0)
    plain = Packer("nf4", double_quant=False).pack("w", torch.randn(64, 64))
    assert set(plain) == {"w", "w.absmax"}
    assert plain["w"].numel() == 64 * 64 // 2
