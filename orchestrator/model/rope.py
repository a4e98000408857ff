"""The longest sequence of a configuration whose rotary positions are scaled.

Families differ in what ``max_position_embeddings`` says: Qwen's is the length before scaling,
DeepSeek's and Llama's the one after it. Scaled is the original length times the factor, where that
is more than what stands there already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By these the original length is what max_position_embeddings says, unless they name another. Of
# all others (llama3, longrope) what stands there is the scaled length, whatever their factor.
_STRETCHING = frozenset({"yarn", "linear", "dynamic", "ntk"})


def scaled_context(config: Mapping[str, Any], limit: int | None) -> int | None:
    """``limit`` as rotary scaling stretches it; as it is where nothing does.

    Parameters
    ----------
    config : mapping
        A Hugging Face configuration: ``rope_scaling``, or ``rope_parameters`` of newer ones.
    limit : int or None
        Its ``max_position_embeddings``.
    """
    if limit is None or str(config.get("model_type", "")).startswith("gemma3"):
        return limit  # Gemma 3 states the scaled length, and a factor without the original one
    lengths = [limit]
    for scaling in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(scaling, Mapping):
            lengths.append(_stretched(scaling, config, limit))
    return max(lengths)


def _stretched(scaling: Mapping[str, Any], config: Mapping[str, Any], limit: int) -> int:
    factor = scaling.get("factor")
    if scaling.get("rope_type", scaling.get("type")) not in _STRETCHING:
        return limit
    name = "original_max_position_embeddings"
    original = next((each[name] for each in (scaling, config) if each.get(name)), limit)
    if not (isinstance(factor, (int, float)) and isinstance(original, (int, float))):
        return limit
    return int(original * factor)
