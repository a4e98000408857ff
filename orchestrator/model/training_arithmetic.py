"""A training step: FLOPs of forward, backward and optimizer, MFU, memory.

Model FLOPs are what the mathematics needs: backward costs twice the forward pass, once for the
gradients of the activations and once for those of the weights. What is computed again to save
memory counts as hardware FLOPs only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from orchestrator.model.architecture import (
    ATTENTION,
    EMBEDDING,
    EXPERT,
    FEED_FORWARD,
    LOSS,
    OPTIMIZER,
    PROJECTION,
    ROUTER,
    Architecture,
    Layer,
)
from orchestrator.model.kv_cache import CacheFormat
from orchestrator.model.operations import (
    BACKWARD,
    FORWARD,
    IDEAL,
    Execution,
    Operation,
    flops,
    forward,
    inner_width,
    routed_width,
)
from orchestrator.model.parameters import parameter_count
from orchestrator.model.weights import DTYPE_BYTES, WeightFormat

_FLOAT32 = 4
# Numbers that AdamW reads or writes for a parameter: weight, gradient and both moments in, all but
# the gradient out.
_ADAMW_PASSES = 7
# Fused attention computes its scores again on the way back: five products where there were two.
_RECOMPUTED_ATTENTION = 2.5


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one training step.

    Attributes
    ----------
    forward, backward : float
        Model FLOPs; they add up to ``model``.
    hardware : float
        With what checkpointing and fused attention compute again.
    """

    forward: float
    backward: float
    hardware: float

    @property
    def model(self) -> float:
        """What MFU is about."""
        return self.forward + self.backward


@lru_cache(maxsize=1024)
def step_flops(
    architecture: Architecture,
    batch: int,
    tokens: int,
    *,
    causal: bool = True,
    checkpointing: bool = False,
    fused_attention: bool = True,
) -> StepFlops:
    """FLOPs of forward and backward over ``batch`` sequences of ``tokens``, all logits.

    Parameters
    ----------
    causal : bool
        Count the half of attention that the mask leaves; False for the square that is executed by
        code that masks afterwards, and that ``torch.utils.flop_counter`` counts.
    checkpointing : bool
        Every layer is computed once more in the backward pass, but for a last product whose result
        nothing needs: torch stops recomputing there.
    """
    step = _forward(architecture, batch, tokens, WeightFormat(), Execution(causal=causal))
    once = flops(step)
    attention = sum(o.count * o.flops for o in step if o.part == ATTENTION)
    again = flops(_recomputed(architecture, step)) if checkpointing else 0.0
    if fused_attention:
        again += (_RECOMPUTED_ATTENTION - 2.0) * attention
    return StepFlops(once, 2.0 * once, 3.0 * once + again)


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of a training step.

    Activations go while gradients come: the two are not there at once, and a step is highest at the
    end of the forward pass or at its own.

    Attributes
    ----------
    weights_bytes, gradients_bytes, optimizer_bytes : int
        The last are AdamW's moments.
    activations_bytes : int
        Kept for the backward pass.
    logits_bytes : int
        What the loss holds of all logits at once, in float32 whatever they were computed in.
    copies_bytes : int
        Of the weights, in the type that autocast computes in.
    recomputed_bytes : int
        What a layer keeps that is computed once more in the backward pass.
    working_bytes : int
        What AdamW's update holds for a moment.
    accumulated : bool
        The gradients of one micro-batch are there during the next.
    """

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    copies_bytes: int = 0
    recomputed_bytes: int = 0
    working_bytes: int = 0
    accumulated: bool = False

    @property
    def states_bytes(self) -> int:
        """Weights, gradients and moments: exact, and all there when a step ends."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> int:
        """At the step's highest."""
        ahead = self.copies_bytes + self.activations_bytes
        ahead += max(self.logits_bytes, self.recomputed_bytes)
        if self.accumulated:
            ahead += self.gradients_bytes
        end = self.gradients_bytes + max(self.recomputed_bytes, self.working_bytes)
        return self.weights_bytes + self.optimizer_bytes + max(ahead, end)


