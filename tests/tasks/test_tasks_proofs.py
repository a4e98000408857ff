"""Proofs of behaviour: what was measured was causal, cached and finite, or the attempt is an error.

Faults are put into real models, which the proofs must find; sound ones must pass in every format.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.engines import proof
from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers import proofs
from orchestrator.engines.transformers import random_weights as architecture
from orchestrator.engines.transformers.generation import GreedyGenerator, generator_for
from orchestrator.measure import HostClock, Mismatch
from testing.trial import QUANTS, TINY
from tests.tasks.test_tasks_files import MIXTRAL

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
FP32 = dict(zip(("scheme", "dtype", "double_quant"), QUANTS["fp32"], strict=True))
MAMBA = {
    "model_type": "mamba",
    "vocab_size": 64,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "time_step_rank": 4,
}


def built(**architecture_: Any) -> Any:
    config = architecture.configuration({**TINY, **architecture_})
    return architecture.build(config, 0, "float32", "sdpa").eval()


def prompt(rows: int = 2, tokens: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 60, (rows, tokens), generator=generator)


def proved(
    model: Any, recorder: Any, generator: GreedyGenerator | None = None, new: int = 4
) -> Any:
    """Generate and prove, as the task does; the findings by name."""
    generator = generator or generator_for(model, HostClock())
    ids = prompt()
    with torch.inference_mode():
        generator.sequence(ids, new)
        proofs.prove(model, generator, ids, recorder[0], quant=FP32, new_tokens=new, prefill_s=0.01)
    return states(recorder[1])


def states(events: Any) -> dict[str, str]:
    facts = [e["value"] for e in events if e["e"] == "fact" and e["key"] == "proofs"]
    found: dict[str, str] = facts[-1]
    return found


@pytest.mark.parametrize(
    "quant", ["fp32", "bf16", pytest.param("int8", marks=pytest.mark.long), "nf4"]
)
def test_a_sound_model_fails_nothing_in_any_format(
    identity: Identity, run: Run, quant: str
) -> None:
    events = run(identity(quant, batch_size=2, prompt_tokens=20, new_tokens=4))
    found = states(events)
    assert set(found) == {"finite logits", "cache length", "causal", "cache"}
    assert "failed" not in found.values()
    if quant == "fp32":
        assert set(found.values()) == {"proven"}
    # Keys and values of two rows: 20 tokens and three more, the last one never fed back.
    width = 2 if quant != "fp32" else 4
    assert events.fact("cache_bytes") == 2 * 23 * (2 * 2 * 16) * 2 * width


@pytest.mark.parametrize("new", [1, 2, 3])
def test_short_outputs_are_proven_too(recorder: Any, new: int) -> None:
    assert set(proved(built(), recorder, new=new).values()) == {"proven"}


def test_a_model_without_its_past_is_found(recorder: Any) -> None:
    model = built()

    def forgets(input_ids: torch.Tensor, past_key_values: Any, **options: Any) -> Any:
        return model(input_ids=input_ids, logits_to_keep=1)

    generator = generator_for(model, HostClock(), forward=forgets)
    generator.held_tokens = None
    ids = prompt()
    with torch.inference_mode(), pytest.raises(Mismatch, match="cache"):
        proofs.prove(model, generator, ids, recorder[0], quant=FP32, new_tokens=4, prefill_s=0.01)
    assert states(recorder[1])["cache"] == "failed"


def test_a_cache_that_forgets_a_token_is_found(recorder: Any) -> None:
    model = built()

    def drops(input_ids: torch.Tensor, past_key_values: Any, **options: Any) -> Any:
        output = model(input_ids=input_ids, past_key_values=past_key_values, **options)
        if input_ids.shape[1] > 1:
            past_key_values.crop(-1)
        return output

    with pytest.raises(Mismatch, match="cache length"):
        proved(model, recorder, generator_for(model, HostClock(), forward=drops))


def test_a_state_that_is_dropped_is_found(recorder: Any) -> None:
    """As a state space model is, whose state goes by another name than a cache of keys."""
    model = built(**MAMBA)
    generator = GreedyGenerator(model, HostClock(), lambda: {"past_key_values": object()})
    with pytest.raises(Mismatch, match="cache"):
        proved(model, recorder, generator)


def test_a_state_space_model_keeps_its_state(identity: Identity, run: Run) -> None:
    events = run(identity(model={"architecture": MAMBA}, prompt_tokens=12, new_tokens=4))
    found = states(events)
    assert found["cache"] == found["causal"] == "proven"
    # Of each layer: what the convolution still sees, and the state, of 64 channels.
    assert events.fact("cache_bytes") == 2 * (64 * 4 + 64 * 8) * 4


def test_a_model_that_sees_what_follows_is_found(recorder: Any) -> None:
    bert = built(model_type="bert", is_decoder=False, num_key_value_heads=None)
    with torch.inference_mode(), pytest.raises(Mismatch, match="later token"):
        proofs.prove_causal(bert, prompt()[0], recorder[0], proofs.rounding_of(FP32))


def test_the_same_model_as_a_decoder_is_causal(recorder: Any) -> None:
    bert = built(model_type="bert", is_decoder=True, num_key_value_heads=None)
    with torch.inference_mode():
        proofs.prove_causal(bert, prompt()[0], recorder[0], proofs.rounding_of(FP32))
    assert states(recorder[1]) == {"causal": "proven"}


def with_weight(directory: Path, value: float) -> dict[str, str]:
    """The model of a directory, with such a weight in its last norm."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return {"source": "path", "path": str(directory)}


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.long)])
def test_logits_that_are_no_numbers_are_an_error(
    identity: Identity, run: Run, saved_model: Path, value: float
) -> None:
    asked = identity(model=with_weight(saved_model, value), prompt_tokens=8)
    with pytest.raises(Mismatch, match="finite logits"):
        run(asked)


