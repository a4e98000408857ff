"""Puts a decoder together from its sizes and from what sets its family apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.model.architecture import (
    CUSTOM,
    EXPERT,
    FEED_FORWARD,
    LINEAR,
    PROJECTION,
    ROUTER,
    Architecture,
    Attention,
    Kept,
    Layer,
    Matrix,
)
from orchestrator.model.fields import Fields
from orchestrator.model.rope import scaled_context


@dataclass(frozen=True)
class Heads:
    """Query heads, key/value heads and their width."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int


def read_heads(
    f: Fields,
    *,
    kv_default: bool = False,
    head_dim: str = "optional",
    kv_name: str | None = "num_key_value_heads",
) -> Heads:
    """Heads of a configuration, checked against each other.

    Parameters
    ----------
    kv_default : bool
        Without ``num_key_value_heads`` there are as many as query heads.
    head_dim : str
        ``optional`` (else hidden over heads), ``required``, or ``derived`` (never read).
    kv_name : str or None
        Field with the key/value heads; None in families that do not group queries.
    """
    hidden = f.size("hidden_size", "n_embd")
    heads = f.size("num_attention_heads", "n_head")
    heads_name = f.named("num_attention_heads", "n_head")
    kv_heads = heads
    if kv_name is not None:
        kv_heads = f.size(kv_name, default=heads if kv_default else None)
        f.divides(kv_name, kv_heads, heads_name, heads)
    if head_dim == "required":
        width = f.size("head_dim")
    else:
        given = f.optional_size("head_dim") if head_dim == "optional" else None
        hidden_name = f.named("hidden_size", "n_embd")
        width = given or f.divides(heads_name, heads, hidden_name, hidden)
    return Heads(hidden, heads, kv_heads, width)


def separate_projections(
    h: Heads, *, bias: bool = False, output_bias: bool | None = None
) -> tuple[Matrix, ...]:
    """Query, key, value and output as four matrices; ``output_bias`` None: as the others."""
    kv = h.kv_heads * h.head_dim
    q = h.heads * h.head_dim
    return (
        Matrix(PROJECTION, h.hidden, q, bias),
        Matrix(PROJECTION, h.hidden, kv, bias),
        Matrix(PROJECTION, h.hidden, kv, bias),
        Matrix(PROJECTION, q, h.hidden, bias if output_bias is None else output_bias),
    )


def fused_projections(
    h: Heads,
    *,
    bias: bool = False,
    kind: str = LINEAR,
    kv_heads: int | None = None,
) -> tuple[Matrix, ...]:
    """Query, key and value as one matrix, and the output."""
    kv = h.kv_heads if kv_heads is None else kv_heads
    q = h.heads * h.head_dim
    return (
        Matrix(PROJECTION, h.hidden, q + 2 * kv * h.head_dim, bias, kind=kind),
        Matrix(PROJECTION, q, h.hidden, bias, kind=kind),
    )


def gated_feed_forward(
    hidden: int, inner: int, *, bias: bool = False, fused: bool = False
) -> tuple[Matrix, ...]:
    """Gate, up and down; gate and up may be one matrix."""
    if fused:
        first: tuple[Matrix, ...] = (Matrix(FEED_FORWARD, hidden, 2 * inner, bias),)
    else:
        first = (Matrix(FEED_FORWARD, hidden, inner, bias),) * 2
    return (*first, Matrix(FEED_FORWARD, inner, hidden, bias))


def plain_feed_forward(
    hidden: int, inner: int, *, bias: bool = True, kind: str = LINEAR
) -> tuple[Matrix, ...]:
    """Up and down with an activation between them."""
    return (
        Matrix(FEED_FORWARD, hidden, inner, bias, kind=kind),
        Matrix(FEED_FORWARD, inner, hidden, bias, kind=kind),
    )


