"""task=training on tiny models: each phase by itself, proofs, FLOPs against torch's counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.measure import Infeasible
from orchestrator.measure.registry import find_task
from orchestrator.model import read_architecture, step_flops
from orchestrator.tasks._cuda_memory import device_memory_bytes
from orchestrator.tasks.training.step import TrainingStep
from orchestrator.tasks.training.training_expected import Expected
from testing.checks import check_of
from testing.clock import FakeClock
from testing.trial import TINY

Identity = Callable[..., dict[str, Any]]
Run = Callable[[dict[str, Any]], Any]
check = check_of("training")
SMALL = {"batch_size": 4, "context_tokens": 32}


def training(identity: Identity, quant: str = "fp32", **options: Any) -> dict[str, Any]:
    return identity(quant, task="training", **{**SMALL, **options})


def test_phases_add_up_to_the_step(identity: Identity, run: Run) -> None:
    events = run(training(identity))
    forward, backward = events.samples("forward_s"), events.samples("backward_s")
    optimizer, step = events.samples("optimizer_s"), events.samples("step_s")
    assert len(forward) == len(backward) == len(optimizer) == len(step) == 3
    for i in range(3):
        assert min(forward[i], backward[i], optimizer[i]) > 0
        assert step[i] == pytest.approx(forward[i] + backward[i] + optimizer[i])
        assert events.samples("train_tokens_per_s")[i] == pytest.approx(4 * 32 / step[i])
        flops = events.fact("model_flops")
        assert events.samples("model_flop_per_s")[i] == pytest.approx(flops / step[i])
    steps = ["forward", "backward", "optimizer"] * 3
    expected = ["prepare", "load", "warmup", *steps, "memory"]
    assert events.phases() == expected
    assert events.value("last_loss") < events.value("first_loss")  # it does learn the batch
    assert events.value("peak_memory_over_weights_bytes") > 0


def test_each_phase_is_timed_between_syncs_of_its_own() -> None:
    # A device that works on after its call has returned: what is not waited for is not timed.
    import torch

    clock = FakeClock()

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, weight: torch.Tensor) -> torch.Tensor:
            clock.launch(2.0)
            return weight.sum()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            clock.launch(5.0)
            return gradient * torch.ones(3)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, **arguments: Any) -> Any:
            class Output:
                loss = Loss.apply(self.weight)
                logits = self.weight

            return Output

    class Slow(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            clock.launch(1.0)
            super().step()

    model = Model()
    ids = torch.zeros(1, 4, dtype=torch.long)
    optimizer = Slow(model.parameters(), lr=0.1)
    timing = TrainingStep(model, model, (ids, ids), clock, optimizer=optimizer).run()  # type: ignore[arg-type]
    assert (timing.forward_s, timing.backward_s, timing.optimizer_s) == (4.0, 10.0, 1.0)
    assert timing.step_s == 15.0


def test_without_warmup_the_very_first_step_is_a_sample(identity: Identity, run: Run) -> None:
    asked = training(identity)
    asked["protocol"]["warmup"] = 0
    events = run(asked)
    assert events.samples("step_s", "warmup") == []
    assert events.samples("step_s")[0] == pytest.approx(events.value("first_call_s"))
    asked["protocol"]["warmup"] = 5
    events = run(asked)
    assert len(events.samples("step_s", "warmup")) == 5
    assert events.samples("step_s", "warmup")[0] == pytest.approx(events.value("first_call_s"))


@pytest.mark.parametrize(
    ("quant", "autocast", "logits", "gradients"),
    [
        ("fp32", "none", "float32", "float32"),
        ("fp32", "bfloat16", "bfloat16", "float32"),
        ("bf16", "none", "bfloat16", "bfloat16"),
    ],
)
def test_precision_is_what_was_asked_for(
    identity: Identity, run: Run, quant: str, autocast: str, logits: str, gradients: str
) -> None:
    events = run(training(identity, quant, autocast=autocast))
    assert events.engaged("autocast") == {
        "e": "engaged",
        "what": "autocast",
        "asked": autocast,
        "got": autocast,
        "ok": True,
    }
    seen = events.fact("training_dtypes")
    assert seen["logits"] == logits
    assert seen["loss"] == "float32"
    assert seen["gradients"].startswith(f"{gradients} x ")
    assert "," not in seen["gradients"]


def test_accumulated_gradients_are_those_of_the_whole_batch(identity: Identity, run: Run) -> None:
    whole = run(training(identity))
    parts = run(training(identity, accumulation=4))
    assert parts.phases().count("backward") == 4 * whole.phases().count("backward")
    assert parts.phases().count("optimizer") == whole.phases().count("optimizer")
    # The same update: the loss after four steps is the same.
    assert parts.value("last_loss") == pytest.approx(whole.value("last_loss"), rel=1e-4)
    assert parts.value("last_loss") < parts.value("first_loss") - 1e-3


def test_without_an_optimizer_nothing_is_learnt(identity: Identity, run: Run) -> None:
    events = run(training(identity, optimizer=False))
    assert events.absent("optimizer_s") == "the optimizer is off"
    assert "optimizer" not in events.phases()
    assert events.value("last_loss") == pytest.approx(events.value("first_loss"), rel=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_and_checkpointing_are_engaged(
    identity: Identity, run: Run, attention: str
) -> None:
    plain = run(training(identity, attention=attention))
    again = run(training(identity, attention=attention, checkpointing=True))
    assert plain.engaged("attention")["got"] == again.engaged("attention")["got"] == attention
    assert plain.engaged("checkpointing")["got"] == "False"
    assert again.engaged("checkpointing")["got"] == "True"
    # Recomputed, not changed; and counted as work of the hardware, not of the model.
    assert again.value("last_loss") == pytest.approx(plain.value("last_loss"), rel=1e-5)
    assert again.fact("model_flops") == plain.fact("model_flops")
    assert again.fact("hardware_flops") > 1.2 * plain.fact("hardware_flops")
    assert again.value("predicted_memory_bytes") < plain.value("predicted_memory_bytes")


def test_checkpointing_computes_each_layer_twice(identity: Identity, run: Run) -> None:
    import torch

    calls: dict[bool, int] = {}
    for checkpointing in (False, True):
        count = [0]

        def see(module: Any, *_: Any, count: list[int] = count) -> None:
            # The last thing in a layer that its recomputation still needs.
            count[0] += type(module).__name__ == "LlamaAttention"

        with torch.nn.modules.module.register_module_forward_pre_hook(see):
            run(training(identity, checkpointing=checkpointing))
        calls[checkpointing] = count[0]
    assert calls[True] == 2 * calls[False] > 0


@pytest.mark.parametrize(
    ("width", "layers", "heads", "kv_heads", "tokens"),
    [(64, 2, 4, 4, 64), (128, 3, 4, 2, 128), (384, 6, 6, 6, 256), (768, 12, 12, 12, 128)],
)
def test_flops_agree_with_those_torch_counts(
    width: int, layers: int, heads: int, kv_heads: int, tokens: int
) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from orchestrator.engines.transformers import random_weights as architecture

    config = architecture.configuration(
        {
            "model_type": "llama",
            "vocab_size": 10_000,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "tie_word_embeddings": False,
        }
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
        ids = torch.zeros(4, tokens, dtype=torch.long)
        mask = torch.zeros(4, 1, tokens, tokens)  # a ready one: making it would read values
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
        forward = counter.get_total_flops()
        loss.backward()
    known = read_architecture(config.to_dict())
    # torch counts the whole square of attention that eager code computes before it masks.
    square = step_flops(known, 4, tokens, causal=False)
    assert square.forward == pytest.approx(forward, rel=0.02)
    assert square.model == pytest.approx(counter.get_total_flops(), rel=0.02)
    causal = step_flops(known, 4, tokens)
    assert 0.9 * square.model < causal.model < square.model


def test_what_cannot_fit_is_infeasible_before_it_is_loaded(
    identity: Identity, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = training(identity)
    asked["model"]["architecture"].update(hidden_size=65_536, intermediate_size=262_144)
    with pytest.raises(Infeasible, match=r"need \d+\.\d GiB, the device has"):
        run(asked)
    # What just fits is not refused: activations are not part of the comparison.
    options = find_task("training").config(**SMALL)
    config = {**identity()["model"]["architecture"]}
    expected = Expected(config, options, "float32")
    assert expected.memory is not None
    states = 4 * expected.memory.gradients_bytes
    expected.refuse_impossible(states)
    with pytest.raises(Infeasible):
        expected.refuse_impossible(states - 1)
    limit = device_memory_bytes("cpu")
    assert limit is not None
    assert limit > 1 << 28


def test_a_step_that_runs_out_of_memory_leaves_what_was_asked_and_its_peak(
    identity: Identity, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    asked = training(identity)
    asked["protocol"]["warmup"] = 0
    with pytest.raises(MemoryError):
        find_task("training").run(asked, recorder[0])
    events = recorder[1]
    assert events.value("predicted_memory_bytes") > 0
    assert events.value("optimizer.peak_memory_over_weights_bytes") > 0
    assert not events.samples("step_s")


def test_what_is_expected_follows_from_the_options(identity: Identity, run: Run) -> None:
    expect = find_task("training").expect
    assert expect is not None
    plain = expect(training(identity), None)
    assert plain is not None
    assert plain.sizes_bytes["weights_bytes"] == run(training(identity)).value("weights_bytes")
    assert set(plain.steps) == {"forward_s", "backward_s", "optimizer_s", "step_s"}
    flops = {
        name: sum(o.count * o.flops for o in steps.eager) for name, steps in plain.steps.items()
    }
    assert flops["step_s"] == pytest.approx(
        flops["forward_s"] + flops["backward_s"] + flops["optimizer_s"]
    )
    accumulated = expect(training(identity, accumulation=2, optimizer=False), None)
    assert accumulated is not None
    assert "optimizer_s" not in accumulated.steps
    assert accumulated.memory_bytes < plain.memory_bytes
    again = sum(o.count * o.flops for o in accumulated.steps["forward_s"].eager)
    assert again == pytest.approx(flops["forward_s"])
    assert expect(training(identity, "nf4"), None) is None
    packaged = training(identity)
    packaged["model"] = {**packaged["model"], "source": "hub", "id": "some/model"}
    assert expect(packaged, None) is None


def test_experts_compute_in_the_type_of_their_weights_under_autocast(
    identity: Identity, run: Run
) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from orchestrator.measure.metric import Absent
    from orchestrator.measure.predicted import Limits, predicted_metrics

    mixture = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    seen: dict[bool, set[str]] = {True: set(), False: set()}

    class Products(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "mm" in str(func):
                seen["grouped" in str(func)].add(str(args[0].dtype).removeprefix("torch."))
            return func(*args, **(kwargs or {}))

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**mixture))
    with Products(), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    asked = training(identity, autocast="bfloat16")
    asked["model"]["architecture"] = mixture
    expect = find_task("training").expect
    found = None if expect is None else expect(asked, None)
    assert found is not None
    ahead = [o for o in found.made_steps()["forward_s"].eager if o.flops]
    assert {o.dtype for o in ahead if o.part == "expert"} == seen[True] == {"float32"}
    assert {o.dtype for o in ahead if o.part != "expert"} == seen[False] == {"bfloat16"}
    share = predicted_metrics(found, {}, Limits("none", "none"))["mfu.measured_peak"]
    assert isinstance(share, Absent)
    assert "bfloat16 and float32" in share.reason
    assert "bfloat16 and float32" in run(asked).absent("mfu")


def test_flops_of_an_unknown_architecture_are_absent_with_a_reason() -> None:
    options = find_task("training").config(**SMALL)
    expected = Expected({"model_type": "never_seen"}, options, "float32")
    assert expected.flops is None
    assert "never_seen" in str(expected.absent_reason)
    expected.refuse_impossible(1)


def test_mfu_is_absent_where_no_peak_is_known(identity: Identity, run: Run) -> None:
    events = run(training(identity))
    assert "no data sheet" in events.absent("mfu")
    assert "no data sheet" in events.absent("hfu")
    assert "no caching allocator" in events.absent("allocator_retries")


@pytest.mark.parametrize(
    ("quant", "options", "reason"),
    [
        ("nf4", {}, "nf4 weights have no gradients"),
        ("bf16", {"autocast": "bfloat16"}, "needs float32 parameters"),
        ("fp32", {"memory_snapshot": True}, "the CPU has none"),
        ("fp32", {"attention": "flash_attention_2"}, "needs a CUDA device"),
        ("fp32", {"context_tokens": 513}, "context of 512"),
    ],
)
def test_what_cannot_be_trained_is_infeasible(
    identity: Identity, quant: str, options: dict[str, Any], reason: str
) -> None:
    assert reason in str(check(training(identity, quant, **options)))


def test_float16_is_infeasible_and_a_compiler_is_needed(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = training(identity)
    asked["quant"]["dtype"] = "float16"
    assert "loss scaling" in str(check(asked))
    assert check(training(identity)) is None
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert "C++ compiler" in str(check(training(identity, compile=True)))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"batch_size": 0}, "task.batch_size"),
        ({"context_tokens": -4}, "task.context_tokens"),
        ({"context_tokens": 1}, "task.context_tokens"),
        ({"accumulation": 0}, "task.accumulation"),
        ({"accumulation": 3}, "task.accumulation"),
        ({"autocast": "int8"}, "task.autocast"),
        ({"attention": "fast"}, "task.attention"),
        ({"compile_scope": "block"}, "task.compile_scope"),
    ],
)
def test_what_has_no_sense_is_a_configuration_error(
    identity: Identity, options: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        check(training(identity, **options))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads: 5 does not"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ({"hidden_size": 0}, "hidden_size: 0 is not positive"),
        ({"num_hidden_layers": -2}, "num_hidden_layers: -2 is not positive"),
    ],
)
def test_sizes_that_no_model_can_have_are_named_before_anything_starts(
    identity: Identity, sizes: dict[str, int], said: str
) -> None:
    asked = training(identity)
    asked["model"]["architecture"].update(sizes)
    with pytest.raises(ConfigError, match=said):
        check(asked)


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.xdist_group("compiler")
@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_graph_serves_all_layers(identity: Identity, run: Run, checkpointing: bool) -> None:
    compiled, eager = (
        run(training(identity, compile=compiled, checkpointing=checkpointing))
        for compiled in (True, False)
    )
    assert compiled.value("compile_graphs") == 1
    assert compiled.value("compile_recompiles") == 0
    assert compiled.fact("compiled_while_measured") is False
    assert compiled.value("first_loss") == pytest.approx(eager.value("first_loss"), rel=1e-4)


@pytest.mark.usefixtures("shared_compiler")
@pytest.mark.long
@pytest.mark.xdist_group("compiler")
def test_compile_is_counted_apart_from_the_step(identity: Identity, run: Run) -> None:
    asked = training(identity, compile=True, compile_scope="model")
    asked["model"]["architecture"]["num_hidden_layers"] = 1
    events = run(asked)
    assert events.value("compile_graphs") >= 1
    assert events.value("compile_graph_breaks") == 0
    assert events.value("compile_recompiles") == 0
    assert events.fact("compiled_while_measured") is False
    assert max(events.samples("step_s")) < events.value("compile_s")
    assert events.value("first_call_s") > max(events.samples("step_s"))
