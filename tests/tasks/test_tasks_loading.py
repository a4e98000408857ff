"""Models loaded at every scheme, and proof that they are what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers import random_weights as architecture
from orchestrator.engines.transformers.engaged import check_weights, expected_kind
from orchestrator.engines.transformers.quantization import quantize_linears, refuse_unpackable
from orchestrator.measure import Infeasible, InputError, Mismatch, Recorder
from testing.hub import Hub

ROOT = Path(__file__).resolve().parents[2]
Identity = Callable[..., dict[str, Any]]
TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def load(identity: dict[str, Any], recorder: Any) -> Any:
    prepared = loading.prepare(identity, recorder[0])
    return loading.load(prepared, identity, recorder[0])


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("source", ["random", "path"])
def test_every_scheme_is_what_it_says(
    identity: Identity, recorder: Any, saved_model: Path, quant: str, source: str
) -> None:
    model = None if source == "random" else {"source": "path", "path": str(saved_model)}
    asked = identity(quant, model=model)
    loaded = load(asked, recorder)
    events = recorder[1]
    assert events.engaged("weights")["got"] == f"{expected_kind(asked['quant'])} x 14"
    assert events.engaged("threads")["got"] == "1"
    assert events.engaged("device")["got"] == "cpu"
    assert events.value("load_s") > 0
    assert events.phases() == ["prepare", "load"]
    assert len(events.fact("weights_digest")) == 64
    with torch.inference_mode():
        logits = loaded(input_ids=torch.arange(8)[None]).logits
    assert logits.shape == (1, 8, 256)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8"])
def test_a_prefill_copies_no_weights(identity: Identity, recorder: Any, quant: str) -> None:
    loaded = load(identity(quant), recorder)
    prompt = torch.arange(24).reshape(3, 8)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        loaded(input_ids=prompt, logits_to_keep=1)
    # The head is the widest there is: what is computed of 24 tokens is far less.
    most = max(event.cpu_memory_usage for event in profile.events())
    assert most < loaded.lm_head.weight.nbytes


@pytest.mark.parametrize("quant", ["nf4", "int8", pytest.param("bf16", marks=pytest.mark.long)])
def test_a_label_on_other_weights_is_an_error(
    identity: Identity, recorder: Any, quant: str
) -> None:
    dense = load(identity("fp32"), recorder)
    with pytest.raises(Mismatch, match="float32 x 14"):
        check_weights(dense, identity(quant)["quant"], recorder[0])
    refused = [e for e in recorder[1] if e["e"] == "engaged" and not e["ok"]]
    assert [e["what"] for e in refused] == ["weights"]


def test_one_layer_left_dense_is_an_error(identity: Identity, recorder: Any) -> None:
    asked = identity("nf4")
    model = load(asked, recorder)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    with pytest.raises(Mismatch, match=r"float32 x 1, nf4\+double x 13"):
        check_weights(model, asked["quant"], recorder[0])


def test_double_quantization_is_seen(identity: Identity, recorder: Any) -> None:
    asked = identity("nf4")
    model = load({**asked, "quant": {**asked["quant"], "double_quant": False}}, recorder)
    with pytest.raises(Mismatch, match=r"nf4\+double, got nf4 x 14"):
        check_weights(model, asked["quant"], recorder[0])


def test_mostly_dense_under_a_quantized_label_is_an_error(
    identity: Identity, recorder: Any
) -> None:
    asked = identity("nf4")
    model = load(asked, recorder)
    # As fused experts are: not a linear layer, and left alone by bitsandbytes.
    model.experts = torch.nn.Parameter(torch.zeros(8, 128, 128))
    with pytest.raises(Mismatch, match="quantized share"):
        check_weights(model, asked["quant"], recorder[0])


def test_other_attention_or_threads_are_an_error(identity: Identity, recorder: Any) -> None:
    asked = identity()
    prepared = loading.prepare(asked, recorder[0])
    model = loading.load_unmeasured(prepared, asked["quant"], asked["device"], 0, attention="eager")
    from orchestrator.engines.transformers.engaged import check_setting

    with pytest.raises(Mismatch, match="attention sdpa, got eager"):
        check_setting(model, "sdpa", asked["device"], 1, recorder[0])
    with pytest.raises(Mismatch, match="threads 2, got 1"):
        check_setting(model, "eager", asked["device"], 2, recorder[0])


def test_parameters_are_the_models_and_not_the_files(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from orchestrator.engines.transformers.footprint import parameters_of

    file = saved_model / "model.safetensors"
    tensors = load_file(file)
    held = sum(tensor.numel() for tensor in tensors.values())
    # As older files have them: a head that is the embedding, a table that is computed.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, file, {"format": "pt"})
    asked = identity(model={"source": "path", "path": str(saved_model), "architecture": None})
    prepared = loading.prepare(asked, recorder[0])
    assert parameters_of(prepared.config, own_code=False) == held
    model = loading.load(prepared, asked, recorder[0])
    assert sum(parameter.numel() for parameter in model.parameters()) == held


def test_footprints_are_those_of_the_formats(identity: Identity, recorder: Any) -> None:
    sizes = {}
    for quant in ("fp32", "bf16", "int8", "nf4"):
        sizes[quant] = loading.footprint(load(identity(quant), recorder))
    parameters = {size.parameters for size in sizes.values()}
    assert len(parameters) == 1
    (count,) = parameters
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
    assert [s.quantized_parameters for s in sizes.values()] == [0, 0, linear, linear]
    buffers = sizes["fp32"].weights_bytes - 4 * count
    assert 0 <= buffers < 1000  # rotary frequencies
    assert sizes["bf16"].weights_bytes == 2 * count + buffers
    dense = 2 * (count - linear) + buffers
    # One float32 scale a row; one byte each 64 and the code books of two levels.
    rows = 2 * (64 * 2 + 32 * 2 + 128 * 2 + 64)
    assert sizes["int8"].weights_bytes == dense + linear + 4 * rows
    assert linear / 2 + linear / 64 <= sizes["nf4"].weights_bytes - dense
    assert sizes["nf4"].weights_bytes - dense <= linear / 2 + linear / 64 + 14 * 2048
    assert sizes["bf16"].bits_per_parameter == pytest.approx(16, rel=0.01)


def test_one_seed_is_one_set_of_weights_at_every_precision() -> None:
    config = architecture.configuration(TINY)
    full = architecture.build(config, 7, "float32", "sdpa")
    again = architecture.build(config, 7, "bfloat16", "sdpa")
    other = architecture.build(config, 8, "float32", "sdpa")
    one, two, three = (m.model.layers[0].mlp.up_proj.weight for m in (full, again, other))
    assert torch.equal(one.to(torch.bfloat16), two)
    assert not torch.equal(one, three)
    assert again.model.rotary_emb.inv_freq.dtype == torch.float32
    assert architecture.digest(TINY, 7) != architecture.digest(TINY, 8)


def test_building_random_weights_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    architecture.build(architecture.configuration(TINY), 7, "float32", "sdpa")
    assert torch.equal(torch.rand(1), expected)


def test_random_weights_that_transformers_would_leave_out_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import LlamaPreTrainedModel

    model = architecture.build(architecture.configuration(TINY), 0, "float32", "sdpa")
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())
    assert bool(torch.nn.Linear(2, 2).weight.isfinite().all())
    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", lambda self, module: None)
    model = architecture.build(architecture.configuration(TINY), 0, "float32", "sdpa")
    # The proofs of an attempt say so.
    assert bool(model(torch.tensor([[1, 2]])).logits.isnan().all())


def test_an_unknown_model_type_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown model_type 'lama'.*Did you mean.*llama"):
        architecture.configuration({"model_type": "lama"})


def test_impossible_architectures_are_refused_in_a_line() -> None:
    def build(architecture_: dict[str, Any]) -> None:
        architecture.build(architecture.configuration(architecture_), 0, "float32", "sdpa")

    with pytest.raises(InputError) as raised:
        build({**TINY, "num_attention_heads": 5})
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="language model"):
        build({"model_type": "vit"})


def test_four_bit_layers_that_the_cpu_cannot_pack_are_infeasible() -> None:
    import bitsandbytes

    if not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes packs nothing")
    config = architecture.configuration({**TINY, "intermediate_size": 72})
    model = architecture.build(config, 0, "bfloat16", "sdpa")
    quant = {"scheme": "nf4", "dtype": "bfloat16", "double_quant": True}
    quantize_linears(model, quant, torch.device("cpu"))
    with pytest.raises(Infeasible, match="32 x 64 blocks"):
        refuse_unpackable(model, quant)


def test_loaded_weights_are_memory_not_a_mapping(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    model = load(identity(model={"source": "path", "path": str(saved_model)}), recorder)
    assert recorder[1].fact("page_cache")["resident_fraction_before_load"] == 1.0
    assert str(saved_model) not in Path("/proc/self/maps").read_text()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_weights_digest_follows_the_content(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    asked = identity(model={"source": "path", "path": str(saved_model)})
    first = loading.prepare(asked, recorder[0]).weights_digest
    config = architecture.configuration(TINY | {"tie_word_embeddings": True})
    architecture.build(config, 1, "float32", "sdpa").save_pretrained(saved_model)
    assert loading.prepare(asked, recorder[0]).weights_digest != first


def test_corrupt_weights_name_their_file(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    file = saved_model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: corrupt"):
        loading.prepare(identity(model={"source": "path", "path": str(saved_model)}), recorder[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 3}, "lack 9 tensors"),
        ({"hidden_size": 128, "head_dim": 16}, "another shape"),
        ({"model_type": "nonsense"}, "config.json"),
    ],
)
def test_weights_of_another_configuration_are_refused(
    identity: Identity, recorder: Any, saved_model: Path, change: dict[str, Any], says: str
) -> None:
    file = saved_model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=says) as raised:
        load(identity(model={"source": "path", "path": str(saved_model)}), recorder)
    assert "\n" not in str(raised.value)


def test_a_gguf_file_is_converted_once_and_loads(
    identity: Identity, recorder: Any, tiny_gguf: Path, cache: Path
) -> None:
    import gguf

    asked = identity(model={"source": "gguf", "path": str(tiny_gguf)})
    model = load(asked, recorder)
    (directory,) = (cache / "converted").iterdir()
    before = (directory / "model.safetensors").stat().st_mtime_ns
    load(asked, recorder)
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    stored = next(
        t for t in gguf.GGUFReader(tiny_gguf).tensors if t.name == "blk.0.ffn_down.weight"
    )
    assert torch.equal(
        model.model.layers[0].mlp.down_proj.weight, torch.from_numpy(stored.data.copy())
    )


def test_a_damaged_gguf_leaves_no_conversion(
    identity: Identity, recorder: Any, tiny_gguf: Path, cache: Path
) -> None:
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-1000])
    with pytest.raises(InputError, match="GGUF"):
        loading.prepare(identity(model={"source": "gguf", "path": str(tiny_gguf)}), recorder[0])
    assert list((cache / "converted").iterdir()) == []


@pytest.fixture
def hub(saved_model: Path) -> Iterator[Hub]:
    with Hub(saved_model) as made:
        yield made


def _fetch(
    names: list[str], tmp_path: Path, *, code: bool = False, **environment: str
) -> list[str]:
    program = f"""