def experts(hidden: int, inner: int, count: int, *, bias: bool = False) -> tuple[Matrix, ...]:
    """A router and ``count`` gated experts, held as two stacks that are no Linear modules."""
    return (
        Matrix(ROUTER, hidden, count, bias, kind=CUSTOM),
        Matrix(EXPERT, hidden, 2 * inner, bias, count, CUSTOM),
        Matrix(EXPERT, inner, hidden, bias, count, CUSTOM),
    )


def active_experts(f: Fields, count: int) -> int:
    """Experts that a token is routed to, of ``count``."""
    active = f.size("num_experts_per_tok")
    if active > count:
        raise f.wrong("num_experts_per_tok", f"{active} of {count} experts")
    return active


def rotary_buffers(f: Fields, width: int, *, default: float = 1.0, tables: int = 1) -> int:
    """Numbers of the rotary frequencies: each table is held twice, once as it was at first."""
    share = f.fraction("partial_rotary_factor", "rotary_pct", default=default)
    rotated = int(width * share)
    return 2 * tables * ((rotated + 1) // 2)


def layer_count(f: Fields) -> int:
    """Number of decoder layers."""
    return f.size("num_hidden_layers", "n_layer")


def context(f: Fields) -> int | None:
    """Longest sequence the configuration allows, its rotary positions scaled."""
    return scaled_context(f.config, f.optional_size("max_position_embeddings", "n_positions"))


WindowRule = Callable[[Fields, int], list["int | None"]]


def no_windows(f: Fields, count: int) -> list[int | None]:
    """Every layer sees everything."""
    return [None] * count


def windows_where(
    chosen: Callable[[int], bool] = lambda index: True,
    *,
    switch: str | None = None,
    default: int | None = None,
) -> WindowRule:
    """Layers by ``layer_types`` where the configuration has them, else those that ``chosen`` picks.

    Parameters
    ----------
    switch : str, optional
        A flag that turns windows on.
    default : int, optional
        The window of a configuration that has no ``sliding_window``; null in it means none.

    Raises
    ------
    ConfigError
        From the rule, if ``layer_types`` is not as long as the model, names a kind that is not
        attention, or names windows and there is no ``sliding_window``.
    """

    def rule(f: Fields, count: int) -> list[int | None]:
        kinds = f.values("layer_types")
        if kinds is None:
            on = switch is None or f.flag(switch, False)
            local = [on and chosen(index) for index in range(count)]
        else:
            if len(kinds) != count:
                raise f.wrong("layer_types", f"{len(kinds)} entries for {count} layers")
            for kind in kinds:
                if kind not in ("full_attention", "sliding_attention"):
                    raise f.wrong("layer_types", f"{kind} is not known here")
            local = [kind == "sliding_attention" for kind in kinds]
        if not any(local):
            return [None] * count  # whatever sliding_window says, nobody reads it
        window = f.optional_size("sliding_window")
        if window is None and not f.mentions("sliding_window"):
            window = default
        if window is None and kinds is not None:
            window = f.size("sliding_window")
        return [window if is_local else None for is_local in local]

    return rule


# Tensors that an activation of transformers keeps for its gradient, besides its result, which the
# next product keeps; of those that are not here, one.
_ACTIVATION_TENSORS = {
    "gelu_10": 2,
    "gelu_accurate": 4,
    "gelu_fast": 7,
    "gelu_new": 4,
    "gelu_python": 3,
    "gelu_python_tanh": 4,
    "gpt_oss": 4,  # whatever its configuration says: both factors are clamped first
    "linear": 0,
    "quick_gelu": 2,
    "relu": 0,
    "sigmoid": 0,
    "tanh": 0,
    "xielu": 4,
}


def read_kept(
    f: Fields,
    *,
    norm_tensors: tuple[int, int] = (1, 1),
    attention_numbers: int = 0,
    activation: str = "silu",
    parallel: bool = False,
    dropout: tuple[str, float] | None = None,
    attention_dropout: tuple[str, float] = ("attention_dropout", 0.0),
) -> Kept:
    """What is kept for a backward pass; of both rates the field and the family's default."""
    fields = ("hidden_activation", "hidden_act", "activation_function", "activation")
    named = next((name for field in fields if (name := f.config.get(field))), activation)
    known = f.model_type if f.model_type in _ACTIVATION_TENSORS else str(named)
    return Kept(
        norm_tensors=norm_tensors,
        attention_numbers=attention_numbers,
        activation_tensors=_ACTIVATION_TENSORS.get(known, 1),
        parallel=parallel,
        dropout=dropout is not None and f.drops(*dropout),
        attention_dropout=f.drops(*attention_dropout),
        capped=bool(f.config.get("attn_logit_softcapping", f.model_type == "gemma2")),
    )


@dataclass(frozen=True)
class Block:
    """What every layer of a dense decoder has, but for its window.

    Attributes
    ----------
    matrices : tuple of Matrix
    norm : int
        Parameters of one normalisation: hidden size, twice that with a bias, 0 without any.
    norms : int
        Normalisations over the hidden size in a layer.
    extra_vectors : int
        Norms of queries and keys, attention sinks.
    cached_kv_heads : int or None
        Key/value heads in the cache where they are not those of the projections.
    needs_output : bool
        See :class:`Layer`; always so with four norms, or where some of the output is dropped.
    kept : Kept
        But for the queries and keys that are normed.
    normed_heads : bool
        Queries and keys are normed by themselves.
    """

    heads: Heads
    matrices: tuple[Matrix, ...]
    norm: int
    norms: int = 2
    extra_vectors: int = 0
    gated: bool = True
    cached_kv_heads: int | None = None
    active_experts: int = 0
    needs_output: bool = False
    kept: Kept = field(default_factory=Kept)
    normed_heads: bool = False

    def layer(self, window: int | None) -> Layer:
        """The layer with this window."""
        h = self.heads
        kv_heads = h.kv_heads if self.cached_kv_heads is None else self.cached_kv_heads
        normed = (h.heads + h.kv_heads) * h.head_dim if self.normed_heads else 0
        return Layer(
            attention=Attention(h.heads, kv_heads, h.head_dim, h.head_dim, window),
            matrices=self.matrices,
            vectors=self.norms * self.norm + self.extra_vectors,
            norms=self.norms,
            active_experts=self.active_experts,
            gated=self.gated,
            # Four norms: one before and one behind either part.
            needs_output=self.needs_output or self.norms == 4 or self.kept.dropout,
            kept=replace(self.kept, normed_numbers=normed),
        )


def decoder(
    f: Fields,
    layers: Sequence[Layer],
    *,
    hidden: int,
    last_norm: int,
    buffers: int,
    tied: bool,
    head_bias: bool = False,
    positions: int = 0,
    embedding: int | None = None,
    outer: tuple[Matrix, ...] = (),
) -> Architecture:
    """A model around its layers; ``tied`` is the family's default."""
    return Architecture(
        model_type=f.model_type,
        vocabulary=f.size("vocab_size"),
        hidden=hidden,
        embedding=hidden if embedding is None else embedding,
        layers=tuple(Counter(layers).items()),  # in order of first appearance
        vectors=last_norm,
        tied=f.flag("tie_word_embeddings", tied),
        positions=positions,
        outer=outer,
        head_bias=head_bias,
        float32_buffers=buffers,
        context_tokens=context(f),
    )


def dense(
    f: Fields,
    block: Block,
    *,
    windows: WindowRule = no_windows,
    buffers: int,
    tied: bool = False,
    head_bias: bool = False,
    positions: int = 0,
) -> Architecture:
    """A model whose layers differ in their windows only."""
    count = layer_count(f)
    return decoder(
        f,
        [block.layer(window) for window in windows(f, count)],
        hidden=block.heads.hidden,
        last_norm=block.norm,
        buffers=buffers,
        tied=tied,
        head_bias=head_bias,
        positions=positions,
    )