def training_memory(
    architecture: Architecture,
    batch: int,
    tokens: int,
    *,
    parameter_dtype: str = "float32",
    compute_dtype: str | None = None,
    optimizer: bool = True,
    checkpointing: bool = False,
    attention: str = "sdpa",
    accumulated: bool = False,
    cuda: bool = False,
) -> TrainingMemory:
    """Memory of one step of eager transformers code with AdamW.

    Parameters
    ----------
    parameter_dtype : str
        Of weights, gradients and moments.
    compute_dtype : str, optional
        Of activations under autocast, which keeps a copy of the weights in it; None: the same.
    attention : str
        ``eager``: every layer keeps its square of scores in float32, and once more as computed with
        where that is another type; otherwise none, where there is fused code for it.
    accumulated : bool
        ``batch`` is one of several micro-batches of a step.
    cuda : bool
        There AdamW updates all tensors together, and so holds a root for every second moment,
        elsewhere two copies of one tensor after the other; a mask of dropout takes a byte a number,
        elsewhere as much as what is dropped; and fused attention keeps no scores though some are
        dropped.
    """
    width = DTYPE_BYTES[parameter_dtype]
    active = DTYPE_BYTES[compute_dtype or parameter_dtype]
    parameters = parameter_count(architecture)
    states = parameters * width
    copies = 0
    if compute_dtype not in (None, parameter_dtype):
        # What is looked up is not computed with; a tied table is, by the head.
        looked_up = 0 if architecture.tied else architecture.vocabulary * architecture.embedding
        looked_up += architecture.positions * architecture.hidden
        copies = (parameters - looked_up - _expert_parameters(architecture)) * active
    rows = batch * tokens
    of_layers = [
        (
            rows * _kept_bytes_per_token(architecture, layer, active, width, cuda)
            + rows * _kept_bytes_of_attention(layer, tokens, active, attention, cuda),
            count,
        )
        for layer, count in architecture.layers
    ]
    # Going back: what the loss kept of them, its gradient and that of the logits.
    capped = architecture.layers[0][0].kept.capped
    logits = rows * architecture.vocabulary * (3 * _FLOAT32 + capped * active)
    working = 0
    if optimizer:
        largest = round(max(_tensors(architecture)))
        working = states if cuda else 2 * largest * width
    inputs = architecture.layer_count * rows * architecture.hidden * width
    return TrainingMemory(
        weights_bytes=states,
        gradients_bytes=states,
        optimizer_bytes=2 * states if optimizer else 0,
        activations_bytes=inputs if checkpointing else sum(each * n for each, n in of_layers),
        logits_bytes=logits,
        copies_bytes=copies,
        recomputed_bytes=max(each for each, _ in of_layers) if checkpointing else 0,
        working_bytes=working,
        accumulated=accumulated,
    )


@dataclass(frozen=True)
class StepOperations:
    """Operations of a training step by phase."""

    forward: tuple[Operation, ...]
    backward: tuple[Operation, ...]
    optimizer: tuple[Operation, ...]


