"""What a plan rejects in a line: models that are not causal text ones, weights of another kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers.model_types import packing_problem, type_problem
from orchestrator.errors import ConfigError
from orchestrator.measure import Infeasible, InputError
from testing.checks import check_of
from testing.trial import TINY
from tests.tasks.test_tasks_files import MIXTRAL, of

Identity = Callable[..., dict[str, Any]]
check = check_of("inference")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "bert"}, "bert sees the tokens it is to predict"),
        ({"model_type": "roberta", "is_decoder": False}, "sees the tokens"),
        ({"model_type": "bert-generation"}, "sees the tokens"),
        ({"model_type": "bart"}, "an encoder and a decoder"),
        ({"model_type": "whisper"}, "an encoder and a decoder"),
        ({"model_type": "t5"}, "an encoder and a decoder"),
        ({"model_type": "qwen2_5_vl"}, "reads more than text"),
        ({"model_type": "gemma3"}, "reads more than text"),
        ({"model_type": "own_type", "vision_config": {}}, "reads more than text"),
        ({"model_type": "musicgen"}, "reads more than text"),
        ({"model_type": "vit"}, "no causal language model of the type vit"),
        ({"model_type": "clip"}, "no causal language model of the type clip"),
    ],
)
@pytest.mark.parametrize("source", ["random", "path"])
@pytest.mark.parametrize("task", ["inference", "quality"])
def test_other_models_are_refused_while_planning(
    identity: Identity, tmp_path: Path, config: dict[str, Any], says: str, source: str, task: str
) -> None:
    if source == "random":
        model = {"architecture": config}
    else:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").touch()
        model = of(tmp_path)
    with pytest.raises(ConfigError) as raised:
        check_of(task)(identity(task=task, model=model))
    line = str(raised.value)
    assert says in line
    assert "\n" not in line
    assert len(line) < 300


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama"},
        {"model_type": "mamba2"},
        {"model_type": "gpt_neox"},
        {"model_type": "bert", "is_decoder": True},
        {"model_type": "own_type"},
        {},
    ],
)
def test_causal_models_and_models_of_their_own_are_not(config: dict[str, Any]) -> None:
    assert type_problem(config, "here") is None


def test_code_of_a_models_own_is_judged_by_what_it_does() -> None:
    config = {"model_type": "bert", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    assert type_problem(config, "here", own_code=True) is None
    assert type_problem(config, "here") is not None  # its code is not run
    assert type_problem({"model_type": "bert"}, "here", own_code=True) is not None


def test_a_hub_models_kind_is_found_once_its_configuration_is_there(
    identity: Identity, recorder: Any, saved_model: Path
) -> None:
    """As of a repository, whose configuration a plan does not fetch."""
    config = json.loads((saved_model / "config.json").read_text())
    (saved_model / "config.json").write_text(json.dumps({**config, "vision_config": {}}))
    with pytest.raises(InputError, match="reads more than text"):
        loading.prepare(identity(model=of(saved_model)), recorder[0])
    quantized = {**config, "quantization_config": {"quant_method": "awq"}}
    (saved_model / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(Infeasible, match="quantized by awq"):
        loading.prepare(identity(model=of(saved_model)), recorder[0])


@pytest.mark.parametrize("quant", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize(
    ("found", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"bits": 4}, "a method it does not name"),
    ],
)
def test_quantized_weights_are_refused_under_a_label_of_others(
    identity: Identity, saved_model: Path, quant: str, found: dict[str, Any], method: str
) -> None:
    config = json.loads((saved_model / "config.json").read_text())
    config["quantization_config"] = found
    (saved_model / "config.json").write_text(json.dumps(config))
    reason = check(identity(quant, model=of(saved_model)))
    assert reason is not None
    assert f"quantized by {method}" in reason
    assert "plain weights" in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("found", "quant", "fits"),
    [
        ({"load_in_8bit": True}, "int8", True),
        ({"load_in_8bit": True}, "nf4", False),
        ({"load_in_8bit": True}, "bf16", False),
        (
            {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
            },
            "nf4",
            True,
        ),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", False),
        ({"load_in_4bit": True}, "nf4", False),
    ],
)
def test_weights_packed_by_bitsandbytes_are_of_the_format_asked_for(
    identity: Identity, found: dict[str, Any], quant: str, fits: bool
) -> None:
    config = {**TINY, "quantization_config": {"quant_method": "bitsandbytes", **found}}
    reason = packing_problem(config, identity(quant)["quant"])
    assert (reason is None) == fits


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
def test_a_mixture_that_cannot_be_packed_is_refused(identity: Identity, quant: str) -> None:
    reason = check(identity(quant, model={"architecture": MIXTRAL}))
    assert reason is not None
    assert "experts of a mixture" in reason
    unknown = {"model_type": "glm4_moe", "n_routed_experts": 8, "hidden_size": 64}
    assert "experts of a mixture" in (check(identity(quant, model={"architecture": unknown})) or "")
    assert check(identity("bf16", model={"architecture": MIXTRAL})) is None
    assert check(identity(quant, prompt_tokens=8)) is None
    one = {"model_type": "glm4_moe", "n_routed_experts": 1, "hidden_size": 64}
    assert check(identity(quant, model={"architecture": one})) is None


def test_planning_imports_neither_torch_nor_transformers() -> None:
    program = """
import sys
from orchestrator.engines.transformers.model_types import packing_problem, type_problem
assert type_problem({"model_type": "bert"}, "x") is not None
assert packing_problem({"model_type": "mixtral"}, {"scheme": "nf4"}) is None
assert not {"torch", "transformers"} & set(sys.modules), "slow"
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=60)
