"""What the keys and values of past tokens take: by layer, because a sliding window bounds it there.

The heads that count are the key/value heads, not the query heads; multi-head latent attention keeps
one compressed vector a token instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import ConfigError
from orchestrator.model.architecture import Architecture, Attention
from orchestrator.model.weights import GGUF_BLOCKS

# Bits of one number, and whether each group of them has a scale (and an offset) beside it.
CACHE_BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8": 8,
    "int8": 8,
    "int4": 4,
}
GROUP = 64  # values that share a scale and an offset, both in 16 bits
_GROUP_BITS = 32
_GROUPED = ("int8", "int4")


@dataclass(frozen=True)
class CacheFormat:
    """Number format of the cache; integers have a 16-bit scale and offset for each 64 values.

    Also llama.cpp's types (``Q8_0``), whose blocks are those of its weights.
    """

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_BITS and self.dtype not in GGUF_BLOCKS:
            raise ConfigError(
                f"unknown cache dtype {self.dtype!r}",
                where="task.kv_dtype",
                fix=f"Known: {', '.join(CACHE_BITS)}",
            )

    def bytes_of(self, elements: float) -> float:
        """Bytes of so many numbers."""
        if self.dtype in GGUF_BLOCKS:
            values, size = GGUF_BLOCKS[self.dtype]
            return elements * size / values
        bits = CACHE_BITS[self.dtype] * elements
        if self.dtype in _GROUPED:
            bits += _GROUP_BITS * elements / GROUP
        return bits / 8


def cached_tokens(attention: Attention, tokens: int) -> int:
    """Past positions a layer keeps after ``tokens``: with a window only those still to be seen.

    A token sees ``window`` positions, itself among them: of the past, one less is kept.
    """
    if attention.window is None:
        return tokens
    return min(tokens, attention.window - 1)


def kv_bytes(
    architecture: Architecture, tokens: int, *, batch: int = 1, cache: CacheFormat | None = None
) -> int:
    """Bytes that the cache holds after ``tokens`` of ``batch`` sequences each.

    Equals the sizes of a ``DynamicCache``'s tensors. The memory behind them can be larger for a
    while: a window is cut out of a longer tensor that lives until the next step.
    """
    fmt = cache or CacheFormat()
    elements = sum(
        count * layer.attention.cached_elements * cached_tokens(layer.attention, tokens)
        for layer, count in architecture.layers
    )
    return round(fmt.bytes_of(batch * elements))
