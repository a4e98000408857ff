"""One reader for each family of models: how its configuration turns into an architecture.

Each is checked against transformers' own model built without memory (``tests/measure``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.model.architecture import CUSTOM, LINEAR, Architecture, Matrix
from orchestrator.model.decoder import (
    Block,
    Heads,
    WindowRule,
    active_experts,
    decoder,
    dense,
    experts,
    fused_projections,
    gated_feed_forward,
    layer_count,
    no_windows,
    plain_feed_forward,
    read_heads,
    read_kept,
    rotary_buffers,
    separate_projections,
    windows_where,
)
from orchestrator.model.fields import WHERE, Fields
from orchestrator.model.mixtures import deepseek, qwen2_moe, qwen3_moe

Reader = Callable[[Fields], Architecture]
# A truth value: the family's, or that of a field with a default.
Switch = bool | tuple[str, bool]


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


def _no_vectors(f: Fields, heads: Heads) -> int:
    return 0


def _each_head_normed(f: Fields, heads: Heads) -> int:
    return 2 * heads.head_dim


def _all_heads_normed(f: Fields, heads: Heads) -> int:
    return (heads.heads + heads.kv_heads) * heads.head_dim


def _standard(
    f: Fields,
    *,
    kv_name: str | None = "num_key_value_heads",
    kv_default: bool = False,
    head_dim: str = "optional",
    bias: Switch = False,
    output_bias: bool | None = None,
    fused: bool = False,
    plain: bool = False,
    fused_gate: bool = False,
    inner_bias: Switch = False,
    expert_count: tuple[str, ...] = (),
    norm_vectors: int = 1,
    norms: int = 2,
    norm_tensors: tuple[int, int] = (1, 1),
    extra_vectors: Callable[[Fields, Heads], int] = _no_vectors,
    needs_output: bool = False,
    parallel: Switch = False,
    activation: str = "silu",
    dropout: tuple[str, float] | None = None,
    windows: WindowRule = no_windows,
    rotary: float = 1.0,
    tied: bool = False,
    head_bias: bool = False,
) -> Architecture:
    """A decoder of equal layers with rotary positions; the defaults are Mistral's but its windows.

    Parameters
    ----------
    kv_name, kv_default, head_dim
        As for :func:`read_heads`.
    bias, output_bias, fused
        Of the projections.
    plain, fused_gate, inner_bias
        Of the feed-forward part: without a gate, or with the gate and up in one matrix.
    expert_count
        Fields with the number of experts, of a family of mixtures.
    norm_vectors
        Parameters of a norm, in hidden sizes: 2 with a bias, 0 without any.
    norms, extra_vectors, needs_output
        As for :class:`Block`.
    norm_tensors, parallel, activation, dropout
        As for :func:`read_kept`.
    rotary
        Share of a head that is turned, where the configuration is silent.
    """
    heads = read_heads(f, kv_default=kv_default, head_dim=head_dim, kv_name=kv_name)
    has_bias = _on(f, bias)
    if fused:
        matrices = fused_projections(heads, bias=has_bias)
    else:
        matrices = separate_projections(heads, bias=has_bias, output_bias=output_bias)
    inner, inner_has_bias, active = f.size("intermediate_size"), _on(f, inner_bias), 0
    if expert_count:
        count = f.size(*expert_count)
        active = active_experts(f, count)
        matrices += experts(heads.hidden, inner, count, bias=inner_has_bias)
    elif plain:
        matrices += plain_feed_forward(heads.hidden, inner, bias=inner_has_bias)
    else:
        matrices += gated_feed_forward(heads.hidden, inner, bias=inner_has_bias, fused=fused_gate)
    block = Block(
        heads,
        matrices,
        norm=norm_vectors * heads.hidden,
        norms=norms,
        extra_vectors=extra_vectors(f, heads),
        gated=not plain,
        active_experts=active,
        needs_output=needs_output,
        kept=read_kept(
            f,
            # A norm with a bias is torch's own.
            norm_tensors=(0, 1) if norm_vectors == 2 else norm_tensors,
            attention_numbers=_attention_numbers(f, heads, fused, rotary),
            parallel=_on(f, parallel),
            activation=activation,
            dropout=dropout,
        ),
        normed_heads=extra_vectors(f, heads) > heads.heads,
    )
    buffers = rotary_buffers(f, heads.head_dim, default=rotary)
    return dense(f, block, windows=windows, buffers=buffers, tied=tied, head_bias=head_bias)


def _attention_numbers(f: Fields, heads: Heads, fused: bool, rotary: float) -> int:
    """What values hold of a fused projection, and the output's copy where heads turn in part."""
    raw = (heads.heads + heads.kv_heads) * heads.head_dim if fused else 0
    in_part = fused or f.fraction("partial_rotary_factor", "rotary_pct", default=rotary) < 1
    return raw + in_part * heads.heads * heads.head_dim


