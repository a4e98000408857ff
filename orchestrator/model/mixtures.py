"""Readers of mixtures of experts, and of multi-head latent attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from orchestrator.model.architecture import (
    FEED_FORWARD,
    PROJECTION,
    Architecture,
    Attention,
    Latent,
    Layer,
    Matrix,
)
from orchestrator.model.decoder import (
    Block,
    WindowRule,
    active_experts,
    decoder,
    experts,
    gated_feed_forward,
    layer_count,
    no_windows,
    read_heads,
    read_kept,
    rotary_buffers,
    separate_projections,
    windows_where,
)
from orchestrator.model.fields import Fields


def qwen2_moe(f: Fields) -> Architecture:
    """Qwen's first mixture: a shared expert with a gate of its own beside the routed ones."""
    heads = read_heads(f, kv_default=True)
    hidden = heads.hidden
    count = f.size("num_experts", "num_local_experts")
    attention = separate_projections(heads, bias=f.flag("qkv_bias", True), output_bias=False)
    sparse = (
        *attention,
        *experts(hidden, f.size("moe_intermediate_size"), count),
        *gated_feed_forward(hidden, f.size("shared_expert_intermediate_size")),
        Matrix(FEED_FORWARD, hidden, 1),
    )
    dense_layer = (*attention, *gated_feed_forward(hidden, f.size("intermediate_size")))
    last = f.count("max_window_layers", 28)
    windows = windows_where(
        lambda index: index % 2 == 0 and index < last, switch="use_sliding_window"
    )
    active = active_experts(f, count)
    return _interleaved(
        f,
        Block(heads, sparse, norm=hidden, active_experts=active, kept=read_kept(f)),
        Block(heads, dense_layer, norm=hidden, kept=read_kept(f)),
        windows=windows,
    )


def qwen3_moe(f: Fields) -> Architecture:
    """Qwen 3's mixture: no shared expert, queries and keys normalised by head."""
    heads = read_heads(f)
    hidden = heads.hidden
    count = f.size("num_experts", "num_local_experts")
    attention = separate_projections(heads, bias=f.flag("attention_bias", False))
    sparse = (*attention, *experts(hidden, f.size("moe_intermediate_size"), count))
    dense_layer = (*attention, *gated_feed_forward(hidden, f.size("intermediate_size")))
    block = partial(
        Block,
        heads,
        norm=hidden,
        extra_vectors=2 * heads.head_dim,
        kept=read_kept(f),
        normed_heads=True,
    )
    switched = f.flag("use_sliding_window", False)
    return _interleaved(
        f,
        block(sparse, active_experts=active_experts(f, count)),
        block(dense_layer),
        windows=windows_where() if switched else no_windows,
    )


def deepseek(f: Fields, *, corrected: bool) -> Architecture:
    """DeepSeek V2 and V3: latent attention, shared and routed experts after some dense layers.

    Parameters
    ----------
    corrected : bool
        The router has a correction for each expert, held in float32 (V3).
    """
    hidden = f.size("hidden_size")
    heads = f.size("num_attention_heads")
    latent = Latent(f.size("kv_lora_rank"), f.size("qk_rope_head_dim"))
    plain, value = f.size("qk_nope_head_dim"), f.size("v_head_dim")
    key = plain + latent.rotary
    bias = f.flag("attention_bias", False)
    rank = f.optional_size("q_lora_rank")
    if rank is None:
        query: tuple[Matrix, ...] = (Matrix(PROJECTION, hidden, heads * key),)
    else:
        query = (
            Matrix(PROJECTION, hidden, rank, bias),
            Matrix(PROJECTION, rank, heads * key),
        )
    attention = (
        *query,
        Matrix(PROJECTION, hidden, latent.rank + latent.rotary, bias),
        Matrix(PROJECTION, latent.rank, heads * (plain + value), expands_cache=True),
        Matrix(PROJECTION, heads * value, hidden, bias),
    )
    mlp_bias = not corrected and f.flag("mlp_bias", False)
    first_sparse = f.count("first_k_dense_replace", 3 if corrected else 0)
    layers = []
    for index in range(layer_count(f)):
        sparse = index >= first_sparse
        if sparse:
            count = f.size("n_routed_experts", "num_experts")
            inner = f.size("moe_intermediate_size")
            shared = inner * f.count("n_shared_experts", 0)
            matrices = (*attention, *experts(hidden, inner, count))
            if shared:
                matrices = (*matrices, *gated_feed_forward(hidden, shared, bias=mlp_bias))
            active = active_experts(f, count)
        else:
            inner = f.size("intermediate_size")
            matrices = (*attention, *gated_feed_forward(hidden, inner, bias=mlp_bias))
            active = count = 0
        layers.append(
            Layer(
                attention=Attention(heads, heads, key, value, latent=latent),
                matrices=matrices,
                vectors=2 * hidden + latent.rank + (rank or 0),
                active_experts=active,
                float32_buffers=count if corrected and sparse else 0,
                # Values are a part of what is expanded; queries and keys are put together.
                kept=replace(
                    read_kept(f, attention_numbers=heads * (plain + value)),
                    normed_numbers=latent.rank + (rank or 0),
                ),
            )
        )
    return decoder(
        f,
        layers,
        hidden=hidden,
        last_norm=hidden,
        buffers=rotary_buffers(f, latent.rotary),
        tied=False,
    )


def _interleaved(
    f: Fields, sparse: Block, dense_block: Block, *, windows: WindowRule
) -> Architecture:
    """Mixtures every ``decoder_sparse_step`` layers, dense where ``mlp_only_layers`` says so."""
    step = f.size("decoder_sparse_step", default=1)
    dense_only = set(f.values("mlp_only_layers") or ())
    is_sparse: Callable[[int], bool] = lambda i: i not in dense_only and (i + 1) % step == 0  # noqa: E731
    count = layer_count(f)
    layers = [
        (sparse if is_sparse(index) else dense_block).layer(window)
        for index, window in enumerate(windows(f, count))
    ]
    heads = sparse.heads
    return decoder(
        f,
        layers,
        hidden=heads.hidden,
        last_norm=heads.hidden,
        buffers=rotary_buffers(f, heads.head_dim),
        tied=False,
    )