@pytest.mark.parametrize(
    ("task", "said", "options"),
    [
        ("streaming", "finite logits", {"prompt_tokens": 8, "new_tokens": 3}),
        ("training", "finite loss", {"batch_size": 1, "context_tokens": 8}),
    ],
)
def test_what_is_computed_otherwise_is_numbers_too(
    identity: Identity,
    run: Run,
    saved_model: Path,
    task: str,
    said: str,
    options: dict[str, Any],
) -> None:
    with pytest.raises(Mismatch, match=said):
        run(identity(task=task, model=with_weight(saved_model, math.nan), **options))


def test_padding_of_the_vocabulary_may_be_minus_infinity(recorder: Any) -> None:
    model = built()
    usual = model.forward

    def padded(*positional: Any, **named: Any) -> Any:
        output = usual(*positional, **named)
        output.logits[..., -3:] = -math.inf
        return output

    padded.__signature__ = __import__("inspect").signature(usual)  # type: ignore[attr-defined]
    model.forward = padded
    assert set(proved(model, recorder).values()) == {"proven"}


@pytest.mark.parametrize(
    ("error", "control", "from_control", "rounding", "state"),
    [
        (0.001, 1.0, 1.0, 3e-2, "proven"),
        (0.0, 0.01, 0.01, 3e-2, "proven"),  # to the bit, however weak the control
        (0.02, 0.05, 0.05, 3e-2, "undecided"),  # as far off as rounding, and so is the control
        (0.9, 1.0, 0.4, 3e-2, "failed"),
        (0.05, 0.05, 0.0, 3e-2, "failed"),  # the very logits of no context
        (0.01, 0.05, 0.05, 2e-5, "failed"),  # which no rounding explains
        (0.0, 0.0, 0.0, 2e-5, "undecided"),  # context changes nothing
        (math.nan, 1.0, math.nan, 3e-2, "failed"),
        # LLM.int8() on a loaded machine, once: a tenth of the control and what rounding makes.
        (0.11, 1.07, 1.0, 0.1, "undecided"),
        (0.25, 1.07, 1.0, 0.1, "failed"),
    ],
)
def test_a_cache_is_judged_by_its_control(
    error: float, control: float, from_control: float, rounding: float, state: str
) -> None:
    found = proof.judge_cache(error, control, from_control, 1.0, rounding, tokens=9)
    assert found.state == state


def test_an_undecided_proof_is_shown_and_fails_nothing(recorder: Any) -> None:
    proof.Finding(proof.UNDECIDED, "error 1 against 2").record(recorder[0], "cache", "less")
    event = recorder[1].engaged("cache")
    assert event["ok"]
    assert event["got"].startswith("undecided: ")


def test_a_leak_below_half_precisions_rounding_is_undecided() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 4, 100, generator=generator)
    other = whole + 1e-3 * torch.randn(1, 4, 100, generator=generator)
    assert proofs.causal(whole, whole, 3e-2).state == "proven"
    assert proofs.causal(whole, other, 3e-2).state == "undecided"
    assert proofs.causal(whole, other, 2e-5).state == "failed"
    leaked = whole + 0.2 * torch.randn(1, 4, 100, generator=generator)
    assert proofs.causal(whole, leaked, 3e-2).state == "failed"
    assert proofs.causal(whole, torch.full_like(whole, math.nan), 3e-2).state == "failed"