from orchestrator.engines.transformers.hub import fetch
from orchestrator.measure import InputError
for name in {names!r}:
    try:
        repository, _, revision = name.partition("@")
        print(fetch(repository, revision or None, code={code}))
    except InputError as error:
        print(error)
"""
    # A process of its own: the hub's client reads its environment when it is imported.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**clean, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_content_of_a_hub_model_is_its_commit(
    hub: Hub, saved_model: Path, tmp_path: Path
) -> None:
    def commit(repository: str = "some/tiny", **environment: str) -> str:
        program = f"""
from orchestrator.engines.content import content_of
print(content_of({{"source": "hub", "id": {repository!r}, "revision": None}})["commit"])
"""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**clean, "HF_HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.strip()

    first = hub.commit
    assert commit(HF_HUB_OFFLINE="1") == "None", "unknown equals nothing"
    assert commit(HF_ENDPOINT=hub.address) == first
    _fetch(["some/tiny"], tmp_path, HF_ENDPOINT=hub.address)
    # The branch moves: what was measured before is stale.
    hub.commit = first[::-1]
    assert commit(HF_ENDPOINT=hub.address) == first[::-1]
    assert commit(HF_HUB_OFFLINE="1") == first
    assert commit("some/gated", HF_ENDPOINT=hub.address) == "None"
    # Nobody listens there: what is in the cache is what there is.
    assert commit(HF_ENDPOINT="http://127.0.0.1:1") == first
    assert commit("some/other", HF_ENDPOINT="http://127.0.0.1:1") == "None"
    # A snapshot of which weights are missing is no content.
    (weights,) = (tmp_path / "hub").rglob("model.safetensors")
    weights.unlink()
    assert commit(HF_HUB_OFFLINE="1") == "None"


def test_what_the_hub_refuses_is_said_with_the_fix(hub: Hub, tmp_path: Path) -> None:
    names = ["some/gated", "some/missing", "some/known@branch", "not a name"]
    gated, missing, revision, invalid = _fetch(names, tmp_path, HF_ENDPOINT=hub.address)
    assert "some/gated" in gated
    assert "set HF_TOKEN" in gated
    assert "no such model" in missing
    assert "some/known@branch" in revision
    assert "no such revision" in revision
    assert "not a hub id" in invalid
    # Where the repository's own code runs, no token is at hand.
    for line in _fetch(
        ["some/gated", "some/missing"], tmp_path, code=True, HF_ENDPOINT=hub.address
    ):
        assert "hf download some/" in line
        assert "HF_TOKEN" not in line


def test_a_hub_model_is_fetched_once_and_loads(
    hub: Hub, identity: Identity, recorder: Any, saved_model: Path, tmp_path: Path
) -> None:
    (saved_model / "pytorch_model.bin").write_bytes(b"a pickle")
    (line,) = _fetch(["some/tiny"], tmp_path, HF_ENDPOINT=hub.address)
    fetched = Path(line)
    assert (fetched / "model.safetensors").is_file()
    assert not (fetched / "pytorch_model.bin").exists()
    assert _fetch(["some/tiny"], tmp_path, HF_HUB_OFFLINE="1") == [line]
    load(identity(model={"source": "path", "path": line}), recorder)


def test_the_hub_offline_is_said_with_the_fix(tmp_path: Path) -> None:
    (line,) = _fetch(["some/model"], tmp_path, HF_HUB_OFFLINE="1")
    assert "cannot be reached" in line
    assert "HF_HUB_OFFLINE" in line
    (line,) = _fetch(["some/model"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in line


def test_recorder_type_is_the_contracts(recorder: Any) -> None:
    assert isinstance(recorder[0], Recorder)
