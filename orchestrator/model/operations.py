"""What a step computes and moves: FLOPs, bytes and kernel launches by operator class.

A multiply-add is two FLOPs. Bytes are those that must cross the memory once: weights, the keys and
values that are looked at, activations in and out. ``Execution`` says which program does it: an
ideal one with fused kernels, or transformers' eager code with its passes over memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.model.architecture import (
    ATTENTION,
    DEQUANTIZE,
    ELEMENTWISE,
    EMBEDDING,
    EXPERT,
    FEED_FORWARD,
    HEAD,
    Architecture,
    Attention,
    Layer,
    Matrix,
)
from orchestrator.model.kv_cache import CacheFormat, cached_tokens
from orchestrator.model.weights import (
    DTYPE_BYTES,
    FOUR_BIT,
    WeightFormat,
    head_bytes,
    is_quantized,
    matrix_bytes,
    weights_bytes,
)

# What an operation is part of: the same one costs another amount in each.
INFERENCE = "inference"  # memory is reused from one operation to the next
FORWARD = "forward"  # results are kept for the backward pass
BACKWARD = "backward"


@dataclass(frozen=True)
class Operation:
    """Operations of one class that are alike, as often as they occur in a step.

    Attributes
    ----------
    part : str
        Operator class.
    flops, bytes : float
        Of one of them.
    launches : int
        Kernels of one of them.
    count : int
        How many there are, one after the other.
    dtype : str
        What it computes in: the peak that bounds it.
    rows : float
        Rows of the matrix product; 0 where it is none.
    packed : bool
        Its weights are unpacked on the way: it reads less than a product in ``dtype`` would.
    working_bytes : float
        What memory is gone through before the same bytes are read again: decides which cache they
        may come from.
    elements : float
        Of one weight that is multiplied with, of one tensor that is updated, or of all logits.
    groups : float
        Query heads that share a key, for attention; 0 where it is not fused.
    mode : str
        ``inference``, ``forward`` or ``backward``.
    """

    part: str
    flops: float
    bytes: float
    launches: int = 1
    count: int = 1
    dtype: str = "bfloat16"
    rows: float = 0.0
    packed: bool = False
    working_bytes: float = 0.0
    elements: float = 0.0
    groups: float = 1.0
    mode: str = INFERENCE


@dataclass(frozen=True)
class Execution:
    """How the arithmetic is carried out.

    Attributes
    ----------
    fused : bool
        Ideal kernels: a norm, a rotation or an activation is one pass, the cache grows in place,
        packed weights are unpacked on the way. False: transformers' eager code.
    causal : bool
        Attention skips what the mask hides (half of a prefill); False counts the full square, as
        ``torch.utils.flop_counter`` does.
    absorbed : bool
        Latent attention works on the compressed cache. False: it is expanded in every step, as
        transformers does.
    cached : bool
        Keys and values are kept for later tokens. False: a training step.
    """

    fused: bool = True
    causal: bool = True
    absorbed: bool = True
    cached: bool = True


IDEAL = Execution()
EAGER = Execution(fused=False, absorbed=False)


@lru_cache(maxsize=65536)
def prefill(
    architecture: Architecture,
    batch: int,
    tokens: int,
    weights: WeightFormat,
    cache: CacheFormat,
    execution: Execution = IDEAL,
    past: int = 0,
) -> tuple[Operation, ...]:
    """Operations of ``tokens`` new ids in each of ``batch`` sequences, logits of the last only.

    They come after ``past`` tokens that the cache holds.
    """
    return forward(architecture, batch, tokens, past, batch, weights, cache, execution)


@lru_cache(maxsize=65536)
def decode(
    architecture: Architecture,
    batch: int,
    past: int,
    weights: WeightFormat,
    cache: CacheFormat,
    execution: Execution = IDEAL,
) -> tuple[Operation, ...]:
    """Operations of one step that adds a token to ``past`` of them in each of ``batch``."""
    return forward(architecture, batch, 1, past, batch, weights, cache, execution)


def forward(
    architecture: Architecture,
    batch: int,
    new: int,
    past: int,
    logits_rows: int,
    weights: WeightFormat,
    cache: CacheFormat,
    execution: Execution,
) -> tuple[Operation, ...]:
    """One pass through the model.

    Parameters
    ----------
    new, past : int
        Tokens of each sequence that are computed, and that the cache holds from before.
    logits_rows : int
        Positions whose logits are wanted, of the whole batch.
    """
    rows = batch * new
    width = _activation_bytes(weights)
    total = float(weights_bytes(architecture, weights))
    dtype = weights.dtype
    made: list[Operation] = [
        Operation(
            EMBEDDING,
            0.0,
            2.0 * rows * architecture.embedding * width,
            dtype=dtype,
            working_bytes=total,
        )
    ]
    for matrix in architecture.outer:
        made.append(_product(matrix, rows, weights, total, 1))
    for layer, count in architecture.layers:
        for matrix in layer.matrices:
            made.extend(
                _matrix(matrix, layer, rows, batch, new, past, weights, total, count, execution)
            )
        made.extend(_attention(layer.attention, batch, new, past, cache, weights, count, execution))
        made.append(_elementwise(architecture.hidden, layer, rows, weights, count, execution))
    head = architecture.head
    made.append(
        Operation(
            HEAD,
            2.0 * logits_rows * head.inputs * head.outputs,
            head_bytes(architecture, weights)
            + logits_rows * (head.inputs + head.outputs) * float(width),
            dtype=dtype,
            rows=logits_rows,
            working_bytes=total,
            elements=head.elements,
        )
    )
    return tuple(made)


def flops(operations: tuple[Operation, ...]) -> float:
    """FLOPs of a step."""
    return sum(operation.count * operation.flops for operation in operations)


def moved_bytes(operations: tuple[Operation, ...]) -> float:
    """Bytes of a step."""
    return sum(operation.count * operation.bytes for operation in operations)


def attended_pairs(window: int | None, new: int, past: int) -> int:
    """Query-key pairs that a causal mask lets through, for ``new`` tokens after ``past``."""
    if window is None or past + new <= window:
        return new * past + new * (new + 1) // 2
    growing = max(window - past, 0)  # tokens that do not fill the window yet
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * window


def distinct_experts(count: int, active: int, tokens: float) -> float:
    """Experts that ``tokens`` reach together, expected for independent, even routing.

    Each token misses a given expert with probability 1 - active/count.
    """
    missed = float((1.0 - active / count) ** tokens)
    return count * (1.0 - missed)


def _matrix(
    matrix: Matrix,
    layer: Layer,
    rows: int,
    batch: int,
    new: int,
    past: int,
    weights: WeightFormat,
    total: float,
    count: int,
    execution: Execution,
) -> list[Operation]:
    if matrix.part == EXPERT:
        return [_experts(matrix, layer.active_experts, rows, weights, total, count)]
    if matrix.expands_cache and not execution.absorbed:
        rows = batch * (past + new)
    made = [_product(matrix, rows, weights, total, count)]
    # bitsandbytes multiplies four-bit weights directly only by a single row, or packed for the CPU;
    # torchao has no product with eight bits but what a compiler makes of it.
    unpacks = weights.scheme in FOUR_BIT and not weights.packed_for_cpu and rows > 1
    if (
        (unpacks or weights.scheme == "int8wo")
        and not execution.fused
        and is_quantized(matrix, weights)
    ):
        dense = float(matrix.elements * _activation_bytes(weights))
        packed = float(matrix_bytes(matrix, weights))
        made.append(
            Operation(DEQUANTIZE, 0.0, packed + 2 * dense, count=count, working_bytes=total)
        )
    return made


def _product(
    matrix: Matrix, rows: int, weights: WeightFormat, total: float, count: int
) -> Operation:
    width = _activation_bytes(weights)
    int8 = weights.scheme == "int8" and is_quantized(matrix, weights)
    return Operation(
        matrix.part,
        2.0 * rows * matrix.inputs * matrix.outputs,
        matrix_bytes(matrix, weights) + rows * (matrix.inputs + matrix.outputs) * float(width),
        count=count,
        dtype="int8" if int8 else weights.dtype,
        rows=rows,
        packed=not int8 and is_quantized(matrix, weights),
        working_bytes=total,
        elements=float(matrix.inputs * matrix.outputs),
    )


def _experts(
    matrix: Matrix, active: int, rows: int, weights: WeightFormat, total: float, count: int
) -> Operation:
    """One product with a stack of experts: each token with its own few."""
    width = _activation_bytes(weights)
    touched = distinct_experts(matrix.count, active, rows)
    one = matrix_bytes(matrix, weights) / matrix.count
    return Operation(
        EXPERT,
        2.0 * rows * active * matrix.inputs * matrix.outputs,
        touched * one + rows * active * (matrix.inputs + matrix.outputs) * float(width),
        launches=max(1, round(touched)),
        count=count,
        dtype=weights.dtype,
        rows=rows * active / touched,
        packed=is_quantized(matrix, weights),
        working_bytes=total,
        elements=float(matrix.inputs * matrix.outputs),
    )


def _attention(
    attention: Attention,
    batch: int,
    new: int,
    past: int,
    cache: CacheFormat,
    weights: WeightFormat,
    count: int,
    execution: Execution,
) -> list[Operation]:
    width = float(_activation_bytes(weights))
    held = cached_tokens(attention, past)
    window = attention.window
    pairs = attended_pairs(window, new, past) if execution.causal else new * (held + new)
    key, value, latent = attention.key_dim, attention.value_dim, attention.latent
    if latent is not None and execution.absorbed:
        key, value = latent.rank + latent.rotary, latent.rank
    moved = batch * new * attention.heads * (key + value) * width
    # Past keys and values are read as they are cached, new ones as they were just computed.
    moved += cache.bytes_of(batch * held * attention.cached_elements)
    moved += 2 * cache.bytes_of(batch * new * attention.cached_elements)
    made = [
        Operation(
            ATTENTION,
            2.0 * batch * pairs * attention.heads * (key + value),
            moved,
            count=count,
            dtype=weights.dtype,
            rows=new,
            working_bytes=moved,
            # Eager attention computes the square by products of its own: nothing fused.
            groups=attention.heads / attention.kv_heads if execution.causal else 0.0,
        )
    ]
    if execution.cached and not execution.fused:
        # The cache grows by concatenation: all of it is read and written again.
        grown = 2 * cache.bytes_of(batch * (held + new) * attention.cached_elements)
        made.append(
            Operation(
                ATTENTION,
                0.0,
                grown,
                launches=2,
                count=count,
                dtype=weights.dtype,
                working_bytes=grown,
            )
        )
    return made


def _elementwise(
    hidden: int,
    layer: Layer,
    rows: int,
    weights: WeightFormat,
    count: int,
    execution: Execution,
) -> Operation:
    """Norms, rotation, activation and residuals: passes over activations, no FLOPs to speak of."""
    width = _activation_bytes(weights)
    inner = inner_width(layer)
    turned = _projected_width(layer)
    if execution.fused:
        # A norm with the residual before it reads two and writes two; the rest in and out once.
        moved = rows * width * (layer.norms * 4 * hidden + 2 * turned + (2 + layer.gated) * inner)
        launches = layer.norms + 2
    else:
        # Eager norm: widened to float32, squared, averaged, scaled, narrowed, weighed.
        norm = (28 if width == 4 else 36) * hidden
        rotation = 10 * width * turned  # two products, a half negated and joined, a sum
        activation = (2 + 3 * layer.gated) * width * inner
        moved = rows * (layer.norms * norm + rotation + activation + 2 * 3 * width * hidden)
        launches = layer.norms * (6 if width == 4 else 8) + 10 + 1 + layer.gated + 2
    return Operation(
        ELEMENTWISE,
        0.0,
        float(moved),
        launches=launches,
        count=count,
        dtype=weights.dtype,
        working_bytes=float(rows * max(hidden, inner) * width * 3),
    )


def inner_width(layer: Layer) -> int:
    """Activations of the feed-forward part for one token: shared ones and its experts' together."""
    # The way back down is the last matrix of either kind.
    dense = [m.inputs for m in layer.matrices if m.part == FEED_FORWARD and m.outputs > 1]
    return (dense[-1] if dense else 0) + routed_width(layer)


def routed_width(layer: Layer) -> int:
    """Those of the experts that one token is routed to."""
    routed = [m.inputs for m in layer.matrices if m.part == EXPERT]
    return layer.active_experts * (routed[-1] if routed else 0)


def _projected_width(layer: Layer) -> int:
    """Queries and keys of one token: what a rotary embedding turns."""
    attention = layer.attention
    kv_heads = 1 if attention.latent is not None else attention.kv_heads
    return (attention.heads + kv_heads) * attention.key_dim


def _activation_bytes(weights: WeightFormat) -> int:
    return DTYPE_BYTES[weights.dtype]
