"""RoPE scaling of GGUF files: kept to the number, or said that it cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines import transformers as loading
from orchestrator.engines.gguf_files import GgufModel
from orchestrator.measure import InputError
from testing.gguf import of_gguf, rewritten

USES_NO_PROCESS = pytest.mark.usefixtures("converts_here")
Identity = Callable[..., dict[str, Any]]
PLAIN = [10000.0 ** (-2 * i / 16) for i in range(8)]


def loaded(asked: dict[str, Any], recorder: Any) -> Any:
    return loading.load(loading.prepare(asked, recorder[0]), asked, recorder[0])


def frequencies(model: Any) -> list[float]:
    return [float(value) for value in model.model.rotary_emb.inv_freq]


@pytest.mark.parametrize(
    "fields",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},  # llama.cpp takes it for linear
        {"llama.rope.scale_linear": 4.0},
    ],
)
@USES_NO_PROCESS
def test_linear_scaling_is_kept(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    model = loaded(identity(model=of_gguf(file)), recorder)
    assert frequencies(model) == pytest.approx([value / 4 for value in PLAIN])


@USES_NO_PROCESS
def test_yarn_is_kept(identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    fields = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32,
    }
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    model = loaded(identity(model=of_gguf(file)), recorder)

    def corner(turns: float) -> float:  # ggml_rope_yarn_corr_dim
        return 16 * math.log(32 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(0, math.floor(corner(32.0))), min(15, math.ceil(corner(1.0)))
    expected = []
    for index, value in enumerate(PLAIN):
        ramp = 1 - min(1.0, max(0.0, (index - low) / max(0.001, high - low)))
        expected.append(value / 4 * (1 - ramp) + value * ramp)
    assert frequencies(model) == pytest.approx(expected, rel=1e-5)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(4.0) + 1.0)


@USES_NO_PROCESS
def test_factors_of_its_own_are_kept(
    identity: Identity, recorder: Any, tiny_gguf: Path, tmp_path: Path
) -> None:
    factors = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    file = rewritten(tiny_gguf, tmp_path / "f.gguf", tensors={"rope_freqs.weight": factors})
    model = loaded(identity(model=of_gguf(file)), recorder)
    expected = [value / factor for value, factor in zip(PLAIN, factors, strict=True)]
    assert frequencies(model) == pytest.approx(expected)
    assert model.model.rotary_emb.attention_scaling == 1.0


def test_llama3s_factors_are_its_rule(tiny_gguf: Path, tmp_path: Path) -> None:
    from orchestrator.engines.transformers.gguf_rope import rope_of

    made = []
    for index in range(32):
        wavelength = 2 * math.pi * 500000.0 ** (index / 32)
        smooth = (8192 / wavelength - 1) / 3
        if wavelength < 2048:
            made.append(1.0)
        else:
            made.append(8.0 if wavelength > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    file = rewritten(
        tiny_gguf,
        tmp_path / "l.gguf",
        {"llama.rope.freq_base": 500000.0},
        {"rope_freqs.weight": made},
    )
    found = rope_of(GgufModel(file), "llama")
    assert (found["rope_type"], found["factor"]) == ("llama3", 8.0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 2.0}, "'dynamic'"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 2.0,
                "llama.rope.scaling.yarn_ext_factor": 0.5,
            },
            "yarn_ext_factor = 0.5",
        ),
        ({"llama.attention.scale": 0.25}, "attention.scale = 0.25"),
    ],
)
@USES_NO_PROCESS
def test_what_cannot_be_kept_is_refused(
    identity: Identity,
    recorder: Any,
    cache: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    says: str,
) -> None:
    file = rewritten(tiny_gguf, tmp_path / "scaled.gguf", fields)
    with pytest.raises(InputError, match=says) as raised:
        loading.prepare(identity(model=of_gguf(file)), recorder[0])
    assert "\n" not in str(raised.value)
    assert list((cache / "converted").iterdir()) == []
