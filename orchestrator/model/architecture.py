"""What a model is made of, as arithmetic needs it: matrices, heads, windows, experts. No torch.

::

    Hugging Face configuration --read_architecture--> Architecture
        embedding, position table             read by look-up
        layers: (Layer, how many like it)     attention, matrices, small vectors
        head                                  its own matrix, or the embedding once more (tied)

Everything else in this package (parameters, bytes, operations, time, what fits) is computed from
these few numbers. The families of models are read in :mod:`.families`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Classes of operators: what a step's time is broken down by.
EMBEDDING = "embedding"
PROJECTION = "projection"  # of attention: query, key, value, output
ATTENTION = "attention"  # scores and their product with the values
FEED_FORWARD = "feed_forward"
EXPERT = "expert"  # routed experts
ROUTER = "router"
HEAD = "head"
ELEMENTWISE = "elementwise"  # norms, rotary embedding, activations, residuals
DEQUANTIZE = "dequantize"
LOSS = "loss"
OPTIMIZER = "optimizer"

# How transformers holds a matrix, which decides whether bitsandbytes quantizes it.
LINEAR = "linear"  # torch.nn.Linear or GPT-2's Conv1D: quantized
CUSTOM = "custom"  # a subclass of Linear (Falcon), a router, a fused stack of experts: never


@dataclass(frozen=True)
class Matrix:
    """A weight matrix, or ``count`` of one shape.

    Attributes
    ----------
    part : str
        Operator class it belongs to.
    inputs, outputs : int
        Features in and out.
    bias : bool
        Whether each has a bias of ``outputs``.
    count : int
        How many the layer holds (routed experts: all of them).
    kind : str
        ``LINEAR`` or ``CUSTOM``.
    expands_cache : bool
        It turns compressed keys and values back into whole ones (latent attention).
    """

    part: str
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    kind: str = LINEAR
    expands_cache: bool = False

    @property
    def elements(self) -> int:
        """Weights without biases, of all ``count``."""
        return self.count * self.inputs * self.outputs

    @property
    def biases(self) -> int:
        """Biases of all ``count``."""
        return self.count * self.outputs if self.bias else 0


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: what is cached is one compressed vector a token.

    Attributes
    ----------
    rank : int
        Width of the compressed keys and values (``kv_lora_rank``).
    rotary : int
        Width of the shared rotary key beside it (``qk_rope_head_dim``).
    """

    rank: int
    rotary: int


@dataclass(frozen=True)
class Attention:
    """Heads of one layer.

    Attributes
    ----------
    heads, kv_heads : int
        Query heads, and the key/value heads they share: these size the cache.
    key_dim, value_dim : int
        Width of one head's queries and keys, and of its values.
    window : int or None
        Positions a token sees, itself included; None for all of them.
    latent : Latent or None
        Set for multi-head latent attention.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None
    latent: Latent | None = None

    @property
    def token_width(self) -> int:
        """Numbers of one token's queries and output, and of its keys and values before a cache."""
        kv_heads = self.heads if self.latent is not None else self.kv_heads
        return (self.heads + kv_heads) * (self.key_dim + self.value_dim)

    @property
    def cached_elements(self) -> int:
        """Numbers that the cache keeps of one token."""
        if self.latent is not None:
            return self.latent.rank + self.latent.rotary
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class Kept:
    """What transformers' eager code keeps of a layer for its backward pass, where families differ.

    Attributes
    ----------
    norm_tensors : (int, int)
        Tensors that a norm keeps in float32, and in the type of what it is given: one written in
        Python keeps its input widened, and its result before the weight.
    normed_numbers : int
        Numbers of a token that are normed by themselves: of queries, of keys, of what is
        compressed.
    attention_numbers : int
        Numbers of a token that fused attention keeps besides queries, keys, values and output: of
        a projection that values are a part of, of an output that is copied.
    activation_tensors : int
        Tensors of the feed-forward part's width that its activation keeps: 1 where it is one
        operation.
    parallel : bool
        The norms of both parts of a layer have the same input.
    dropout, attention_dropout : bool
        Some of what both parts of a layer give is dropped; some of the attention's scores.
    capped : bool
        Scores are bounded by a hyperbolic tangent, and so are the logits.
    broadcast : bool
        Keys and values are handed to attention with fewer heads than queries, which no fused code
        of torch takes.
    """

    norm_tensors: tuple[int, int] = (1, 1)
    normed_numbers: int = 0
    attention_numbers: int = 0
    activation_tensors: int = 1
    parallel: bool = False
    dropout: bool = False
    attention_dropout: bool = False
    capped: bool = False
    broadcast: bool = False


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes
    ----------
    matrices : tuple of Matrix
    vectors : int
        Parameters that are no matrix: norms, attention sinks. Biases are the matrices' own.
    norms : int
        Normalisations over the hidden size, counted for their memory traffic.
    active_experts : int
        Routed experts that a token uses; 0 where there is no mixture.
    float32_buffers : int
        Numbers kept in float32 beside the parameters (a router's correction).
    gated : bool
        Whether the feed-forward part multiplies an activated gate with a second projection.
    needs_output : bool
        A backward pass needs the result of the layer's last product: it is normed, or some of it
        dropped. Where it is only added, checkpointing does not compute it again.
    kept : Kept
    """

    attention: Attention
    matrices: tuple[Matrix, ...]
    vectors: int
    norms: int = 2
    active_experts: int = 0
    float32_buffers: int = 0
    gated: bool = True
    needs_output: bool = False
    kept: Kept = field(default_factory=Kept)


@dataclass(frozen=True, eq=False)
class Architecture:
    """A decoder-only language model in numbers.

    Compares by identity: one is made once for a configuration and used for many estimates.

    Attributes
    ----------
    vocabulary, hidden : int
    embedding : int
        Width of the token embedding: ``hidden`` but in models that project it.
    positions : int
        Rows of a learnt position table; 0 with rotary or other positions.
    layers : tuple of (Layer, int)
        Distinct layers and how many there are of each, in order of first appearance.
    outer : tuple of Matrix
        Matrices outside the layers but for the head (an embedding's projections).
    vectors : int
        Parameters outside the layers that are no matrix (the last norm).
    tied : bool
        The head is the embedding: no parameters of its own, but read all the same.
    head_bias : bool
    float32_buffers : int
        Numbers held in float32 outside the layers (rotary frequencies).
    context_tokens : int or None
        Longest sequence the configuration allows; None where it is silent.
    """

    model_type: str
    vocabulary: int
    hidden: int
    embedding: int
    layers: tuple[tuple[Layer, int], ...]
    vectors: int
    tied: bool
    positions: int = 0
    outer: tuple[Matrix, ...] = ()
    head_bias: bool = False
    float32_buffers: int = 0
    context_tokens: int | None = None

    @property
    def layer_count(self) -> int:
        """Decoder layers in all."""
        return sum(count for _, count in self.layers)

    @property
    def head(self) -> Matrix:
        """The output head as it is computed, tied or not."""
        return Matrix(HEAD, self.embedding, self.vocabulary, self.head_bias)
