"""The predicted peak of a training step, against what torch's CPU allocator handed out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.measure.clock import HostClock
from orchestrator.model import read_architecture, training_memory
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
        fused_attention=attention != "eager",
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
    ],
)
def test_the_peak_of_a_step_is_predicted_within_a_tenth(
    kind: str, sizes: dict[str, Any], options: dict[str, Any]
) -> None:
    measured, predicted = allocated_bytes(kind, sizes, **options)
    assert measured == pytest.approx(predicted, rel=0.10)


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
