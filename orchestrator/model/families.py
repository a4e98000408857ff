"""One reader for each family of models: how its configuration turns into an architecture.

Each is checked against transformers' own model built without memory (``tests/measure``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.model.architecture import CUSTOM, LINEAR, Architecture, Matrix
from orchestrator.model.decoder import (
    Block,
    WindowRule,
    decoder,
    dense,
    fused_projections,
    gated_feed_forward,
    layer_count,
    no_windows,
    plain_feed_forward,
    read_heads,
    rotary_buffers,
    separate_projections,
    windows_where,
)
from orchestrator.model.fields import WHERE, Fields
from orchestrator.model.mixtures import (
    deepseek,
    gpt_oss,
    granitemoe,
    mixtral,
    olmoe,
    qwen2_moe,
    qwen3_moe,
)

Reader = Callable[[Fields], Architecture]


def read_architecture(config: Mapping[str, Any], *, strict: bool = True) -> Architecture:
    """Read a Hugging Face configuration (``config.json`` or ``config.to_dict()``).

    Parameters
    ----------
    config : mapping
        With ``model_type`` and the sizes; what a configuration file may leave out (a bias, tied
        embeddings) has the default that transformers gives it.
    strict : bool
        Refuse a sliding window larger than the context, which bounds nothing and is mostly a
        mistake. Some published configurations have one.

    Raises
    ------
    ConfigError
        Naming the field that is missing, not positive or does not fit another one, or the
        model type where it is not known.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(
            "the configuration lacks it", where=f"{WHERE}.model_type", fix="For example llama"
        )
    reader = READERS.get(model_type)
    if reader is None:
        raise ConfigError(
            f"the arithmetic of {model_type!r} is not known",
            where=f"{WHERE}.model_type",
            fix=nearest(model_type, READERS),
        )
    architecture = reader(Fields(config, model_type))
    if strict:
        _check_windows(architecture)
    return architecture


def _check_windows(architecture: Architecture) -> None:
    limit = architecture.context_tokens
    for layer, _ in architecture.layers:
        window = layer.attention.window
        if limit is not None and window is not None and window > limit:
            raise ConfigError(
                f"{window} is larger than max_position_embeddings={limit}: it bounds nothing",
                where=f"{WHERE}.sliding_window",
                fix="Set it to null, or give the context it belongs to",
            )


def _llama(
    f: Fields,
    *,
    tied: bool = False,
    windows: WindowRule = no_windows,
    kv_default: bool = True,
    head_dim: str = "optional",
) -> Architecture:
    heads = read_heads(f, kv_default=kv_default, head_dim=head_dim)
    inner = f.size("intermediate_size")
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, inner, bias=f.flag("mlp_bias", False)),
    )
    return dense(
        f,
        Block(heads, matrices, norm=heads.hidden),
        windows=windows,
        buffers=rotary_buffers(f, heads.head_dim),
        tied=tied,
    )


def _smollm3(f: Fields) -> Architecture:
    interval = f.size("no_rope_layer_interval", default=4)
    rotary = f.values("no_rope_layers")

    def unrotated(index: int) -> bool:
        return not rotary[index] if rotary is not None else (index + 1) % interval == 0

    if rotary is not None and len(rotary) != layer_count(f):
        raise f.wrong("no_rope_layers", f"{len(rotary)} entries for {layer_count(f)} layers")
    windows = windows_where(unrotated, switch="use_sliding_window")
    return _llama(f, tied=True, windows=windows)