def step_operations(
    architecture: Architecture,
    batch: int,
    tokens: int,
    *,
    parameter_dtype: str = "float32",
    compute_dtype: str | None = None,
    execution: Execution = IDEAL,
    checkpointing: bool = False,
) -> StepOperations:
    """Operations of one step: the forward pass and its loss, twice as much back, AdamW."""
    dtype = compute_dtype or parameter_dtype
    weights = WeightFormat("none", dtype)
    ahead = _forward(architecture, batch, tokens, weights, execution)
    # Autocast knows no grouped product: experts compute in the type of their weights.
    wider = DTYPE_BYTES[parameter_dtype] / DTYPE_BYTES[dtype]
    ahead = tuple(
        replace(o, dtype=parameter_dtype, bytes=wider * o.bytes) if o.part == EXPERT else o
        for o in ahead
    )
    logits = float(batch * tokens * architecture.vocabulary)
    # Widened, reduced, subtracted, exponentiated, gathered; then once more for its gradient.
    loss = Operation(
        LOSS,
        0.0,
        6.0 * logits * _FLOAT32,
        launches=6,
        dtype=dtype,
        working_bytes=4.0 * logits,
        elements=logits,
        mode=FORWARD,
    )
    ahead = (*ahead, loss)
    back = tuple(_backward(operation) for operation in ahead if operation.part != EMBEDDING)
    back = (_embedding_gradient(architecture, parameter_dtype), *back)
    if checkpointing:
        back = (*back, *_recomputed(architecture, ahead))
    return StepOperations(ahead, back, _optimizer(architecture, parameter_dtype))


def _recomputed(architecture: Architecture, ahead: tuple[Operation, ...]) -> tuple[Operation, ...]:
    """What checkpointing runs once more of a forward pass: its layers."""
    kept: list[Operation] = []
    # In the order of `forward`: what is outside the layers, then a layer kind after the other.
    position = 1 + len(architecture.outer)
    for layer, _ in architecture.layers:
        of_layer = list(ahead[position : position + len(layer.matrices) + 2])
        position += len(of_layer)
        last = layer.matrices[-1]
        if last.part == FEED_FORWARD and last.outputs > 1 and not layer.needs_output:
            del of_layer[len(layer.matrices) - 1]
        kept += of_layer
    return tuple(kept)


def _embedding_gradient(architecture: Architecture, dtype: str) -> Operation:
    """As large as the table, and all but a few rows of it zeros."""
    table = float(architecture.vocabulary * architecture.embedding * DTYPE_BYTES[dtype])
    return Operation(EMBEDDING, 0.0, table, dtype=dtype, working_bytes=table, mode=BACKWARD)


def _tensors(architecture: Architecture) -> dict[float, int]:
    """Elements of the parameters' tensors, and how many have as many."""
    tensors: dict[float, int] = {}

    def add(elements: float, count: int = 1) -> None:
        if elements:
            tensors[elements] = tensors.get(elements, 0) + count

    add(architecture.vocabulary * architecture.embedding)
    add(architecture.positions * architecture.hidden)
    if not architecture.tied:
        add(architecture.head.elements)
    add(architecture.head.biases)
    matrices = [(matrix, 1) for matrix in architecture.outer]
    for layer, count in architecture.layers:
        matrices += [(matrix, count) for matrix in layer.matrices]
    for matrix, count in matrices:
        add(matrix.elements, count)
        add(matrix.biases, count)
    for layer, count in architecture.layers:
        # Mostly two norms; whatever it is, small.
        add(layer.vectors / max(layer.norms, 1), count * max(layer.norms, 1))
    add(architecture.vectors)
    return tensors


def _optimizer(architecture: Architecture, dtype: str) -> tuple[Operation, ...]:
    """AdamW's update, one tensor after the other."""
    width = DTYPE_BYTES[dtype]
    return tuple(
        Operation(
            OPTIMIZER,
            0.0,
            _ADAMW_PASSES * width * elements,
            count=count,
            dtype=dtype,
            working_bytes=_ADAMW_PASSES * width * elements,
            elements=elements,
            mode=FORWARD,
        )
        for elements, count in _tensors(architecture).items()
    )


def _backward(operation: Operation) -> Operation:
    """Twice the products and twice the traffic: gradients of what went in, and of the weights."""
    factor = _RECOMPUTED_ATTENTION if operation.part == ATTENTION else 2.0
    return replace(
        operation,
        flops=factor * operation.flops,
        bytes=factor * operation.bytes,
        # Of a product both are timed as one.
        launches=operation.launches if operation.flops else 2 * operation.launches,
        mode=BACKWARD,
    )


