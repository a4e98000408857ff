"""A trial's identity by hand: what the plan would compose, for whoever has no Hydra."""

from __future__ import annotations

import dataclasses
from typing import Any

from orchestrator.measure.registry import find_task

TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
QUANTS = {
    "fp32": ("none", "float32", False),
    "bf16": ("none", "bfloat16", False),
    "int8": ("int8", "bfloat16", False),
    "nf4": ("nf4", "bfloat16", True),
    "fp4": ("fp4", "bfloat16", True),
}


def make_identity(
    quant: str = "fp32",
    *,
    task: str = "inference",
    model: dict[str, Any] | None = None,
    device: str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """A trial's identity; ``model`` is :data:`TINY` by default, ``options`` are the task's."""
    scheme, dtype, double_quant = QUANTS[quant]
    return {
        "schema": 1,
        "task": dataclasses.asdict(find_task(task).config(**options)),
        "model": {
            "source": "random",
            "id": None,
            "revision": None,
            "path": None,
            "architecture": None,
            "trust_remote_code": False,
            **(model or {"architecture": dict(TINY)}),
        },
        "quant": {"scheme": scheme, "dtype": dtype, "double_quant": double_quant},
        "protocol": {
            "warmup": 1,
            "min_repetitions": 3,
            "max_repetitions": 3,
            "max_time_s": 60.0,
            "ci_relative_half_width": 0.05,
            "confidence": 0.95,
            "resamples": 1000,
        },
        "device": {"kind": device, "threads": 1},
        "seed": 0,
    }
