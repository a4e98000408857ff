"""The longest sequence of a configuration, its rotary positions scaled."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engines.source import context_of
from orchestrator.model import read_architecture

LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("limit", "more", "expected"),
    [
        pytest.param(2048, {}, 2048, id="not scaled"),
        pytest.param(2048, {"rope_scaling": YARN}, 8192, id="yarn"),
        pytest.param(2048, {"rope_parameters": YARN}, 8192, id="as newer ones name it"),
        pytest.param(8192, {"rope_scaling": YARN}, 8192, id="the scaled length stands there"),
        pytest.param(16384, {"rope_scaling": YARN}, 16384, id="more than the factor says"),
        pytest.param(2048, {"rope_scaling": {"type": "linear", "factor": 2}}, 4096, id="linear"),
        pytest.param(2048, {"rope_scaling": {"type": "dynamic", "factor": 3.0}}, 6144, id="ntk"),
        pytest.param(
            131072,
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            131072,
            id="llama 3",
        ),
        pytest.param(
            131072,
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 32.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            131072,
            id="llama 3.2",
        ),
        pytest.param(
            131072,
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            131072,
            id="no original",
        ),
        pytest.param(2048, {"rope_scaling": {"rope_type": "default"}}, 2048, id="default"),
        pytest.param(2048, {"rope_scaling": None}, 2048, id="null"),
        pytest.param(
            131072,
            {"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            131072,
            id="gemma 3",
        ),
    ],
)
def test_the_scaled_length_counts(limit: int, more: dict[str, Any], expected: int) -> None:
    config = {"model_type": "llama", "max_position_embeddings": limit, **more}
    assert context_of(config) == expected
    assert context_of({"text_config": config}) == expected


def test_the_arithmetic_knows_it_too() -> None:
    config = {**LLAMA, "max_position_embeddings": 2048, "rope_scaling": YARN}
    assert read_architecture(config).context_tokens == 8192
