"""What fits, how long it takes, what hardware can do: against sums done the long way."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.model import (
    EAGER,
    Architecture,
    CacheFormat,
    Datasheet,
    Execution,
    Measured,
    WeightFormat,
    compute_bound_batch,
    decode,
    estimate,
    flops,
    kv_bytes,
    longest_context,
    memory,
    moved_bytes,
    prefill,
    read_architecture,
    step_flops,
    step_operations,
    training_memory,
    weights_bytes,
)
from orchestrator.model.datasheet import (
    datasheet_of,
    hardware_directory,
    known_hardware,
    load_datasheet,
)
from orchestrator.model.operations import (
    BACKWARD,
    Operation,
    attended_pairs,
    distinct_experts,
)

CONF = Path(__file__).resolve().parents[2] / "conf" / "model" / "known"
BF16 = WeightFormat()
KV16 = CacheFormat()
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def known(name: str) -> Architecture:
    return read_architecture(yaml.safe_load((CONF / f"{name}.yaml").read_text())["architecture"])


class Flat:
    """Ceilings of round numbers."""

    launch_s = 0.0

    def __init__(self, flops_per_s: float, bytes_per_s: float) -> None:
        self._flops_per_s, self._bytes_per_s = flops_per_s, bytes_per_s

    def flops_per_s(
        self, dtype: str, rows: float, part: str = "", *, packed: bool = False
    ) -> float:
        return self._flops_per_s

    def bytes_per_s(self, working_bytes: float, part: str = "") -> float:
        return self._bytes_per_s

    def timed_s(self, operation: Operation) -> float | None:
        return None


@given(st.none() | st.integers(1, 40), st.integers(1, 60), st.integers(0, 60))
def test_attended_pairs_is_the_sum_over_the_tokens(window: int | None, new: int, past: int) -> None:
    seen = sum(min(past + i, window or math.inf) for i in range(1, new + 1))
    assert attended_pairs(window, new, past) == seen


@given(st.integers(1, 64), st.data())
def test_distinct_experts_lies_between_one_token_and_all(count: int, data: Any) -> None:
    active = data.draw(st.integers(1, count))
    tokens = data.draw(st.integers(1, 200))
    reached = distinct_experts(count, active, tokens)
    assert active - 1e-9 <= reached <= min(count, active * tokens) + 1e-9
    assert distinct_experts(count, active, 1) == pytest.approx(active)


@given(
    st.sampled_from(["llama_2_7b", "mistral_7b", "gemma_2_9b", "gpt_oss_20b", "deepseek_v3"]),
    st.integers(1, 8),
    st.floats(0, 60e9),
)
def test_longest_context_is_the_last_that_fits(name: str, batch: int, spare: float) -> None:
    a = known(name)
    available = weights_bytes(a, BF16) + spare
    found = longest_context(a, available, batch=batch, weights=BF16, cache=KV16)

    def needed(tokens: int) -> int:
        return memory(
            a, batch=batch, prompt_tokens=tokens, tokens=tokens, weights=BF16, cache=KV16
        ).total_bytes

    if found.tokens:
        assert needed(found.tokens) <= available + 1
    if found.limited_by in ("memory", "weights"):
        assert needed(found.tokens + 1) > available
    else:
        assert found.tokens == a.context_tokens


def test_windows_bound_the_cache_by_layer() -> None:
    a = known("mistral_7b")
    one = kv_bytes(a, 1)
    assert one == 2 * 32 * 8 * 128 * 2
    assert kv_bytes(a, 4095) == kv_bytes(a, 30_000) == 4095 * one
    g = known("gemma_2_9b")
    half = kv_bytes(g, 1) // 2
    assert kv_bytes(g, 8000) == half * 8000 + half * 4095


def test_key_value_heads_size_the_cache() -> None:
    # Of LLaMA 2 only the largest groups its queries.
    assert kv_bytes(known("llama_2_7b"), 1) == 2 * 2 * 32 * 32 * 128
    assert kv_bytes(known("llama_2_70b"), 1) == 2 * 2 * 80 * 8 * 128
    assert kv_bytes(known("deepseek_v3"), 1) == 2 * 61 * (512 + 64)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("float32", 32), ("float8", 8), ("int8", 8.5), ("int4", 4.5)],
)
def test_cache_formats(dtype: str, bits: float) -> None:
    a = known("llama_2_7b")
    assert kv_bytes(a, 10, cache=CacheFormat(dtype)) == kv_bytes(a, 10) * bits / 16


def test_a_tied_head_is_read_in_every_step() -> None:
    tied = read_architecture({**LLAMA, "tie_word_embeddings": True})
    own = read_architecture({**LLAMA, "tie_word_embeddings": False})
    assert weights_bytes(own, BF16) - weights_bytes(tied, BF16) == 2 * 1000 * 64
    assert moved_bytes(decode(tied, 1, 5, BF16, KV16)) == moved_bytes(decode(own, 1, 5, BF16, KV16))


def test_decode_reads_the_weights_the_cache_and_little_else() -> None:
    a = known("llama_2_7b")
    read = weights_bytes(a, BF16) - 2 * 32000 * 4096 + kv_bytes(a, 2048)
    assert moved_bytes(decode(a, 1, 2048, BF16, KV16)) == pytest.approx(read, rel=0.01)


def test_experts_are_read_as_far_as_a_batch_reaches_them() -> None:
    a = known("mixtral_8x7b")
    one, many = (moved_bytes(decode(a, batch, 1, BF16, KV16)) for batch in (1, 256))
    assert one < 0.35 * weights_bytes(a, BF16)
    assert many > 0.98 * weights_bytes(a, BF16)


def test_causal_prefill_attention_is_half() -> None:
    a = known("llama_2_7b")
    full = flops(prefill(a, 1, 4096, BF16, KV16, Execution(causal=False)))
    half = flops(prefill(a, 1, 4096, BF16, KV16))
    square = 2 * 2 * 4096**2 * 32 * 128 * 32
    assert full - half == pytest.approx(square / 2, rel=1e-3)


def test_time_is_the_slower_of_computing_and_moving() -> None:
    a = known("llama_2_7b")
    step = prefill(a, 1, 512, BF16, KV16)
    slow = estimate(step, Flat(1e12, 1e18))
    assert slow.time_s == pytest.approx(flops(step) / 1e12, rel=1e-3)
    assert slow.bound == "compute"
    moving = estimate(step, Flat(1e24, 1e9))
    assert moving.time_s == pytest.approx(moved_bytes(step) / 1e9, rel=1e-3)
    assert moving.bound == "memory"
    assert sum(slow.parts_s.values()) == pytest.approx(slow.time_s)


def test_launches_are_added() -> None:
    class Slow(Flat):
        launch_s = 1e-5

    step = decode(known("gpt2"), 1, 10, BF16, KV16, EAGER)
    plain, launched = estimate(step, Flat(1e12, 1e12)), estimate(step, Slow(1e12, 1e12))
    count = sum(o.count * o.launches for o in step)
    assert launched.time_s - plain.time_s == pytest.approx(count * 1e-5)
    assert launched.bound == "launch"


@pytest.mark.parametrize("name", ["llama_2_7b", "llama_2_70b", "mixtral_8x7b", "deepseek_v3"])
@pytest.mark.parametrize("past", [16, 512])
def test_compute_bound_batch_is_the_crossing(name: str, past: int) -> None:
    a, sheet = known(name), load_datasheet("a100")
    found = compute_bound_batch(a, past, weights=BF16, cache=KV16, ceilings=sheet)
    if found is None:
        far = decode(a, 1 << 22, past, BF16, KV16)
        assert flops(far) / 312e12 < moved_bytes(far) / 2039e9
        return

    def computes_longer(batch: int) -> bool:
        step = decode(a, batch, past, BF16, KV16)
        return flops(step) / 312e12 >= moved_bytes(step) / 2039e9

    assert computes_longer(found)
    assert not computes_longer(found - 1)


def test_long_contexts_of_ungrouped_heads_stay_memory_bound() -> None:
    sheet = load_datasheet("a100")
    found = compute_bound_batch(known("llama_7b"), 2048, weights=BF16, cache=KV16, ceilings=sheet)
    assert found is None


def test_training_counts_backward_twice_and_recomputation_apart() -> None:
    a = known("gpt2")
    plain = step_flops(a, 4, 128)
    assert plain.backward == 2 * plain.forward
    assert plain.hardware > plain.model
    again = step_flops(a, 4, 128, checkpointing=True)
    assert again.model == plain.model
    assert plain.hardware < again.hardware < plain.hardware + plain.forward
    steps = step_operations(a, 4, 128, parameter_dtype="float32")
    assert flops(steps.forward) == plain.forward
    assert flops(steps.optimizer) == 0
    assert moved_bytes(steps.optimizer) == 7 * 4 * 124_439_808


def test_training_memory() -> None:
    a = known("gpt2")
    whole = training_memory(a, 4, 256)
    assert whole.weights_bytes == whole.gradients_bytes == 4 * 124_439_808
    assert whole.optimizer_bytes == 8 * 124_439_808
    less = training_memory(a, 4, 256, checkpointing=True)
    assert less.activations_bytes < 0.3 * whole.activations_bytes
    half = training_memory(a, 4, 256, parameter_dtype="bfloat16")
    assert half.weights_bytes * 2 == whole.weights_bytes
    mixed = training_memory(a, 4, 256, compute_dtype="bfloat16")
    # Positions are looked up, as no product is computed with them.
    assert mixed.copies_bytes == 2 * (124_439_808 - 1024 * 768)
    assert training_memory(a, 4, 256, optimizer=False).optimizer_bytes == 0
    # It drops scores, which fused attention does on a GPU only.
    assert training_memory(a, 4, 256, attention="eager").total_bytes == whole.total_bytes
    gpu = training_memory(a, 4, 256, cuda=True)
    unfused = training_memory(a, 4, 256, attention="eager", cuda=True)
    assert gpu.activations_bytes < unfused.activations_bytes < whole.activations_bytes


@pytest.mark.parametrize("name", known_hardware())
def test_every_datasheet_reads_and_says_where_from(name: str) -> None:
    sheet = load_datasheet(name)
    assert sheet.peaks["float32"]
    assert sheet.nvml_names
    assert all(datasheet_of(nvml) is sheet for nvml in sheet.nvml_names)
    text = (hardware_directory() / f"{name}.yaml").read_text()
    sources = [str(source) for source in yaml.safe_load(text)["sources"]]
    assert any(source.startswith("https://") for source in sources)
    figures = re.findall(r"^ *(\w+): [\d.e+]+(.*)$", text, re.MULTILINE)
    assert {key for key, _ in figures} >= {"memory_bytes", "bandwidth_bytes_per_s", "float32"}
    for key, comment in figures:
        documents = re.findall(r"\[\d+\]", comment)
        assert documents, f"{key} does not say where it is from"
        assert all(any(source.startswith(n) for source in sources) for n in documents), key


def test_v100_tensor_cores_are_half_precision_only() -> None:
    v100 = load_datasheet("v100")
    assert v100.flops_per_s("float16") == 125e12
    assert v100.flops_per_s("float32") == 15.7e12
    with pytest.raises(ConfigError, match="no peak for bfloat16"):
        v100.flops_per_s("bfloat16")


def test_hardware_that_does_not_exist_or_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="h100"):
        load_datasheet("h10")
    with pytest.raises(ConfigError, match="no hardware"):
        load_datasheet("../hardware/h100")
    assert datasheet_of("Voodoo 2") is None
    own = tmp_path / "mine.yaml"
    figures: dict[str, Any] = {
        "title": "mine",
        "memory_bytes": 1,
        "bandwidth_bytes_per_s": 2.0,
        "peaks": {"float32": 3.0, "float16": None},
    }
    own.write_text(yaml.safe_dump(figures))
    assert load_datasheet(str(own)).flops_per_s("float32") == 3.0
    for change, said in (
        ({"memory_bytes": None}, "memory_bytes"),
        ({"memory_bytes": -1}, "memory_bytes"),
        ({"speed": 1}, "speed"),
        ({"peaks": {"float7": 1.0}}, "float7"),
        ({"peaks": {"float32": "fast"}}, "float32"),
    ):
        with pytest.raises(ConfigError, match=said):
            Datasheet.from_mapping("mine", {**figures, **change})


MEASURED = Measured(
    "this",
    {
        "product.near.float32": ((100.0, 1.0, 1e-6), (100.0, 10.0, 2e-6), (1e4, 1.0, 1e-5)),
        "product.far.float32": ((100.0, 1.0, 1e-6), (100.0, 10.0, 2e-6), (1e4, 1.0, 4e-5)),
        "product.backward.float32": ((100.0, 10.0, 7e-6),),
        "passes.inference.float32": ((10.0, 1.0, 1e-6), (1e3, 1.0, 1e-5)),
        "attention.inference.float32": ((16.0, 1.0, 1e-9), (16.0, 4.0, 4e-9)),
        "attention_step.inference.float32": ((1e3, 1.0, 2e-6),),
        "append.inference.float32": ((10.0, 1.0, 3e-6),),
        "optimizer.forward.float32": ((10.0, 1.0, 5e-6), (1e3, 1.0, 1e-5)),
    },
    ((1e3, 1e10), (1e9, 1e9)),
    ((1e3, 4e10), (1e6, 1e10)),
    1e-6,
    None,
)


def operation(part: str = "feed_forward", **fields: Any) -> Operation:
    return Operation(part, **{"flops": 1.0, "bytes": 1.0, "dtype": "float32", **fields})


def test_an_operation_takes_as_long_as_it_was_measured_to() -> None:
    timed_s = MEASURED.timed_s
    product = operation(rows=1, elements=100)
    assert timed_s(product) == pytest.approx(1e-6)
    assert timed_s(replace(product, launches=3)) == pytest.approx(3e-6)
    # By the logarithm between measured points, in proportion beyond the last one.
    assert timed_s(replace(product, rows=math.sqrt(10))) == pytest.approx(math.sqrt(2) * 1e-6)
    assert timed_s(replace(product, rows=50)) == pytest.approx(1e-5)
    assert timed_s(replace(product, elements=1)) == pytest.approx(1e-6)
    # Weights of a model that fits into a cache are near, those of a large one are far.
    large = replace(product, elements=2e4)
    assert timed_s(replace(large, working_bytes=1e3)) == pytest.approx(2e-5)
    assert timed_s(replace(large, working_bytes=1e9)) == pytest.approx(8e-5)
    # A pass is one of as many as there are kernels.
    passes = operation("elementwise", flops=0.0, bytes=3e3, launches=3)
    assert timed_s(passes) == pytest.approx(3e-5)
    assert timed_s(operation("attention", flops=1e6, rows=64, groups=2)) == pytest.approx(2e-3)
    assert timed_s(operation("attention", flops=2e3, rows=1)) == pytest.approx(4e-6)
    grown = operation("attention", flops=0.0, bytes=40.0, launches=2)
    assert timed_s(grown) == pytest.approx(2 * 6e-6)
    assert timed_s(operation("optimizer", flops=0.0, elements=1e4, mode="forward")) == 1e-4
    assert timed_s(replace(product, rows=10, mode=BACKWARD)) == pytest.approx(7e-6)
    # What nothing like it was measured of is bounded instead.
    for unlike in (
        replace(product, packed=True),
        replace(product, dtype="float16"),
        operation("attention", rows=64, groups=0),
        operation("dequantize", flops=0.0),
        operation("loss", flops=0.0, elements=5, mode="forward"),
    ):
        assert timed_s(unlike) is None


def test_launches_are_added_to_what_is_bounded_and_not_to_what_is_timed() -> None:
    product = operation(rows=10, elements=100, count=4)
    timed, bounded = (
        estimate((asked,), MEASURED) for asked in (product, replace(product, packed=True))
    )
    assert timed.launch_s == 0
    assert timed.time_s == pytest.approx(4 * 2e-6)
    assert bounded.launch_s == pytest.approx(4e-6)


def test_measured_ceilings_bound_what_was_not_timed_and_survive_json() -> None:
    ceilings = MEASURED
    assert ceilings.flops_per_s("float32", 1, packed=True) == pytest.approx(2e9)
    assert ceilings.flops_per_s("float32", 1e9) == pytest.approx(2e4 / 4e-5)
    assert ceilings.bytes_per_s(1, "feed_forward") == 4e10
    assert ceilings.bytes_per_s(1, "elementwise") == 1e10
    assert ceilings.bytes_per_s(1e6, "elementwise") == pytest.approx(math.sqrt(1e19))
    assert ceilings.peak("float32") == pytest.approx(2e9)
    assert ceilings.peak("int8") is None
    assert Measured.from_json(ceilings.to_json()) == ceilings
    tree = ceilings.to_json()
    assert ceilings.is_steady
    assert not Measured.from_json({**tree, "spread": 3.0}).is_steady
    with pytest.raises(ConfigError, match="int8"):
        ceilings.flops_per_s("int8")
    with pytest.raises(ValueError, match="positive"):
        Measured.from_json({**tree, "triad": [[0, 1]]})
    with pytest.raises(ValueError, match="positive"):
        Measured.from_json({**tree, "timings": {"loss.forward.float32": [[1, 1, 0]]}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": None}, "model_type"),
        ({"model_type": "llamo"}, "llama"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size: 0 is not positive"),
        ({"vocab_size": -5}, "vocab_size"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"intermediate_size": "96"}, "intermediate_size"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads: 5 does not"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        (
            {"model_type": "gpt2", "num_attention_heads": None, "n_head": 7, "n_positions": 9},
            "n_head: 7 does not divide",
        ),
        ({"mlp_bias": "yes"}, "mlp_bias"),
        ({"model_type": "mistral", "sliding_window": 5000}, "sliding_window: 5000 is larger"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types: 1 entries"),
        (
            {"model_type": "qwen2", "layer_types": ["full_attention", "mamba"]},
            "layer_types: mamba",
        ),
        ({"model_type": "mixtral"}, "num_local_experts"),
        (
            {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3},
            "num_experts_per_tok: 3 of 2",
        ),
        ({"model_type": "phi", "partial_rotary_factor": 2}, "partial_rotary_factor"),
    ],
)
def test_a_wrong_configuration_names_the_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_architecture({**LLAMA, **change})
    assert "\n" not in str(caught.value)


def test_a_published_window_beyond_the_context_is_read_if_one_must() -> None:
    config = {**LLAMA, "model_type": "phi3", "sliding_window": 5000}
    relaxed = read_architecture(config, strict=False)
    assert {layer.attention.window for layer, _ in relaxed.layers} == {5000}


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="nf4"):
        WeightFormat("nf5")
    with pytest.raises(ConfigError, match="bfloat16"):
        WeightFormat("none", "float64")
    with pytest.raises(ConfigError, match="float8"):
        CacheFormat("fp8")