def _on(f: Fields, switch: Switch) -> bool:
    return switch if isinstance(switch, bool) else f.flag(*switch)


def _smollm3_windows(f: Fields, count: int) -> list[int | None]:
    interval = f.size("no_rope_layer_interval", default=4)
    rotary = f.values("no_rope_layers")

    def unrotated(index: int) -> bool:
        return not rotary[index] if rotary is not None else (index + 1) % interval == 0

    if rotary is not None and len(rotary) != count:
        raise f.wrong("no_rope_layers", f"{len(rotary)} entries for {count} layers")
    return windows_where(unrotated, switch="use_sliding_window")(f, count)


def _qwen_windows(f: Fields, count: int) -> list[int | None]:
    first = f.count("max_window_layers", 28)
    return windows_where(lambda index: index >= first, switch="use_sliding_window")(f, count)


def _gemma(
    f: Fields, *, norms: int = 2, windows: WindowRule = no_windows, normed_heads: bool = False
) -> Architecture:
    heads = read_heads(f, head_dim="required")
    matrices = (
        *separate_projections(heads, bias=f.flag("attention_bias", False)),
        *gated_feed_forward(heads.hidden, f.size("intermediate_size")),
    )
    extra = _each_head_normed(f, heads) if normed_heads else 0
    block = Block(
        heads,
        matrices,
        norm=heads.hidden,
        norms=norms,
        extra_vectors=extra,
        kept=read_kept(f, norm_tensors=(2, 0)),
        normed_heads=normed_heads,
    )
    # Gemma 3 turns local and global layers by different frequencies.
    tables = len(set(windows(f, layer_count(f)))) if normed_heads else 1
    buffers = rotary_buffers(f, heads.head_dim, tables=tables) + 1  # and the embedding's scale
    return dense(f, block, windows=windows, buffers=buffers, tied=True)


def _gemma3_windows(f: Fields, count: int) -> list[int | None]:
    pattern = f.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return windows_where(lambda index: (index + 1) % pattern != 0, default=4096)(f, count)


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
            kept=read_kept(
                f,
                norm_tensors=(0, 1),
                activation="gelu_new",
                dropout=("resid_pdrop", 0.1),
                attention_dropout=("attn_pdrop", 0.1),
            ),
        ),
        buffers=0,
        tied=True,
        positions=f.size("n_positions", "max_position_embeddings"),
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
        kept=replace(
            read_kept(
                f,
                norm_tensors=(0, 1),
                attention_numbers=heads.heads * heads.head_dim,
                parallel=separate and f.flag("parallel_attn", True),
                dropout=("hidden_dropout", 0.0),
                # With rotary positions its fused attention drops nothing.
                attention_dropout=("attention_dropout" if f.flag("alibi", False) else "", 0.0),
            ),
            broadcast=single,
        ),
    )
    # Its frequencies are made with alibi positions too, and not used.
    buffers = rotary_buffers(f, heads.head_dim)
    return dense(f, block, buffers=buffers, tied=True)


def _stablelm(f: Fields) -> Architecture:
    return _standard(
        f,
        kv_default=True,
        head_dim="derived",
        bias=("use_qkv_bias", False),
        output_bias=False,
        norm_vectors=2,
        norms=1 if f.flag("use_parallel_residual", False) else 2,
        extra_vectors=_all_heads_normed if f.flag("qk_layernorm", False) else _no_vectors,
        dropout=("hidden_dropout", 0.0),
        rotary=0.25,
    )


def _opt(f: Fields) -> Architecture:
    heads = read_heads(f, kv_name=None, head_dim="derived")
    bias = f.flag("enable_bias", True)
    norm = 2 * heads.hidden if f.flag("layer_norm_elementwise_affine", True) else 0
    matrices = (
        *separate_projections(heads, bias=bias),
        *plain_feed_forward(heads.hidden, f.size("ffn_dim"), bias=bias),
    )
    kept = read_kept(f, norm_tensors=(0, 1), activation="relu", dropout=("dropout", 0.1))
    block = Block(heads, matrices, norm=norm, gated=False, kept=kept)
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


