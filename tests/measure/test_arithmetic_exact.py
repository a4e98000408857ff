"""Parameters, cache, weights and FLOPs against transformers' own models: equal, not close."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.model import (
    Architecture,
    CacheFormat,
    Execution,
    WeightFormat,
    active_parameter_count,
    decode,
    flops,
    kv_bytes,
    parameter_count,
    prefill,
    read_architecture,
    step_flops,
    weights_bytes,
)
from orchestrator.model.families import READERS

torch = pytest.importorskip("torch")
CONF = Path(__file__).resolve().parents[2] / "conf" / "model"

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# Variants of each family that take every branch its reader has.
TINY: dict[str, dict[str, Any]] = {
    "cohere": {"use_qk_norm": True},
    "deepseek_v2": {**LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**LATENT, "q_lora_rank": 24},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "bias": True},
    "falcon-multi-query": {"multi_query": True},
    "falcon-plain": {"multi_query": False, "alibi": True, "parallel_attn": False},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 16},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16, "sliding_window_pattern": 2},
    "glm4": {"head_dim": 16},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128},
    "gpt2-inner": {
        **{"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "n_inner": 80},
        "resid_pdrop": 0.0,
    },
    "gpt_neox": {"rotary_pct": 0.5},
    "gpt_oss": {"head_dim": 32, "sliding_window": 16, "num_local_experts": 4},
    "granite": {"attention_bias": True, "mlp_bias": True},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama-head-dim": {"head_dim": 24, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "olmo": {},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32},
    "opt-whole": {"ffn_dim": 96, "dropout": 0.0},
    "phi": {"qk_layernorm": True},
    "phi3": {"sliding_window": 16, "partial_rotary_factor": 0.5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 48, "mlp_only_layers": [1]},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {**MIXTURE, "head_dim": 32, "decoder_sparse_step": 2},
    "smollm3": {"use_sliding_window": True, "sliding_window": 16, "no_rope_layer_interval": 2},
    "stablelm": {"qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True},
    "starcoder2": {"sliding_window": 16},
}
EXTRA: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 6}}


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    model_type = name.split("-")[0]
    values = {**SMALL, **TINY[name]}
    if model_type == "gpt2":
        values = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, **TINY[name]}
    return AutoConfig.for_model(model_type, **values)


def built(config: Any, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager"
        ).eval()


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_family_is_tried() -> None:
    assert {name.split("-")[0] for name in TINY} == set(READERS)


@pytest.mark.parametrize("model_type", sorted(READERS))
def test_parameters_of_the_family_at_its_published_size(model_type: str) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **EXTRA.get(model_type, {}))
    model = built(config, "meta")
    architecture = read_architecture(config.to_dict(), strict=False)
    assert parameter_count(architecture) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(TINY))
def test_parameters_buffers_and_cache_of_each_variant(name: str) -> None:
    from transformers import DynamicCache

    config = config_of(name)
    model = built(config, "cpu")
    architecture = read_architecture(config.to_dict())
    assert parameter_count(architecture) == sum(p.numel() for p in model.parameters())
    held = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    assert weights_bytes(architecture, WeightFormat("none", "float32")) == held
    for tokens in (1, 12, 40):
        cache = DynamicCache(config=config)
        with torch.inference_mode():
            model(torch.randint(3, 90, (3, tokens)), past_key_values=cache)
            model(torch.randint(3, 90, (3, 1)), past_key_values=cache)
        real = sum(
            t.numel() * t.element_size()
            for layer in cache.layers
            for t in (layer.keys, layer.values)
        )
        fmt = CacheFormat("float32")
        assert kv_bytes(architecture, tokens + 1, batch=3, cache=fmt) == real, tokens


@pytest.mark.parametrize("name", sorted(TINY))
def test_flops_are_those_that_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import DynamicCache

    config = config_of(name)
    model = built(config, "cpu")
    architecture = read_architecture(config.to_dict())
    ids = torch.randint(3, 90, (2, 12))  # shorter than any window: the square is the whole mask
    every = FlopCounterMode(display=False)
    with every:
        loss = model(ids, labels=ids).loss
        ahead = every.get_total_flops()
        loss.backward()
    step = step_flops(architecture, 2, 12, causal=False, fused_attention=False)
    assert ahead == pytest.approx(step.forward, rel=1e-6)
    assert every.get_total_flops() == pytest.approx(step.model, rel=0.02)
    run = Execution(fused=False, causal=False, absorbed=False)
    weights, fmt = WeightFormat("none", "float32"), CacheFormat("float32")
    cache = DynamicCache(config=config)
    with torch.inference_mode(), FlopCounterMode(display=False) as first:
        model(ids, past_key_values=cache)
    last_only = flops(prefill(architecture, 2, 12, weights, fmt, run))
    skipped = 2 * 2 * 11 * architecture.head.elements
    assert first.get_total_flops() == pytest.approx(last_only + skipped, rel=1e-6)
    with torch.inference_mode(), FlopCounterMode(display=False) as second:
        model(ids[:, :1], past_key_values=cache)
    one = flops(decode(architecture, 2, 12, weights, fmt, run))
    assert second.get_total_flops() == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("name", sorted(TINY))
def test_checkpointing_computes_again_what_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of(name)
    model = built(config, "cpu").train()
    ids = torch.randint(3, 90, (2, 12))

    def counted() -> int:
        counter = FlopCounterMode(display=False)
        with counter:
            model(ids, labels=ids, use_cache=False).loss.backward()
        return int(counter.get_total_flops())

    plain = counted()
    model.activation_checkpointing_enable({"use_reentrant": False})
    step = step_flops(
        read_architecture(config.to_dict()),
        2,
        12,
        causal=False,
        checkpointing=True,
        fused_attention=False,
    )
    # The layers once more, as far as torch goes: equal, not close.
    assert counted() - plain == step.hardware - step.model


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3_text", "gpt_oss", "phi3", "qwen2"])
def test_what_a_configuration_leaves_out_is_as_transformers_has_it(name: str) -> None:
    from transformers import AutoConfig

    given = {**SMALL, "head_dim": 32, "max_position_embeddings": 8192, "model_type": name}
    given |= {"num_local_experts": 4, "num_experts_per_tok": 2} if name == "gpt_oss" else {}
    whole = AutoConfig.for_model(**given).to_dict()
    short, long = read_architecture(given), read_architecture(whole)
    assert short.layers == long.layers
    assert parameter_count(short) == parameter_count(long)


PUBLISHED = {
    "gpt2": 124_439_808,
    "llama_7b": 6_738_415_616,
    "llama_2_7b": 6_738_415_616,
    "llama_2_13b": 13_015_864_320,
    "llama_2_70b": 68_976_648_192,
    "llama_3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "mixtral_8x7b": 46_702_792_704,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_7b": 7_615_616_512,
    "qwen2_5_72b": 72_706_203_648,
    "qwen3_8b": 8_190_735_360,
    "gemma_2_9b": 9_241_705_984,
    "phi_3_mini": 3_821_079_552,
    "deepseek_v3": 671_026_404_352,
    "gpt_oss_20b": 20_914_757_184,
}


def known(name: str) -> Architecture:
    tree = yaml.safe_load((CONF / "known" / f"{name}.yaml").read_text())
    return read_architecture(tree["architecture"])


def test_known_models_have_their_published_parameters() -> None:
    files = {file.stem for file in (CONF / "known").glob("*.yaml")}
    assert {name: parameter_count(known(name)) for name in sorted(files)} == PUBLISHED


def test_what_works_for_a_token_of_a_mixture() -> None:
    # As their model cards round them: 12.9 of 46.7 and 37 of 671 billion.
    assert active_parameter_count(known("mixtral_8x7b")) == 12_879_925_248
    assert round(active_parameter_count(known("deepseek_v3")) / 1e9, 1) == 37.6
    assert active_parameter_count(known("gpt2")) == PUBLISHED["gpt2"]


def test_a_prefill_is_two_flops_a_parameter_and_token() -> None:
    a = known("llama_2_7b")
    step = prefill(a, 1, 128, WeightFormat(), CacheFormat())
    matrices = parameter_count(a) - 2 * 32000 * 4096 - a.layer_count * 2 * 4096 - 4096
    attention = 2 * 2 * (128 * 129 // 2) * 4096 * 32
    head = 2 * 4096 * 32000
    assert flops(step) == 2 * 128 * matrices + attention + head
