"""A model's Hugging Face configuration, as far as it can be had without loading anything.

Arithmetic while planning needs nothing else. What would take seconds or a network (reading a GGUF
file, asking the hub) is not done: there the answer is None; the measured process tells it later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.engines.source import model_path

# SmolLM2-135M-Instruct: its config.json on the Hugging Face hub.
PACKAGED: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def known_config(model: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The configuration of ``identity["model"]``, or None where it would have to be fetched."""
    source = model["source"]
    if source == "random":
        return model.get("architecture") or None
    if source == "packaged":
        return PACKAGED
    if source == "path" and model.get("path"):
        file = model_path(model) / "config.json"
        try:
            return _read(file, file.stat().st_mtime_ns)
        except (OSError, ValueError):
            return None  # found and named when the model is loaded
    return None


@lru_cache(maxsize=256)
def _read(file: Path, mtime_ns: int) -> Mapping[str, Any] | None:
    tree = json.loads(file.read_text())
    return tree if isinstance(tree, dict) else None