def _mistral(f: Fields) -> Architecture:
    heads = read_heads(f)
    matrices = (
        *separate_projections(heads),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    return dense(
        f,
        Block(heads, matrices, norm=heads.hidden),
        windows=windows_where(default=4096),
        buffers=rotary_buffers(f, heads.head_dim),
    )


def _qwen_windows(f: Fields, count: int) -> list[int | None]:
    first = f.count("max_window_layers", 28)
    return windows_where(lambda index: index >= first, switch="use_sliding_window")(f, count)


def _qwen2(f: Fields) -> Architecture:
    heads = read_heads(f)
    matrices = (
        *separate_projections(heads, bias=True, output_bias=False),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    return dense(
        f,
        Block(heads, matrices, norm=heads.hidden),
        windows=_qwen_windows,
        buffers=rotary_buffers(f, heads.head_dim),
    )


def _qwen3(f: Fields) -> Architecture:
    heads = read_heads(f, head_dim="required")
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    block = Block(heads, matrices, norm=heads.hidden, extra_vectors=2 * heads.head_dim)
    return dense(f, block, windows=_qwen_windows, buffers=rotary_buffers(f, heads.head_dim))


def _gemma(
    f: Fields, *, norms: int = 2, windows: WindowRule = no_windows, normed_heads: bool = False
) -> Architecture:
    heads = read_heads(f, head_dim="required")
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    extra = 2 * heads.head_dim if normed_heads else 0
    block = Block(heads, matrices, norm=heads.hidden, norms=norms, extra_vectors=extra)
    # Gemma 3 turns local and global layers by different frequencies.
    tables = len(set(windows(f, layer_count(f)))) if normed_heads else 1
    buffers = rotary_buffers(f, heads.head_dim, tables=tables) + 1  # and the embedding's scale
    return dense(f, block, windows=windows, buffers=buffers, tied=True)


def _gemma3_windows(f: Fields, count: int) -> list[int | None]:
    pattern = f.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return windows_where(lambda index: (index + 1) % pattern != 0, default=4096)(f, count)


def _phi3(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True)
    matrices = (
        *fused_projections(heads),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size"), fused=True),
    )
    return dense(
        f,
        Block(heads, matrices, norm=heads.hidden),
        windows=windows_where(),
        buffers=rotary_buffers(f, heads.head_dim),
    )


def _glm4(f: Fields) -> Architecture:
    heads = read_heads(f)
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", True), output_bias=False),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size"), fused=True),
    )
    return dense(
        f,
        Block(heads, matrices, norm=heads.hidden, norms=4),
        buffers=rotary_buffers(f, heads.head_dim, default=0.5),
    )


