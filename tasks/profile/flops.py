"""Floating-point operations of operators that the profiler counts none for, from their shapes.

torch.profiler knows products and sums of its own (``aten::mm``, ``aten::mul``); attention and the
products of bitsandbytes are the rest of a transformer's work. A multiply-add is two operations.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

from orchestrator.tasks.profile.profiler_events import Shapes

_FOUR_BIT = ("bitsandbytes::gemv_4bit", "bitsandbytes::gemm_4bit")
_INT8 = ("bitsandbytes::int8_linear_matmul", "aten::_int_mm")


@lru_cache(maxsize=4096)
def flops_of(name: str, shapes: Shapes) -> int:
    """Of one call; 0 where they are not known.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Attention: query (batch, heads, tokens, width), key and value (batch, heads, past, width);
        counted in full, as ``torch.utils.flop_counter`` does, whatever a causal mask hides.
        Four-bit products: input (..., inputs), weights of two values a byte. Eight-bit products:
        input (rows, inputs), weights of (inputs, outputs) or turned.
    """
    if name.startswith("aten::_scaled_dot_product_") and _have(shapes, 4, 4, 4):
        batch, heads, tokens, width = shapes[0]
        return 2 * batch * heads * tokens * shapes[1][2] * (width + shapes[2][3])
    if name in _FOUR_BIT and len(shapes) > 1 and shapes[0]:
        rows = prod(shapes[0][:-1])
        return 2 * rows * 2 * prod(shapes[1])
    if name in _INT8 and _have(shapes, 2, 2):
        rows = shapes[0][0]
        return 2 * rows * prod(shapes[1])
    return 0


def _have(shapes: Shapes, *dimensions: int) -> bool:
    return len(shapes) >= len(dimensions) and all(
        len(shape) == count for shape, count in zip(shapes, dimensions, strict=False)
    )
