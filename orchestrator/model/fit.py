"""What fits: memory of an inference, the longest context, the batch that is compute-bound."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.model.architecture import Architecture
from orchestrator.model.kv_cache import CacheFormat, kv_bytes
from orchestrator.model.operations import (
    IDEAL,
    Execution,
    decode,
    inner_width,
    moved_bytes,
)
from orchestrator.model.roofline import Ceilings
from orchestrator.model.weights import DTYPE_BYTES, WeightFormat, weights_bytes

# Sequences that reach practically every expert of a mixture: (1 - 8/256)^4096 is 1e-57.
_ALL_EXPERTS = 4096


@dataclass(frozen=True)
class Memory:
    """Memory of an inference at its highest.

    Attributes
    ----------
    weights_bytes, kv_bytes : int
    activation_bytes : int
        Peak of what a prefill in one piece holds for a moment, with fused attention.
    """

    weights_bytes: int
    kv_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.activation_bytes


@dataclass(frozen=True)
class Context:
    """The longest context: tokens of a sequence, and what bounds it.

    ``limited_by`` is ``memory``, ``model`` (its configuration allows no more) or ``weights`` (alone
    they do not fit; ``tokens`` is 0).
    """

    tokens: int
    limited_by: str


def activation_bytes_per_token(architecture: Architecture, weights: WeightFormat) -> int:
    """Activations of one token at the widest point of a layer, attention fused.

    The residual and its norm beside either the queries, keys, values and output of attention or
    gate, up and product of the feed-forward part.
    """
    width = DTYPE_BYTES[weights.dtype]
    widest = 0
    for layer, _ in architecture.layers:
        feed_forward = (2 + layer.gated) * inner_width(layer)
        widest = max(widest, layer.attention.token_width, feed_forward)
    return width * (2 * architecture.hidden + widest)


def logits_bytes(architecture: Architecture, weights: WeightFormat, rows: int) -> int:
    """Logits of so many positions."""
    return rows * architecture.vocabulary * DTYPE_BYTES[weights.dtype]


def memory(
    architecture: Architecture,
    *,
    batch: int,
    prompt_tokens: int,
    tokens: int,
    weights: WeightFormat,
    cache: CacheFormat,
) -> Memory:
    """Memory of a prefill of ``prompt_tokens`` that grows to ``tokens`` of each sequence."""
    live = batch * prompt_tokens * activation_bytes_per_token(architecture, weights)
    return Memory(
        weights_bytes(architecture, weights),
        kv_bytes(architecture, tokens, batch=batch, cache=cache),
        live + logits_bytes(architecture, weights, batch),
    )


def longest_context(
    architecture: Architecture,
    available_bytes: float,
    *,
    batch: int = 1,
    weights: WeightFormat,
    cache: CacheFormat,
) -> Context:
    """Tokens of each of ``batch`` sequences that fit into ``available_bytes``, in closed form.

    The cache grows by a constant amount a token between the lengths at which a window fills, so
    memory is piecewise linear and the answer is one division on the right piece. The prompt goes
    through in one piece, with its activations.
    """
    left = available_bytes - weights_bytes(architecture, weights)
    left -= logits_bytes(architecture, weights, batch)
    if left < 0:
        return Context(0, "weights")
    slope_always = batch * activation_bytes_per_token(architecture, weights)
    # Each window, and what its layers add a token until it is full.
    growing: dict[int | None, float] = {}
    for layer, count in architecture.layers:
        window = layer.attention.window
        added = batch * cache.bytes_of(count * layer.attention.cached_elements)
        growing[window] = growing.get(window, 0.0) + added
    start, tokens = 0, None
    for end in sorted(window - 1 for window in growing if window is not None):
        slope = slope_always + sum(
            added for window, added in growing.items() if window is None or window - 1 > start
        )
        if left < slope * (end - start):
            tokens = start + int(left // slope)
            break
        left -= slope * (end - start)
        start = end
    if tokens is None:
        slope = slope_always + growing.get(None, 0.0)
        tokens = start + int(left // slope)
    limit = architecture.context_tokens
    if limit is not None and tokens >= limit:
        return Context(limit, "model")
    return Context(tokens, "memory")


def compute_bound_batch(
    architecture: Architecture,
    past: int,
    *,
    weights: WeightFormat,
    cache: CacheFormat,
    ceilings: Ceilings,
    execution: Execution = IDEAL,
) -> int | None:
    """Smallest batch at which a decode step computes longer than it moves data.

    A sequence adds C seconds of computing and M seconds of reading its own keys, values and
    activations; the weights cost W seconds once. They meet at W / (C - M), and never where M is
    the larger: then None. Experts of a mixture are read as far as the batch reaches them, so there
    the crossing is searched for below the one with all of them read.
    """

    def seconds(batch: int) -> tuple[float, float]:
        step = decode(architecture, batch, past, weights, cache, execution)
        compute_s = sum(
            o.count * o.flops / ceilings.flops_per_s(o.dtype, math.inf) for o in step if o.flops
        )
        return compute_s, moved_bytes(step) / ceilings.bytes_per_s(math.inf)

    # Far out every expert is read, and what one more sequence adds is constant.
    far = _ALL_EXPERTS if _is_mixture(architecture) else 1
    (compute_s, move_s), (more_compute_s, more_move_s) = seconds(far), seconds(2 * far)
    per_sequence_s = (more_compute_s - compute_s) - (more_move_s - move_s)
    per_sequence_s /= far
    if per_sequence_s <= 0:
        return None
    missing_s = move_s - compute_s
    high = max(1, far + math.ceil(missing_s / per_sequence_s))
    if not _is_mixture(architecture):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        compute_s, move_s = seconds(middle)
        if compute_s >= move_s:
            high = middle
        else:
            low = middle
    return high


def _is_mixture(architecture: Architecture) -> bool:
    return any(layer.active_experts for layer, _ in architecture.layers)
