"""The predicted peak of a training step, against what torch's CPU allocator handed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.measure.clock import HostClock
from orchestrator.model import read_architecture, training_memory
from orchestrator.model.decoder import read_kept
from orchestrator.model.fields import Fields
from orchestrator.tasks.training.allocated import held_bytes, step_peak_bytes
from orchestrator.tasks.training.step import TrainingStep

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]

TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {**TINY, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}
GPT2 = {
    "n_embd": 128,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": 512,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STEP = {"batch": 2, "tokens": 128}
MIXTURE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 96,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}


def allocated_bytes(
    kind: str,
    sizes: dict[str, Any],
    *,
    batch: int,
    tokens: int,
    dtype: str = "float32",
    autocast: str | None = None,
    checkpointing: bool = False,
    attention: str = "sdpa",
    optimizer: bool = True,
    accumulation: int = 1,
) -> tuple[int, int]:
    """Peak of a step after the first: as handed out by the allocator, and as predicted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **sizes)
    made = {"attn_implementation": attention, "dtype": getattr(torch, dtype)}
    model = AutoModelForCausalLM.from_config(config, **made).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4) if optimizer else None
    ids = torch.randint(3, config.vocab_size, (batch, tokens))
    step = TrainingStep(
        model,
        model,
        ids.chunk(accumulation),
        HostClock(),
        optimizer=adamw,
        autocast=getattr(torch, autocast) if autocast else None,
    )
    step.run()
    held = held_bytes(model, adamw)
    beyond = step_peak_bytes(step.run)
    assert beyond is not None
    predicted = training_memory(
        read_architecture(config.to_dict()),
        batch // accumulation,
        tokens,
        parameter_dtype=dtype,
        compute_dtype=autocast,
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=attention,
        accumulated=accumulation > 1,
    )
    return held + beyond, predicted.total_bytes