_ATTENTION_BIAS = ("attention_bias", False)
_LOCAL_EXPERTS = ("num_local_experts", "num_experts")
_llama = partial(_standard, kv_default=True, bias=_ATTENTION_BIAS, inner_bias=("mlp_bias", False))

READERS: dict[str, Reader] = {
    "cohere": partial(
        _standard,
        norm_tensors=(3, 0),
        kv_default=True,
        bias=_ATTENTION_BIAS,
        norms=1,
        extra_vectors=lambda f, h: _all_heads_normed(f, h) if f.flag("use_qk_norm", False) else 0,
        tied=True,
    ),
    "deepseek_v2": partial(deepseek, corrected=False),
    "deepseek_v3": partial(deepseek, corrected=True),
    "falcon": _falcon,
    "gemma": _gemma,
    "gemma2": partial(_gemma, norms=4, windows=windows_where(lambda i: i % 2 == 0, default=4096)),
    "gemma3_text": partial(_gemma, norms=4, windows=_gemma3_windows, normed_heads=True),
    "glm4": partial(
        _standard,
        bias=("attention_bias", True),
        output_bias=False,
        fused_gate=True,
        norms=4,
        rotary=0.5,
    ),
    "gpt2": _gpt2,
    "gpt_neox": partial(
        _standard,
        kv_name=None,
        head_dim="derived",
        bias=("attention_bias", True),
        fused=True,
        plain=True,
        inner_bias=True,
        norm_vectors=2,
        parallel=("use_parallel_residual", True),
        dropout=("hidden_dropout", 0.0),
        rotary=0.25,
    ),
    "gpt_oss": partial(
        _standard,
        kv_default=True,
        head_dim="required",
        bias=("attention_bias", True),
        expert_count=_LOCAL_EXPERTS,
        inner_bias=True,
        norm_tensors=(2, 0),
        extra_vectors=lambda f, h: h.heads,  # a learnt sink for each head
        windows=windows_where(lambda index: index % 2 == 0, default=128),
    ),
    "granite": _llama,
    "granitemoe": partial(
        _standard, kv_default=True, bias=_ATTENTION_BIAS, expert_count=_LOCAL_EXPERTS
    ),
    "llama": _llama,
    "mistral": partial(_standard, windows=windows_where(default=4096)),
    "mixtral": partial(_standard, expert_count=_LOCAL_EXPERTS, windows=windows_where()),
    "olmo": partial(
        _standard,
        kv_default=True,
        head_dim="derived",
        bias=_ATTENTION_BIAS,
        norm_vectors=0,
        norm_tensors=(1, 0),
    ),
    "olmo2": partial(
        _standard,
        kv_default=True,
        bias=_ATTENTION_BIAS,
        extra_vectors=_all_heads_normed,
        needs_output=True,
        norm_tensors=(2, 0),
    ),
    "olmoe": partial(
        _standard,
        kv_default=True,
        head_dim="derived",
        bias=_ATTENTION_BIAS,
        expert_count=("num_experts", "num_local_experts"),
        extra_vectors=_all_heads_normed,
    ),
    "opt": _opt,
    "phi": partial(
        _standard,
        kv_default=True,
        head_dim="derived",
        bias=True,
        plain=True,
        inner_bias=True,
        norm_vectors=2,
        norms=1,
        extra_vectors=lambda f, h: 4 * h.head_dim if f.flag("qk_layernorm", False) else 0,
        activation="gelu_new",
        dropout=("resid_pdrop", 0.0),
        rotary=0.5,
        head_bias=True,
    ),
    "phi3": partial(
        _standard,
        kv_default=True,
        fused=True,
        fused_gate=True,
        dropout=("resid_pdrop", 0.0),
        windows=windows_where(),
    ),
    "qwen2": partial(_standard, bias=True, output_bias=False, windows=_qwen_windows),
    "qwen2_moe": qwen2_moe,
    "qwen3": partial(
        _standard,
        head_dim="required",
        bias=_ATTENTION_BIAS,
        extra_vectors=_each_head_normed,
        windows=_qwen_windows,
    ),
    "qwen3_moe": qwen3_moe,
    "smollm3": partial(_llama, tied=True, windows=_smollm3_windows),
    "stablelm": _stablelm,
    "starcoder2": partial(
        _standard,
        head_dim="derived",
        bias=("use_bias", True),
        plain=True,
        inner_bias=("use_bias", True),
        norm_vectors=2,
        dropout=("residual_dropout", 0.0),
        windows=windows_where(),
        tied=True,
    ),
}