def _phi(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True, head_dim="derived")
    matrices = (
        *separate_projections(heads, bias=True),
        *plain_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    extra = 4 * heads.head_dim if f.flag("qk_layernorm", False) else 0
    block = Block(heads, matrices, norm=2 * heads.hidden, norms=1, extra_vectors=extra, gated=False)
    return dense(
        f,
        block,
        buffers=rotary_buffers(f, heads.head_dim, default=0.5),
        head_bias=True,
    )


def _gpt2(f: Fields) -> Architecture:
    heads = read_heads(f, kv_name=None, head_dim="derived")
    inner = f.size("n_inner", default=4 * heads.hidden)
    matrices = (
        *fused_projections(heads, bias=True),
        *plain_feed_forward(heads.hidden, inner),
    )
    return dense(
        f,
        Block(
            heads,
            matrices,
            norm=2 * heads.hidden,
            gated=False,
            needs_output=f.drops("resid_pdrop", 0.1),
        ),
        buffers=0,
        tied=True,
        positions=f.size("n_positions", "max_position_embeddings"),
    )


def _gpt_neox(f: Fields) -> Architecture:
    heads = read_heads(f, kv_name=None, head_dim="derived")
    matrices = (
        *fused_projections(heads, bias=f.flag("attention_bias", True)),
        *plain_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    return dense(
        f,
        Block(heads, matrices, norm=2 * heads.hidden, gated=False),
        buffers=rotary_buffers(f, heads.head_dim, default=0.25),
    )


def _falcon(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True, head_dim="derived", kv_name="num_kv_heads")
    grouped_heads = f.flag("new_decoder_architecture", False)
    single = f.flag("multi_query", True) and not grouped_heads
    projected = 1 if single else heads.kv_heads if grouped_heads else heads.heads
    bias = f.flag("bias", False)
    inner = f.size("ffn_hidden_size", default=4 * heads.hidden)
    matrices = (
        *fused_projections(heads, bias=bias, kind=CUSTOM, kv_heads=projected),
        *plain_feed_forward(heads.hidden, inner, bias=bias, kind=CUSTOM),
    )
    parallel_norms = f.count("num_ln_in_parallel_attn", 2 if grouped_heads else 1)
    separate = not f.flag("parallel_attn", True) or parallel_norms == 2
    block = Block(
        heads,
        matrices,
        norm=2 * heads.hidden,
        norms=2 if separate else 1,
        gated=False,
        # The grouped variant is repeated for every query head before transformers caches it.
        cached_kv_heads=1 if single else heads.heads,
    )
    # Its frequencies are made with alibi positions too, and not used.
    buffers = rotary_buffers(f, heads.head_dim)
    return dense(f, block, buffers=buffers, tied=True)


def _olmo(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True, head_dim="derived")
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    return dense(f, Block(heads, matrices, norm=0), buffers=rotary_buffers(f, heads.head_dim))


def _olmo2(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True)
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    normed = (heads.heads + heads.kv_heads) * heads.head_dim
    block = Block(heads, matrices, norm=heads.hidden, extra_vectors=normed, needs_output=True)
    return dense(f, block, buffers=rotary_buffers(f, heads.head_dim))


def _starcoder2(f: Fields) -> Architecture:
    heads = read_heads(f, head_dim="derived")
    bias = f.flag("use_bias", True)
    matrices = (
        *separate_projections(heads, bias=bias),
        *plain_feed_forward(heads.hidden, f.size("intermediate_size"), bias=bias),
    )
    return dense(
        f,
        Block(heads, matrices, norm=2 * heads.hidden, gated=False),
        windows=windows_where(),
        buffers=rotary_buffers(f, heads.head_dim),
        tied=True,
    )


def _cohere(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True)
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    normed = (heads.heads + heads.kv_heads) * heads.head_dim
    extra = normed if f.flag("use_qk_norm", False) else 0
    block = Block(heads, matrices, norm=heads.hidden, norms=1, extra_vectors=extra)
    return dense(f, block, buffers=rotary_buffers(f, heads.head_dim), tied=True)


def _stablelm(f: Fields) -> Architecture:
    heads = read_heads(f, kv_default=True, head_dim="derived")
    matrices = (
        *separate_projections(heads, bias=f.flag("use_qkv_bias", False), output_bias=False),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    normed = (heads.heads + heads.kv_heads) * heads.head_dim
    block = Block(
        heads,
        matrices,
        norm=2 * heads.hidden,
        norms=1 if f.flag("use_parallel_residual", False) else 2,
        extra_vectors=normed if f.flag("qk_layernorm", False) else 0,
    )
    return dense(f, block, buffers=rotary_buffers(f, heads.head_dim, default=0.25))


def _opt(f: Fields) -> Architecture:
    heads = read_heads(f, kv_name=None, head_dim="derived")
    bias = f.flag("enable_bias", True)
    norm = 2 * heads.hidden if f.flag("layer_norm_elementwise_affine", True) else 0
    matrices = (
        *separate_projections(heads, bias=bias),
        *plain_feed_forward(heads.hidden, f.size("ffn_dim"), bias=bias),
    )
    dropped = f.drops("dropout", 0.1)
    block = Block(heads, matrices, norm=norm, gated=False, needs_output=dropped)
    width = f.size("word_embed_proj_dim", default=heads.hidden)
    outer: tuple[Matrix, ...] = ()
    if width != heads.hidden:
        outer = (
            Matrix("feed_forward", heads.hidden, width, kind=LINEAR),
            Matrix("feed_forward", width, heads.hidden, kind=LINEAR),
        )
    last = f.flag("do_layer_norm_before", True) and not f.flag("_remove_final_layer_norm", False)
    return decoder(
        f,
        [block.layer(None)] * layer_count(f),
        hidden=heads.hidden,
        last_norm=norm if last else 0,
        buffers=0,
        tied=True,
        positions=f.size("max_position_embeddings") + 2,  # the table begins at an offset of two
        embedding=width,
        outer=outer,
    )


READERS: dict[str, Reader] = {
    "cohere": _cohere,
    "deepseek_v2": lambda f: deepseek(f, corrected=False),
    "deepseek_v3": lambda f: deepseek(f, corrected=True),
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": lambda f: _gemma(
        f, norms=4, windows=windows_where(lambda i: i % 2 == 0, default=4096)
    ),
    "gemma3_text": lambda f: _gemma(f, norms=4, windows=_gemma3_windows, normed_heads=True),
    "glm4": _glm4,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "gpt_oss": gpt_oss,
    "granite": _llama,
    "granitemoe": granitemoe,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": mixtral,
    "olmo": _olmo,
    "olmo2": _olmo2,
    "olmoe": olmoe,
    "opt": _opt,
    "phi": _phi,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}


def known_model_types() -> list[str]:
    """Model types whose arithmetic is known, sorted."""
    return sorted(READERS)
