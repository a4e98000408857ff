"""Memory of a training step on the CPU, as torch's allocator hands it out.

The resident set of a small model is mostly the heap's and the libraries' own; what arithmetic
predicts are tensors. CUDA's allocator counts them, the CPU's tells a profiler of each: that takes
one more step, a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def held_bytes(model: PreTrainedModel, optimizer: torch.optim.Optimizer | None) -> int:
    """Weights, buffers and moments: what is there between steps."""
    import torch

    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for states in () if optimizer is None else optimizer.state.values():
        for value in states.values():
            if isinstance(value, torch.Tensor):
                tensors[id(value)] = value
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def step_peak_bytes(step: Callable[[], Any]) -> int | None:
    """The most that ``step`` had allocated at once beyond what was there; None where none is told.

    Parameters
    ----------
    step : callable
        Not the first one, which makes the moments.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    results = profiled.profiler.kineto_results if profiled.profiler is not None else None
    found = [] if results is None else [e for e in results.events() if e.name() == "[memory]"]
    now = highest = 0
    for event in sorted(found, key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest or None
