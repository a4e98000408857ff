"""Kinds of models by what they remember: each gets the cache its own ``generate`` would make.

One of each kind; ``benchmarks/architectures.py`` runs every type of the installed transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from orchestrator.engines.transformers import random_weights as architecture
from orchestrator.engines.transformers.feasible import refuse_static_cache
from orchestrator.engines.transformers.generation import cache_maker, generator_for
from orchestrator.engines.transformers.model_types import has_static_cache
from orchestrator.measure import HostClock, Infeasible, InputError

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
MAMBA_2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    # A state under another name than keys and values.
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    # Layers of attention and of states.
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_dt_rank": 4},
    "falcon_h1": {**MAMBA_2, "mamba_d_ssm": 64},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64},
    # A cache of its own, made by the model in its first call.
    "minimax": {"num_local_experts": 2, "block_size": 8},
    # A router that is a kind of linear layer; chunks of attention.
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48},
    # Inputs made in a way of its own, and special tokens past the end of a small vocabulary.
    "phi3": {},
    # One compressed vector a token.
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}


def sized(kind: str) -> dict[str, Any]:
    return {"model_type": kind, **SIZES, **KINDS.get(kind, {})}


def states(events: Any) -> dict[str, str]:
    facts = [e["value"] for e in events if e["e"] == "fact" and e["key"] == "proofs"]
    found: dict[str, str] = facts[-1]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_measured_with_what_it_remembers(
    identity: Identity, run: Run, kind: str
) -> None:
    asked = identity(model={"architecture": sized(kind)}, prompt_tokens=12, new_tokens=4)
    asked["protocol"].update(warmup=0, min_repetitions=1, max_repetitions=1)
    events = run(asked)
    found = states(events)
    assert {"finite logits", "causal", "cache"} <= set(found)
    assert set(found.values()) == {"proven"}
    assert events.fact("cache_bytes") > 0
    assert events.engaged("weights")["ok"]


@pytest.mark.parametrize("kind", ["llama", "mamba2", "phi3", "minimax"])
def test_what_is_generated_is_what_generate_gives(kind: str) -> None:
    config = architecture.configuration(sized(kind))
    model = architecture.build(config, 0, "float32", "eager").eval()
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        _, steps = generator_for(model, HostClock()).sequence(ids, 6)
        theirs = model.generate(
            ids, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None
        )
    assert torch.equal(torch.cat(steps, dim=-1), theirs[:, 9:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_static_cache_gives_the_same_tokens_each_time(kind: str) -> None:
    config = architecture.configuration(sized(kind))
    model = architecture.build(config, 0, "float32", "eager").eval()
    if not has_static_cache(kind):
        with pytest.raises(Infeasible, match="static cache"):
            refuse_static_cache(model)
        return
    refuse_static_cache(model)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    grown, static = (generator_for(model, HostClock(), cache_tokens=size) for size in (None, 15))
    with torch.inference_mode():
        expected, *found = (
            torch.cat(generator.sequence(ids, 6, depth=4)[1])
            for generator in (grown, static, static)
        )
    assert all(torch.equal(tokens, expected) for tokens in found)
    assert static.held_tokens == grown.held_tokens


def test_a_configuration_that_says_not_to_cache_is_cached_all_the_same() -> None:
    config = architecture.configuration({**sized("llama"), "use_cache": False})
    model = architecture.build(config, 0, "float32", "eager").eval()
    generator = generator_for(model, HostClock())
    with torch.inference_mode():
        generator.sequence(torch.arange(5, 12)[None], 3)
    assert generator.held_tokens == 9


def test_a_static_cache_is_not_made_because_the_model_says_so() -> None:
    model = architecture.build(architecture.configuration(sized("llama")), 0, "float32", "eager")
    model.generation_config.cache_implementation = "static"
    (cache,) = cache_maker(model)().values()
    assert type(cache).__name__ == "DynamicCache"
    assert model.generation_config.cache_implementation == "static"  # the model's own, untouched


def test_special_tokens_past_a_smaller_vocabulary_are_taken_back() -> None:
    config = architecture.configuration(sized("phi3"))
    assert config.pad_token_id is None
    meant = architecture.configuration({**sized("phi3"), "vocab_size": 40000})
    assert meant.pad_token_id == 32000


def test_an_attention_that_a_model_lacks_is_one_line(identity: Identity, run: Run) -> None:
    asked = identity(model={"architecture": sized("bloom")}, prompt_tokens=8, attention="sdpa")
    with pytest.raises(Infeasible, match=r"has no sdpa attention\. Use eager attention"):
        run(asked)


def test_a_model_without_attention_takes_any(identity: Identity, run: Run) -> None:
    asked = identity(model={"architecture": sized("mamba2")}, prompt_tokens=8, new_tokens=2)
    assert run(asked).engaged("attention")["got"] == "none: the model has no attention"


def test_sizes_that_do_not_fit_are_one_line(identity: Identity, run: Run) -> None:
    # helium's heads of 128 are left open.
    sizes = {name: value for name, value in sized("helium").items() if name != "head_dim"}
    with pytest.raises(InputError, match="a helium of these sizes cannot run") as raised:
        run(identity(model={"architecture": sizes}, prompt_tokens=8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [("llama", "hiden_size", 128), ("llama", "sliding_window", 4), ("gpt2", "rope_theta", 5e5)],
)
def test_a_word_that_a_family_has_no_use_for_is_refused(kind: str, word: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"model\.architecture\.{word}: {kind} has no {word}"):
        architecture.configuration({**sized(kind), word: value})


@pytest.mark.parametrize(
    "scaling",
    [
        {"factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "beta_fsat": 3.0},
        {"rope_type": "stretched", "factor": 2.0},
        {"rope_type": "linear", "factor": "two"},
    ],
)
def test_a_scaling_of_positions_that_would_be_left_out_is_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model\.architecture: llama rejects .*rope_"):
        architecture.configuration({**sized("llama"), "rope_scaling": scaling})


@pytest.mark.parametrize(
    ("kind", "used"),
    [
        ("llama", {"rope_theta": 5e5}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("gpt2", {"n_positions": 64}),
        ("mistral", {"sliding_window": 4}),
    ],
)
def test_what_a_family_reads_under_another_name_is_taken(kind: str, used: dict[str, Any]) -> None:
    asked = {**sized(kind), **used}
    written = repr(asked)
    architecture.configuration(asked)
    assert repr(asked) == written