def _forward(
    architecture: Architecture,
    batch: int,
    tokens: int,
    weights: WeightFormat,
    execution: Execution,
) -> tuple[Operation, ...]:
    cache = CacheFormat(weights.dtype)
    # Nothing is cached, so nothing is gained from working on compressed keys and values.
    execution = replace(execution, absorbed=False, cached=False)
    made = forward(architecture, batch, tokens, 0, batch * tokens, weights, cache, execution)
    return tuple(replace(operation, mode=FORWARD) for operation in made)


def _kept_bytes_per_token(
    architecture: Architecture, layer: Layer, active: int, width: int, cuda: bool
) -> int:
    """What one layer keeps of one token for the backward pass of eager code.

    But for attention. What a norm keeps in its own type is in that of the residual stream, which is
    the weights' even under autocast. Products keep their input, those of experts a copy of it each;
    a gate keeps what comes out of the activation and the other factor.
    """
    kept, hidden = layer.kept, architecture.hidden
    widened, own = kept.norm_tensors
    norms = 1 if kept.parallel else layer.norms
    normed = (norms * hidden + kept.normed_numbers) * (widened * _FLOAT32 + own * width)
    *inner_projections, _ = (m for m in layer.matrices if m.part == PROJECTION)
    feed_forward = [m for m in layer.matrices if m.part == FEED_FORWARD]
    if active == width:
        inputs = min(layer.norms, 2) * hidden
        inputs += sum(m.inputs for m in inner_projections if m.inputs != hidden)
    else:  # every product casts its own, but for the last of either part
        others = len(feed_forward) + sum(m.part == ROUTER for m in layer.matrices)
        inputs = sum(m.inputs for m in inner_projections) + (others - bool(feed_forward)) * hidden
    # What a gate for all of it is multiplied with.
    inputs += hidden * sum(m.outputs == 1 for m in feed_forward)
    inner = 1 + kept.activation_tensors + 2 * layer.gated
    routed = routed_width(layer)
    # Experts' are in the type of their weights, under autocast too.
    experts = (2 * layer.active_experts * hidden + inner * routed) * width
    masks = 2 * kept.dropout * hidden * (1 if cuda else active)
    return normed + experts + (inputs + inner * (inner_width(layer) - routed)) * active + masks


def _expert_parameters(architecture: Architecture) -> int:
    return sum(
        count * (matrix.elements + matrix.biases)
        for layer, count in architecture.layers
        for matrix in layer.matrices
        if matrix.part == EXPERT
    )


def _kept_bytes_of_attention(
    layer: Layer, tokens: int, active: int, attention: str, cuda: bool
) -> int:
    """What the attention of one token to all of them keeps of it."""
    a, kept = layer.attention, layer.kept
    dropped, scores = kept.attention_dropout, a.heads * tokens
    # Whatever is not fused works on as many keys and values as queries.
    kv_heads = a.heads if a.latent is not None else a.kv_heads
    repeated = (a.heads - kv_heads) * (a.key_dim + a.value_dim)
    if attention == "eager":
        kept_of_score = _FLOAT32 + (active if active != _FLOAT32 else 0) + kept.capped * active
        left = active + (1 if cuda else active)  # and the mask
        return (a.token_width + repeated) * active + scores * (kept_of_score + left * dropped)
    uneven = a.key_dim != a.value_dim
    if kept.broadcast or (not cuda and (dropped or uneven)):
        # No fused code of torch does that: it takes plain code, which computes in float32.
        output = a.heads * a.value_dim
        widened = a.token_width + repeated - output
        return output * active + (widened + scores * (3 if dropped else 1)) * _FLOAT32
    numbers = a.token_width + kept.attention_numbers
    if attention == "sdpa" and a.window is not None and tokens >= a.window:
        numbers += repeated + tokens  # it knows no windows: it is given a mask
    return numbers * active + a.heads * _FLOAT32