def test_a_router_that_chose_by_the_last_bit_is_no_leak() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(1, 9, 100, generator=generator)
    routed = whole.clone()
    routed[0, 3] += 0.5 * torch.randn(100, generator=generator)
    assert proofs.causal(whole, routed, 3e-2).state == "undecided"
    assert proofs.causal(whole, routed, 2e-5).state == "failed"  # nothing rounds so far there
    mixture = architecture.configuration(MIXTRAL)
    half, full = ({**FP32, "dtype": dtype} for dtype in ("bfloat16", "float32"))
    assert proofs.rounding_of(half, mixture) > proofs.rounding_of(half)
    assert proofs.rounding_of(full, mixture) == proofs.rounding_of(full)


def test_the_proofs_are_no_part_of_what_is_timed(identity: Identity, run: Run) -> None:
    events = run(identity(prompt_tokens=8, new_tokens=3))
    names = [e["name"] for e in events if e["e"] == "phase" and e["edge"] == "begin"]
    assert names[-1] == "prove"
    assert not any(e["measured"] for e in events if e["e"] == "phase" and e["name"] == "prove")
    order = [e["e"] for e in events]
    assert order.index("stop") < max(i for i, e in enumerate(order) if e == "engaged")


def test_a_prompt_is_shortened_only_where_it_costs_too_much(recorder: Any) -> None:
    model = built()
    seen: list[int] = []
    generator = generator_for(model, HostClock())
    begin = generator.begin

    def watched(ids: torch.Tensor, depth: int) -> Any:
        seen.append(ids.shape[1])
        return begin(ids, depth)

    generator.begin = watched  # type: ignore[method-assign]
    ids = prompt(1, 100)
    with torch.inference_mode():
        for prefill_s, fixed in ((0.01, False), (0.2, False), (100.0, False), (100.0, True)):
            proofs.prove(
                model,
                generator,
                ids,
                recorder[0],
                quant=FP32,
                new_tokens=1,
                prefill_s=prefill_s,
                fixed_shape=fixed,
            )
    assert seen == [100, 15, 6, 100]


def test_quality_is_of_a_causal_model(identity: Identity, run: Run) -> None:
    events = run(identity(task="quality", tokens=40, window=20))
    assert events.engaged("causal")["ok"]


@pytest.mark.long
def test_a_compiled_model_is_proven_at_the_shapes_it_was_compiled_for(
    identity: Identity, run: Run, shared_compiler: None
) -> None:
    events = run(identity(prompt_tokens=12, new_tokens=4, compile=True))
    assert set(states(events).values()) == {"proven"}
    assert not events.fact("compiled_while_measured")


def test_every_proof_is_an_error_where_it_fails(identity: Identity, recorder: Any) -> None:
    asked = identity()
    prepared = loading.prepare(asked, recorder[0])
    assert prepared.files == ()
    with pytest.raises(Mismatch):
        proof.Finding(proof.FAILED, "x").record(recorder[0], "causal", "y")


def likely(**shift: float) -> dict[int, float]:
    """Log-probabilities of twenty tokens, some of them moved."""
    return {token: -0.3 * token - 1.5 + shift.get(f"t{token}", 0.0) for token in range(20)}


def test_llamacpps_cache_is_judged_by_what_is_likely() -> None:
    from orchestrator.engines.likeliest_proofs import judge

    whole = likely()
    alone = {token: -0.3 * (19 - token) - 1.5 for token in range(20)}
    assert judge(whole, likely(t3=0.001), alone, 9).state == "proven"
    assert judge(whole, alone, alone, 9).state == "failed"
    assert judge(whole, likely(t3=math.nan), alone, 9).state == "failed"
    elsewhere = {token + 100: value for token, value in whole.items()}
    assert judge(whole, elsewhere, alone, 9).state == "failed"
    assert judge(whole, likely(t3=0.001), elsewhere, 9).state == "proven"
    # Context that changes next to nothing tells nothing.
    assert judge(whole, likely(t3=0.02), likely(t4=0.02), 9).state == "undecided"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no wheel here")
def test_llamacpp_proves_its_cache(identity: Identity, run: Run, tiny_gguf: Path) -> None:
    model = {"source": "gguf", "path": str(tiny_gguf), "architecture": None}
    events = run(identity("source", engine="llamacpp", model=model, prompt_tokens=20, new_tokens=3))
    found = states(events)
    assert set(found) == {"finite log-probabilities", "cache"}
    assert found["finite log-probabilities"] == "proven"
    assert found["cache"] != "failed"
    assert "over 16 tokens" in events.engaged("cache")["got"]
