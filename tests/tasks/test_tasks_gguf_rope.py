"""Numbers of GGUF metadata: kept as the file has them, or said that they cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import transformers as loading
from orchestrator.engines.gguf_files import GgufModel
from orchestrator.measure import InputError
from testing.gguf import of_gguf, of_model, rewritten

USES_NO_PROCESS = pytest.mark.usefixtures("converts_here")
Identity = Callable[..., dict[str, Any]]
PLAIN = [10000.0 ** (-2 * i / 16) for i in range(8)]


def loaded(asked: dict[str, Any], recorder: Any) -> Any:
    return loading.load(loading.prepare(asked, recorder[0]), asked, recorder[0])


def frequencies(model: Any) -> list[float]:
    return [float(value) for value in model.model.rotary_emb.inv_freq]


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},  # llama.cpp takes it for linear
        {"llama.rope.scale_linear": 4.0},
    ],
)
@USES_NO_PROCESS
def test_linear_scaling_is_kept(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    model = loaded(identity(model=of_gguf(file)), recorder)
    assert frequencies(model) == pytest.approx([value / 4 for value in PLAIN])


@USES_NO_PROCESS
def test_yarn_is_kept(identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    fields = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    model = loaded(identity(model=of_gguf(file)), recorder)

    def corner(turns: float) -> float:  # ggml_rope_yarn_corr_dim
        return 16 * math.log(32 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(0, math.floor(corner(32.0))), min(15, math.ceil(corner(1.0)))
    expected = []
    for index, value in enumerate(PLAIN):
        ramp = 1 - min(1.0, max(0.0, (index - low) / max(0.001, high - low)))
        expected.append(value / 4 * (1 - ramp) + value * ramp)
    assert frequencies(model) == pytest.approx(expected, rel=1e-5)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4.0) + 1.0)


@USES_NO_PROCESS
def test_factors_of_its_own_are_kept(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    factors = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    file = rewritten(tiny_gguf, tmp_path / "f.gguf", tensors={"rope_freqs.weight": factors})
    model = loaded(identity(model=of_gguf(file)), recorder)
    expected = [value / factor for value, factor in zip(PLAIN, factors, strict=True)]
    assert frequencies(model) == pytest.approx(expected)
    assert model.model.rotary_emb.attention_scaling == 1.0


def test_llama3s_factors_are_its_rule(tiny_gguf: Path, tmp_path: Path) -> None:
    from orchestrator.engines.transformers.gguf_rope import rope_of

    made = []
    for index in range(32):
        wavelength = 2 * math.pi * 500000.0 ** (index / 32)
        smooth = (8192 / wavelength - 1) / 3
        if wavelength < 2048:
            made.append(1.0)
        else:
            made.append(8.0 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    file = rewritten(
        tiny_gguf,
        tmp_path / "l.gguf",
        {"llama.rope.freq_base": 500000.0},
        {"rope_freqs.weight": made},
    )
    found = rope_of(GgufModel(file), "llama")
    assert (found["rope_type"], found["factor"]) == ("llama3", 8.0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 2.0}, "'dynamic'"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.yarn_ext_factor": 0.5,
            },
            "yarn_ext_factor = 0.5",
        ),
        ({"llama.attention.scale": 0.25}, "attention.scale = 0.25"),
    ],
)
@USES_NO_PROCESS
def test_what_cannot_be_kept_is_refused(
    identity: Identity,
    recorder: Any,
    cache: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    says: str,
) -> None:
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    with pytest.raises(InputError, match=says) as raised:
        loading.prepare(identity(model=of_gguf(file)), recorder[0])
    assert "\n" not in str(raised.value)
    assert list((cache / "converted").iterdir()) == []


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
HEADS_OF_16 = {"attention.key_length": 16, "attention.value_length": 16}


@pytest.mark.parametrize(
    ("family", "model_type", "config", "said"),
    [
        ("starcoder2", "starcoder2", {"rope_theta": 1e6}, {"rope.freq_base": 1e6}),
        (
            "stablelm",
            "stablelm",
            {"partial_rotary_factor": 0.5, "rope_theta": 100.0},
            {"rope.dimension_count": 4, "rope.freq_base": 100.0},
        ),
        # Without the count all of a head is turned.
        ("nemotron", "nemotron", {"partial_rotary_factor": 1.0, "head_dim": 8}, {}),
        ("phi3", "phi3", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 4}),
        ("falcon", "falcon", {"layer_norm_epsilon": 0.1}, {"attention.layer_norm_epsilon": 0.1}),
        (
            "gemma3",
            "gemma3_text",
            {"head_dim": 16, "query_pre_attn_scalar": 16},
            {"rope.freq_base": 1e6, "attention.sliding_window": 4096, **HEADS_OF_16},
        ),
    ],
)
@USES_NO_PROCESS
def test_a_converted_model_computes_what_the_one_in_the_file_does(
    identity: Identity,
    recorder: Any,
    tmp_path: Path,
    family: str,
    model_type: str,
    config: dict[str, Any],
    said: dict[str, Any],
) -> None:
    import torch

    from orchestrator.engines.transformers import random_weights

    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    asked = {"model_type": model_type, **SIZES, **special, **config}
    model = random_weights.build(random_weights.configuration(asked), 0, "float32", "sdpa").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    names = {
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        **said,
    }
    if (epsilon := getattr(model.config, "rms_norm_eps", None)) is not None:
        names["attention.layer_norm_rms_epsilon"] = epsilon
    fields = {f"{family}.{name}": value for name, value in names.items()}
    fields |= {f"tokenizer.ggml.{name}_token_id": 0 for name in ("bos", "eos", "padding")}
    file = of_model(model, tmp_path / "model.gguf", fields)
    found = loaded(identity(model=of_gguf(file)), recorder)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits)