@pytest.mark.parametrize(
    ("kind", "sizes", "options"),
    [
        pytest.param("llama", TINY, {"batch": 4, "tokens": 64}, id="tiny"),
        pytest.param(
            "llama", TINY, {"batch": 1, "tokens": 16}, id="gradients outweigh activations"
        ),
        pytest.param("llama", SMALL, {"batch": 2, "tokens": 128}, id="small"),
        pytest.param(
            "llama", SMALL, {"batch": 2, "tokens": 128, "checkpointing": True}, id="again"
        ),
        pytest.param("llama", SMALL, {"batch": 1, "tokens": 256, "attention": "eager"}, id="eager"),
        pytest.param(
            "llama", SMALL, {"batch": 2, "tokens": 128, "optimizer": False}, id="no adamw"
        ),
        pytest.param(
            "llama", SMALL, {"batch": 4, "tokens": 64, "accumulation": 2}, id="accumulated"
        ),
        pytest.param("llama", TINY, {"batch": 2, "tokens": 64, "dtype": "bfloat16"}, id="bf16"),
        pytest.param(
            "llama", TINY, {"batch": 2, "tokens": 64, "autocast": "bfloat16"}, id="autocast"
        ),
        pytest.param("qwen2", SMALL, {"batch": 2, "tokens": 128}, id="qwen2"),
        pytest.param("qwen3", {**SMALL, "head_dim": 32}, {"batch": 2, "tokens": 64}, id="qwen3"),
        pytest.param(
            "mixtral", {**SMALL, "num_local_experts": 4}, {"batch": 2, "tokens": 64}, id="mixtral"
        ),
        pytest.param(
            "mixtral",
            {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
            {"batch": 2, "tokens": 256, "autocast": "bfloat16"},
            id="mixtral autocast",
        ),
        # Each family as it is trained by default: with dropout, or activations written in Python.
        pytest.param("gpt2", GPT2, STEP, id="gpt2"),
        pytest.param("gpt2", GPT2, {**STEP, "dtype": "bfloat16"}, id="gpt2 bf16"),
        pytest.param("gpt2", GPT2, {**STEP, "autocast": "bfloat16"}, id="gpt2 autocast"),
        pytest.param("gpt2", GPT2, {**STEP, "attention": "eager"}, id="gpt2 eager"),
        pytest.param(
            "gpt2", {**GPT2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}, STEP, id="nothing dropped"
        ),
        pytest.param("gpt2", {**GPT2, "activation_function": "relu"}, STEP, id="relu"),
        pytest.param("opt", {**SMALL, "ffn_dim": 512, "word_embed_proj_dim": 128}, STEP, id="opt"),
        pytest.param("phi", SMALL, STEP, id="phi"),
        pytest.param("starcoder2", SMALL, STEP, id="starcoder2"),
        pytest.param("olmo2", SMALL, STEP, id="olmo2"),
        # Norms that stay in float32 until they are weighed.
        pytest.param("olmo2", SMALL, {**STEP, "dtype": "bfloat16"}, id="olmo2 bf16"),
        pytest.param("cohere", SMALL, {**STEP, "dtype": "bfloat16"}, id="cohere bf16"),
        pytest.param(
            "gemma3_text",
            {**SMALL, "head_dim": 32, "sliding_window": 64},
            {**STEP, "dtype": "bfloat16"},
            id="gemma3 bf16",
        ),
        pytest.param(
            "qwen3_moe",
            {**SMALL, "head_dim": 32, "num_experts": 4, "moe_intermediate_size": 96}
            | {"num_experts_per_tok": 2},
            STEP,
            id="qwen3_moe",
        ),
        # One projection, of which values stay a part; heads that are turned in part.
        pytest.param("gpt_neox", SMALL, STEP, id="gpt_neox"),
        pytest.param(
            "gpt_neox", {**SMALL, "use_parallel_residual": False}, STEP, id="gpt_neox, in turn"
        ),
        pytest.param("phi3", {**SMALL, "resid_pdrop": 0.1}, STEP, id="phi3"),
        pytest.param("glm4", {**SMALL, "head_dim": 32}, STEP, id="glm4"),
        pytest.param(
            "stablelm",
            {**SMALL, "use_parallel_residual": True, "qk_layernorm": True},
            {**STEP, "dtype": "bfloat16"},
            id="stablelm",
        ),
        # A window within the context needs a mask, and with a mask keys and values are repeated.
        pytest.param(
            "mistral",
            {**SMALL, "sliding_window": 64},
            {**STEP, "autocast": "bfloat16"},
            id="mistral",
        ),
        # No fused code on a CPU: keys wider than values, and one head of keys for all queries.
        pytest.param(
            "deepseek_v3",
            {**SMALL, **LATENT, "qk_nope_head_dim": 32},
            {**STEP, "dtype": "bfloat16"},
            id="deepseek_v3",
        ),
        pytest.param(
            "deepseek_v2",
            {**SMALL, **LATENT, "qk_nope_head_dim": 16},
            STEP,
            id="deepseek_v2, keys as wide as values",
        ),
        pytest.param("falcon", SMALL, {**STEP, "dtype": "bfloat16"}, id="falcon"),
        pytest.param(
            "falcon",
            {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
            STEP,
            id="falcon, grouped",
        ),
        # Scores bounded by a function, or with a sink; experts with clamped factors.
        pytest.param(
            "gemma2",
            {**SMALL, "head_dim": 32, "sliding_window": 64},
            {**STEP, "attention": "eager"},
            id="gemma2",
        ),
        pytest.param(
            "gpt_oss",
            {**SMALL, **MIXTURE, "head_dim": 32, "sliding_window": 64},
            {**STEP, "attention": "eager"},
            id="gpt_oss",
        ),
        pytest.param("olmo", SMALL, {**STEP, "dtype": "bfloat16"}, id="olmo"),
        pytest.param("olmoe", {**SMALL, **MIXTURE}, STEP, id="olmoe"),
        pytest.param("granitemoe", {**SMALL, **MIXTURE}, STEP, id="granitemoe"),
        # Under autocast each product casts what it is given.
        *(
            pytest.param(kind, sizes, {**STEP, "autocast": "bfloat16"}, id=f"{kind} autocast")
            for kind, sizes in (
                ("gemma", {**SMALL, "head_dim": 32}),
                ("granite", SMALL),
                ("smollm3", SMALL),
                ("cohere", {**SMALL, "use_qk_norm": True}),
                (
                    "qwen2_moe",
                    {**SMALL, **MIXTURE, "moe_intermediate_size": 96}
                    | {"shared_expert_intermediate_size": 128},
                ),
            )
        ),
    ],
)
def test_the_peak_of_a_step_is_predicted_within_a_tenth(
    kind: str, sizes: dict[str, Any], options: dict[str, Any]
) -> None:
    measured, predicted = allocated_bytes(kind, sizes, **options)
    # Recomputing holds more for a moment; of very small models the rest shows.
    assert measured == pytest.approx(predicted, rel=0.10 if sizes is TINY else 0.06)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "precision", [{}, {"dtype": "bfloat16"}, {"autocast": "bfloat16"}], ids=str
)
def test_of_many_logits_each_takes_what_is_predicted(precision: dict[str, Any], tied: bool) -> None:
    sizes = {**TINY, "num_hidden_layers": 1, "vocab_size": 16384, "tie_word_embeddings": tied}
    measured, predicted = allocated_bytes("llama", sizes, batch=1, tokens=128, **precision)
    assert measured == pytest.approx(predicted, rel=0.02)


def test_bounded_logits_are_kept_once_more() -> None:
    sizes = {**TINY, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 16384}
    sizes["sliding_window"] = 64
    measured, predicted = allocated_bytes("gemma2", sizes, batch=1, tokens=128, attention="eager")
    assert measured == pytest.approx(predicted, rel=0.02)


def test_what_each_activation_keeps_is_known() -> None:
    import torch
    from transformers.activations import ACT2CLS, ACT2FN

    def kept_bytes(name: str) -> int:
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        numbers = torch.randn(32, 64).requires_grad_() * 1.0
        weights = torch.zeros(64, 64).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            product = ACT2FN[name](numbers) @ weights
        assert product.requires_grad
        # The product keeps the weights and what the activation gave.
        return sum(kept.values()) - weights.nbytes - numbers.nbytes

    for name in ACT2CLS:
        kept = read_kept(Fields({"hidden_act": name}, "llama"))
        predicted = kept.activation_tensors * 32 * 64 * 4
        # And what is small: a mask, a parameter.
        assert kept_bytes(name) == pytest.approx(predicted, abs=32 * 64 * 4 / 3), name


def test_gradients_and_activations_are_not_there_at_once() -> None:
    architecture = read_architecture({"model_type": "llama", **SMALL})
    long, short = (training_memory(architecture, 1, tokens) for tokens in (512, 2))
    held = long.weights_bytes + long.optimizer_bytes
    assert long.total_bytes == held + long.activations_bytes + long.logits_bytes
    assert short.total_bytes == held + short.gradients_bytes + short.working_bytes
    assert short.total_bytes >= short.states_bytes
    # Of one micro-batch while the next runs, they are.
    more = training_memory(architecture, 1, 512, accumulated=True)
    assert more.total_bytes == long.total_bytes + long.gradients_bytes


def test_a_peak_is_measured_and_held_against_the_prediction(identity: Identity, run: Run) -> None:
    from orchestrator.measure.metric import Value
    from orchestrator.measure.predicted import Limits, predicted_metrics
    from orchestrator.tasks.training.training import expect

    asked = identity("fp32", task="training", batch_size=4, context_tokens=32)
    events = run(asked)
    peak_bytes = events.value("peak_memory_bytes")
    expectation = expect(asked, None)
    assert expectation is not None
    measured = {"peak_memory_bytes": Value("peak_memory_bytes", "bytes", peak_bytes)}
    found = predicted_metrics(expectation, measured, Limits("none", "none"))
    ratio = found["measured_over_predicted.peak_memory_bytes"]
    assert isinstance(ratio, Value)
    assert ratio.value == pytest.approx(peak_bytes / expectation.memory_bytes)
    assert ratio.value == pytest.approx(1.0, abs=0.10)


def test_a_step_of_a_model_that_is_here_is_predicted_before_it_is_loaded(
    identity: Identity,
) -> None:
    from orchestrator.engines.transformers.configuration import PACKAGED
    from orchestrator.tasks.training.training import expect

    asked = identity("fp32", task="training", batch_size=4, context_tokens=32)
    asked["model"] = {**asked["model"], "source": "packaged", "id": "smollm2_135m"}
    asked["model"]["architecture"] = None
    found = expect(asked, None)
    assert found is not None
    assert found.memory_bytes == training_memory(read_architecture(PACKAGED), 4, 32).total_bytes
