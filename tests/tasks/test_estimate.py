"""The estimate task and what its cells say; and that its built-in sweep is as large as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.engines.gguf_files import read_gguf
from orchestrator.engines.source import packaged_file
from orchestrator.engines.transformers.configuration import PACKAGED, known_config
from orchestrator.errors import ConfigError
from orchestrator.measure import Absent, Value
from orchestrator.measure.registry import find_task
from orchestrator.model import (
    CacheFormat,
    Measured,
    WeightFormat,
    decode,
    load_datasheet,
    read_architecture,
)
from orchestrator.model import estimate as roofline
from orchestrator.model.known_ceilings import keep_ceilings
from orchestrator.tasks import estimate
from orchestrator.tasks.estimate import EstimateConfig, check, evaluate
from testing.checks import check_of

KNOWN = Path(__file__).resolve().parents[2] / "conf" / "model" / "known"


def identity(
    model: str = "llama_2_7b", scheme: str = "none", dtype: str = "float16", **options: Any
) -> dict[str, Any]:
    tree = yaml.safe_load((KNOWN / f"{model}.yaml").read_text())
    return {
        "task": {**vars(EstimateConfig()), "kv_dtype": "float16", **options},
        "engine": None,
        "model": {"id": None, "path": None, **tree},
        "quant": {"scheme": scheme, "dtype": dtype, "double_quant": False},
        "protocol": {},
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }


def value(found: Any, name: str) -> float:
    metric = found.metrics[name]
    assert isinstance(metric, Value), metric
    return metric.value


def test_a_cell_on_an_h100() -> None:
    found = evaluate(identity(hardware="h100", prompt_tokens=512, new_tokens=2))
    assert found.infeasible is None
    weights = 2 * 6_738_415_616 + 2 * 64 * 4  # and the rotary frequencies
    assert value(found, "weights_bytes") == weights
    # The second new token is never fed back.
    assert value(found, "kv_bytes") == 513 * 2 * 2 * 32 * 32 * 128
    # A token reads every weight but the embedding's, and the cache, at 3.35 TB/s.
    read = weights - 2 * 32000 * 4096 + 512 * 2 * 2 * 32 * 32 * 128
    assert value(found, "tpot_s") == pytest.approx(read / 3.35e12, rel=0.01)
    assert value(found, "ttft_s") > 2 * 512 * 6.6e9 / 989.4e12
    assert value(found, "e2e_s") == value(found, "ttft_s") + value(found, "tpot_s")
    assert found.facts["decode_bound"] == "memory"
    assert found.facts["prefill_bound"] == "compute"
    assert value(found, "decode_tokens_per_s") == pytest.approx(1 / value(found, "tpot_s"))


def test_a_single_new_token_has_no_decode_step() -> None:
    found = evaluate(identity(hardware="h100", new_tokens=1))
    assert value(found, "e2e_s") == value(found, "ttft_s")
    assert value(found, "kv_bytes") == 512 * 2 * 2 * 32 * 32 * 128
    for name in ("tpot_s", "decode_tokens_per_s", "decode_flops", "decode_attention_share"):
        metric = found.metrics[name]
        assert isinstance(metric, Absent)
        assert "no decode step" in metric.reason
    assert "decode_bound" not in found.facts


def test_steps_stop_growing_where_a_window_is_full() -> None:
    asked = identity("mistral_7b", batch_size=64, prompt_tokens=512, new_tokens=8001)
    found = evaluate(asked)
    h100, cache, weights = load_datasheet("h100"), CacheFormat(), WeightFormat(dtype="float16")
    architecture = read_architecture(asked["model"]["architecture"])

    def step_s(past: int) -> float:
        return roofline(decode(architecture, 64, past, weights, cache), h100).time_s

    every = [step_s(past) for past in range(512, 512 + 8000, 20)]
    assert value(found, "tpot_s") == pytest.approx(sum(every) / len(every), rel=2e-3)
    assert step_s(512 + 4000) > 1.1 * value(found, "tpot_s")
    e2e_s = value(found, "ttft_s") + 8000 * value(found, "tpot_s")
    assert value(found, "e2e_s") == pytest.approx(e2e_s)


def test_a_machine_that_was_busy_when_it_was_measured_predicts_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path))
    table = {"product.near.float16": ((4.0, 1.0, 1.0),), "product.far.float16": ((4.0, 1.0, 1.0),)}
    points = ((1.0, 1e9),)
    busy = Measured("this", table, points, points, 0.0, memory_bytes=1 << 37, spread=2.0)
    keep_ceilings("here", busy, this="cpu")
    estimate._device.cache_clear()
    found = evaluate(identity(hardware="this"))
    estimate._device.cache_clear()
    assert value(found, "weights_bytes") > 0
    for name in ("ttft_s", "tpot_s", "compute_bound_batch"):
        metric = found.metrics[name]
        assert isinstance(metric, Absent)
        assert "too busy" in metric.reason


def test_what_does_not_fit_keeps_its_sizes_and_has_no_times() -> None:
    found = evaluate(identity("llama_2_70b", hardware="h100"))
    assert found.infeasible is not None
    assert "h100" in found.infeasible
    assert value(found, "weights_bytes") > 130e9
    assert value(found, "longest_context_tokens") == 0
    assert found.facts["longest_context_limited_by"] == "weights"
    assert isinstance(found.metrics["ttft_s"], Absent)
    fits = evaluate(identity("llama_2_70b", "nf4", hardware="h100"))
    assert fits.infeasible is None


def test_a_dtype_without_a_peak_is_a_reason_not_an_error() -> None:
    found = evaluate(identity(dtype="bfloat16", hardware="v100"))
    metric = found.metrics["tpot_s"]
    assert isinstance(metric, Absent)
    assert "no peak for bfloat16" in metric.reason
    assert value(found, "weights_bytes") > 0
    int8 = evaluate(identity(scheme="int8", hardware="v100")).metrics["ttft_s"]
    assert isinstance(int8, Absent)
    assert "int8" in int8.reason


def test_every_cell_has_the_same_metrics() -> None:
    cells = [
        evaluate(identity(hardware="h100")),
        evaluate(identity("llama_2_70b", hardware="rtx4070")),
        evaluate(identity(dtype="bfloat16", hardware="v100")),
    ]
    assert len({tuple(cell.metrics) for cell in cells}) == 1


def test_gguf_types_stand_in_for_the_quantization() -> None:
    half = evaluate(identity(hardware="rtx4090"))
    four = evaluate(identity(scheme="q4_k", hardware="rtx4090"))
    assert 0.28 < value(four, "weights_bytes") / value(half, "weights_bytes") < 0.31
    assert value(four, "tpot_s") < 0.35 * value(half, "tpot_s")
    with pytest.raises(ConfigError, match=r"not known to arithmetic.*quant=q4_k"):
        check(identity(scheme="source"))


def test_latent_attention_keeps_one_vector_a_token() -> None:
    found = evaluate(identity("deepseek_v3", hardware="b200", prompt_tokens=4096, scheme="q4_k"))
    # It fits nowhere whole: the sizes alone are asked for.
    assert value(found, "kv_bytes") == (4096 + 127) * 61 * 576 * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware": "h101"}, "h100"),
        ({"batch_size": 0}, "task.batch_size"),
        ({"kv_dtype": "float7"}, "task.kv_dtype"),
        ({"memory_share": 1.5}, "task.memory_share"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_of("estimate")(identity(**options))


def test_a_prompt_beyond_the_context_is_infeasible() -> None:
    reason = check(identity("llama_7b", prompt_tokens=2048))
    assert reason is not None
    assert "2048" in reason
    assert check(identity("llama_7b", prompt_tokens=1024)) is None


def test_a_model_that_would_have_to_be_fetched(tmp_path: Path) -> None:
    hub = identity()
    hub["model"] = {"source": "hub", "id": "a/b", "path": None}
    with pytest.raises(ConfigError, match="not available"):
        check(hub)
    (tmp_path / "config.json").write_text("[]")
    assert known_config({"source": "path", "path": str(tmp_path)}) is None


def test_the_packaged_model_is_as_its_file_says() -> None:
    file = packaged_file()
    if file is None:
        pytest.skip("the package with the SmolLM2 weights is not installed")
    fields = read_gguf(file).fields

    def read(name: str) -> int:
        field = fields[f"llama.{name}"]
        return int(field.parts[field.data[0]][0])

    assert read("embedding_length") == PACKAGED["hidden_size"]
    assert read("feed_forward_length") == PACKAGED["intermediate_size"]
    assert read("block_count") == PACKAGED["num_hidden_layers"]
    assert read("attention.head_count") == PACKAGED["num_attention_heads"]
    assert read("attention.head_count_kv") == PACKAGED["num_key_value_heads"]
    assert read("context_length") == PACKAGED["max_position_embeddings"]
    read_architecture(PACKAGED)


def test_one_estimate_can_be_an_attempt(tmp_path: Path) -> None:
    from orchestrator.measure import HostClock, Infeasible, Recorder

    events: list[dict[str, Any]] = []
    task = find_task("estimate")
    assert task.is_pure
    task.run(identity(), Recorder(events.append, HostClock(), tmp_path))
    assert {event["name"] for event in events if event["e"] == "value"} >= {"ttft_s", "tpot_s"}
    with pytest.raises(Infeasible, match="GiB"):
        task.run(identity("llama_2_70b"), Recorder(events.append, HostClock(), tmp_path))


def test_the_sweep_has_ten_thousand_cells() -> None:
    tree = yaml.safe_load((KNOWN.parents[1] / "sweep" / "estimate.yaml").read_text())
    cells = 1
    for axis, values in tree["axes"].items():
        if axis != "quant.dtype":  # varies with quant
            cells *= len(values.split(",") if isinstance(values, str) else values)
    assert cells >= 10_000
