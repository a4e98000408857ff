"""Ways to compute scaled dot-product attention, each one forced and told apart by what ran."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.engines.proof import FAILED, PROVEN, Finding
from orchestrator.measure import Infeasible

if TYPE_CHECKING:
    import torch

# (queries, keys, values), each (batch, heads, tokens, head_dim) -> output of the same shape.
Attend: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]"

# Implementation -> member of torch's SDPBackend.
SDPA = {
    "sdpa_math": "MATH",
    "sdpa_flash": "FLASH_ATTENTION",
    "sdpa_efficient": "EFFICIENT_ATTENTION",
    "sdpa_cudnn": "CUDNN_ATTENTION",
}
NAIVE, COMPILED = "naive", "compiled"
IMPLEMENTATIONS = (NAIVE, *SDPA, COMPILED)

# Operator that runs (a part of its name) -> the implementation it is the mark of.
_MARKS = {
    "scaled_dot_product_flash_attention": "sdpa_flash",
    "scaled_dot_product_efficient_attention": "sdpa_efficient",
    "scaled_dot_product_cudnn_attention": "sdpa_cudnn",
    # What the reference kernel is made of, and no other is.
    "safe_softmax": "sdpa_math",
}

# Relative error that rounding makes, by the bytes of a number: bfloat16's, and TF32's products.
_ROUNDING = {2: 3e-2, 4: 2e-3}
_COMPARED = 64


def naive(tokens: int, *, causal: bool, device: torch.device) -> Attend:
    """Scores, mask, softmax, product: the square of scores lies in memory."""
    import torch

    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1) if causal else None

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden, -math.inf)
        return scores.softmax(-1) @ values

    return attend


def sdpa(implementation: str, *, causal: bool) -> Attend:
    """torch's scaled_dot_product_attention with one backend and no other allowed."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = getattr(SDPBackend, SDPA[implementation])

    def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                queries, keys, values, is_causal=causal
            )

    return attend


def refuse_unavailable(implementation: str, attend: Attend, inputs: list[torch.Tensor]) -> None:
    """Try an SDPA backend once.

    Raises
    ------
    Infeasible
        With torch's own reason where the backend cannot run on these inputs.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            attend(*inputs)
        except RuntimeError as error:
            if "No viable backend" not in str(error) and "No available kernel" not in str(error):
                raise
            lines = [" ".join(str(w.message).split()) for w in said]
            why = next((line for line in lines if "available kernel" not in line), str(error))
            raise Infeasible(
                f"{implementation} cannot run here: {why.split('(Triggered')[0].strip()[:200]}",
                where="task.implementation",
            ) from error


def ran(attend: Attend, inputs: list[torch.Tensor]) -> str:
    """Which implementation a call uses, by the operators that run in it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class KernelWatch(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with KernelWatch():
        attend(*inputs)
    marks = {name for op in seen for part, name in _MARKS.items() if part in op}
    return ", ".join(sorted(marks)) or NAIVE


def judge_result(attend: Attend, inputs: list[torch.Tensor], *, causal: bool) -> Finding:
    """Whether the last queries of the first head get what exact attention gives them."""
    import torch

    output = attend(*inputs)
    queries, keys, values = (tensor.detach()[0, 0].double() for tensor in inputs)
    count = min(_COMPARED, len(queries))
    scores = queries[-count:] @ keys.T / math.sqrt(queries.shape[-1])
    if causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(len(keys) - count + 1)
        scores = scores.masked_fill(later, -math.inf)
    exact = scores.softmax(-1) @ values
    off = output.detach()[0, 0, -count:].double() - exact
    error = float(off.square().mean().sqrt() / exact.square().mean().sqrt())
    right = error <= _ROUNDING[output.dtype.itemsize]
    return Finding(PROVEN if right else FAILED, f"error {error:.2g} of {count} queries")


def kept_bytes(attend: Attend, inputs: list[torch.Tensor]) -> int:
    """Bytes alive between forward and backward: inputs, output and what autograd saved.

    Each storage counts once, whole. A count, not a reading of the allocator: the same on every
    device and free of its rounding.
    """
    import torch

    storages: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = attend(*inputs)
    for tensor in (*inputs, output):
        see(tensor)
    return sum(storages.values())
