"""How many parameters a model has, and how many of them work for one token."""

from __future__ import annotations

from functools import lru_cache

from orchestrator.model.architecture import EXPERT, Architecture, Layer


@lru_cache(maxsize=1024)
def parameter_count(architecture: Architecture) -> int:
    """Parameters of the whole model, tied ones once, as ``sum(p.numel())`` has them."""
    total = architecture.vocabulary * architecture.embedding
    total += architecture.positions * architecture.hidden
    total += architecture.vectors
    total += sum(m.elements + m.biases for m in architecture.outer)
    if not architecture.tied:
        total += architecture.head.elements
    total += architecture.head.biases
    return total + sum(count * layer_parameters(layer) for layer, count in architecture.layers)


@lru_cache(maxsize=1024)
def active_parameter_count(architecture: Architecture) -> int:
    """Parameters that take part in one token: all but the experts it is not routed to."""
    idle = 0
    for layer, count in architecture.layers:
        for matrix in layer.matrices:
            if matrix.part == EXPERT:
                share = matrix.count - layer.active_experts
                idle += (
                    count * share * (matrix.inputs * matrix.outputs + matrix.bias * matrix.outputs)
                )
    return parameter_count(architecture) - idle


def layer_parameters(layer: Layer) -> int:
    """Parameters of one layer."""
    return layer.vectors + sum(m.elements + m.biases for m in layer.matrices)
