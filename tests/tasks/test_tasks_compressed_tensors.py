"""Checkpoints of compressed-tensors as they are: planned here, measured in their environment."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.engines import transformers as loading
from orchestrator.engines.registry import expect
from orchestrator.engines.transformers.compressed import layers, packed_matrices, source_problem
from orchestrator.environments.build import built
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import InputError
from testing import compressed
from testing.checks import check_of
from testing.environments import environment
from testing.trial import TINY, make_identity, run_attempt

ENVIRONMENT = "compressed_tensors"
HAS_IT = {"packages": {"compressed-tensors": "0.20.1"}}
GROUPS: dict[str, Any] = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
ROWS: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "channel"}

check = check_of("inference")


def config_of(weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A configuration of a packed checkpoint, as the library writes it."""
    group = {"targets": ["Linear"], "weights": GROUPS if weights is None else weights}
    said = {name: changes.pop(name) for name in ("input_activations",) if name in changes}
    return {
        **TINY,
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {**group, **said}},
            **changes,
        },
    }


def at(directory: Path, quant: str = "source", **options: Any) -> dict[str, Any]:
    model = {"source": "path", "path": str(directory), "architecture": None}
    return make_identity(quant, **{"model": model, "prompt_tokens": 16, "new_tokens": 4, **options})


def rewritten(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_it_is_planned_where_its_library_is(saved_model: Path) -> None:
    trial = at(rewritten(saved_model, config_of()))
    assert check({**trial, "environment": HAS_IT}) is None
    lacking = check({**trial, "environment": {"packages": {}}})
    assert lacking == "source needs compressed-tensors: use environment=compressed_tensors"
    found = expect(trial, None)
    dense = expect(at(rewritten(saved_model, TINY), "bf16"), None)
    assert found is not None
    assert dense is not None
    assert found.sizes_bytes == dense.sizes_bytes, "what is in memory is unpacked"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TINY, "this one is not: name a format"),
        ({**TINY, "quantization_config": {"quant_method": "awq"}}, "this one is not"),
        ({**TINY, "quantization_config": {"quant_method": "fp8"}}, "this one is not"),
        (config_of(input_activations=ROWS), "activations are quantized too (input_activations)"),
        (config_of(kv_cache_scheme=ROWS), "has a kv_cache_scheme"),
        (config_of(config_groups={}), "names no groups"),
        ({**config_of(), "dtype": "float64"}, "to float64, which is none of bfloat16"),
    ],
)
def test_what_would_not_be_the_checkpoint_is_infeasible(
    saved_model: Path, config: dict[str, Any], reason: str
) -> None:
    said = check({**at(rewritten(saved_model, config)), "environment": HAS_IT})
    assert reason in str(said)
    assert "\n" not in str(said)


@pytest.mark.parametrize("source", ["random", "packaged"])
def test_models_without_a_packed_file_have_no_source(source: str) -> None:
    model = {"source": source} if source == "random" else {"source": source, "architecture": None}
    trial = make_identity("source", model={**model, "architecture": dict(TINY)})
    assert "name a format" in str(check({**trial, "environment": HAS_IT}))


def test_other_formats_say_how_it_is_measured(saved_model: Path) -> None:
    said = str(check(at(rewritten(saved_model, config_of()), "bf16")))
    assert "quantized by compressed-tensors, which quant=bfloat16 does not mean" in said
    assert "Use quant=source" in said


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (GROUPS, "int4 in groups of 32"),
        (ROWS, "int8 by row"),
        ({**ROWS, "type": "float", "strategy": "tensor"}, "float8 by tensor"),
    ],
)
def test_the_format_of_the_file_is_named(weights: dict[str, Any], said: str) -> None:
    config = config_of(weights)
    assert layers(config) == said
    assert source_problem(config) is None


def test_packed_numbers_without_a_scale_are_an_error(tmp_path: Path) -> None:
    """transformers would read them as plain ones, and say nothing."""
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "model.safetensors"
    plain, codes = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.int8)
    scale = torch.ones(4, 1)
    save_file({"a.weight": codes, "a.weight_scale": scale, "b.weight": plain}, file)
    assert packed_matrices([file]) == (1, 2)
    save_file({"a.weight": codes, "b.weight": plain}, file)
    with pytest.raises(InputError, match="a has no weight_scale"):
        packed_matrices([file])
    save_file({"b.weight": plain}, file)
    with pytest.raises(InputError, match="no matrix in it is packed"):
        packed_matrices([file])


def value(report: AttemptReport, name: str) -> float:
    found: Any = report.metrics[name]
    return float(found.value)


def got(report: AttemptReport, what: str) -> str:
    (found,) = [each.got for each in report.engaged if each.what == what]
    return found


@pytest.mark.long
@pytest.mark.xdist_group("compressed_tensors")
def test_it_is_measured_as_it_is(
    isolation: Isolation, reads_bytes: Path, recorder: Any, tmp_path: Path
) -> None:
    there = environment(ENVIRONMENT)
    files = {"source": "gguf", "path": str(reads_bytes), "architecture": None}
    plain = loading.prepare(make_identity("fp32", model=files), recorder[0]).directory
    assert plain is not None
    for name, weights, packed_as, said in (
        ("int4", GROUPS, (), "int4 in groups of 32"),
        ("asymmetric", {**GROUPS, "symmetric": False}, (), "int4 in groups of 32"),
        ("int8", ROWS, (), "int8 by row"),
        ("naive", ROWS, ("naive-quantized",), "int8 by row"),
    ):
        place = tmp_path / name
        maker = [built(there), compressed.__file__, plain, place, json.dumps(weights), *packed_as]
        done = subprocess.run(list(map(str, maker)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        of_file, of_dense = (
            run_attempt(
                isolation,
                {**at(where, quant, quality_tokens=32), "environment": there},
            )
            for where, quant in ((place, "source"), (place / "dense", "bf16"))
        )
        for report in (of_file, of_dense):
            assert report.outcome is Outcome.OK, report.reason
        assert of_file.facts["file_layers"] == f"{said} in the file, unpacked to bfloat16"
        assert got(of_file, "file format") == (
            f"{said} in 7 of 9 matrices of the file, bfloat16 in memory"
        )
        # What is in memory is what the file's codes and scales say, by formulas of our own.
        assert got(of_file, "weights") == got(of_dense, "weights") == "bfloat16 x 7"
        assert value(of_file, "weights_bytes") == value(of_dense, "weights_bytes")
        assert value(of_file, "perplexity") == value(of_dense, "perplexity")
        # Against the same weights in float32: what is left is the rounding of bfloat16.
        assert abs(value(of_file, "kl_to_reference")) < 1e-5
        for proof in ("causal", "cache"):
            assert of_file.facts["proofs"][proof] == "proven"
        if name == "naive":
            lacking = tmp_path / "lacking"
            shutil.copytree(place, lacking, ignore=shutil.ignore_patterns("dense"))
            _without_a_scale(lacking / "model.safetensors")
            report = run_attempt(isolation, {**at(lacking), "environment": there})
            assert report.outcome is Outcome.ERROR
            assert "has no weight_scale" in str(report.reason)


def _without_a_scale(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    save_file({n: tensor for n, tensor in tensors.items() if n != name}, file, {"format": "pt"})
