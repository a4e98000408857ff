"""What number formats do to results: accumulation, autocast, and errors against float64.

::

    accumulation    0.01 added 1,000 times: accumulator and term of four pairs of dtypes
    autocast        dtypes of a small network's parameters, activations, loss and gradients
    error           matrix product and softmax in the dtype asked for, against float64

Nothing is timed and no model is loaded; every figure is a value, the same in every attempt on the
same device. ``quant.dtype`` is the format of the errors and of autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.engines import transformers as loading
from orchestrator.measure import Identity, MetricSpec, Recorder, Task
from orchestrator.measure.figures import Bars
from orchestrator.measure.options import bounded, options_of

if TYPE_CHECKING:
    import torch

TERM = 0.01
# Accumulator, term. The last one is mixed: what float16 lost in rounding 0.01 stays lost.
PAIRS = (
    ("float32", "float32"),
    ("float16", "float16"),
    ("bfloat16", "bfloat16"),
    ("float32", "float16"),
)


@dataclass
class NumericsConfig:
    """Options of ``task=numerics``.

    Attributes
    ----------
    additions : int
        How often 0.01 is added.
    size : int
        Rows and columns of the matrices; softmax runs over as many columns.
    scale : float
        Standard deviation of what softmax is taken of.
    """

    name: str = "numerics"
    additions: int = bounded(1000, low=1, high=10_000_000)
    size: int = bounded(512, low=1)
    scale: float = bounded(4.0, low=0)


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    scheme = identity["quant"]["scheme"]
    if scheme != "none":
        return f"numerics are of number formats, not of {scheme}: quant=fp32, bf16 or fp16"
    return None


def run(identity: Identity, recorder: Recorder) -> None:
    """Compute all three tables; see the module."""
    import torch

    options = options_of(NumericsConfig, identity)
    kind = identity["device"]["kind"]
    device = loading.use_device(identity["device"])
    recorder.engaged("device", kind, torch.empty(0, device=device).device.type)
    dtype: torch.dtype = getattr(torch, identity["quant"]["dtype"])
    with recorder.phase("accumulation", measured=False):
        _accumulation(options, device, recorder)
    with recorder.phase("autocast", measured=False):
        _autocast(dtype, device, identity["seed"], recorder)
    with recorder.phase("error", measured=False):
        _errors(options, dtype, device, identity["seed"], recorder)


def accumulate(
    accumulator: torch.dtype, term: torch.dtype, additions: int, device: torch.device
) -> float:
    """The sum of ``additions`` times 0.01, rounded to ``term``, in an ``accumulator``."""
    import torch

    total = torch.tensor(0.0, dtype=accumulator, device=device)
    each = torch.tensor(TERM, dtype=term, device=device)
    for _ in range(additions):
        total += each
    return float(total)


def _accumulation(options: NumericsConfig, device: torch.device, recorder: Recorder) -> None:
    import torch

    exact = TERM * options.additions
    for accumulator, term in PAIRS:
        found = accumulate(
            getattr(torch, accumulator), getattr(torch, term), options.additions, device
        )
        name = accumulator if accumulator == term else f"{accumulator}_of_{term}"
        recorder.value(f"sum.{name}", "1", found)
        recorder.value(f"sum_relative_error.{name}", "1", abs(found - exact) / exact)


def _autocast(dtype: torch.dtype, device: torch.device, seed: int, recorder: Recorder) -> None:
    """Which dtype each tensor of a step has: facts, by what autocast promises of each."""
    import torch
    from torch import nn

    if dtype == torch.float32:
        recorder.fact("autocast_dtypes", {"absent": "autocast to float32 is no autocast"})
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, norm, last = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
    for module in (first, norm, last):
        module.to(device)
    inputs = torch.ones(3, 8, device=device)
    with torch.autocast(device.type, dtype):
        active = torch.is_autocast_enabled(device.type)
        product = first(inputs)
        normed = norm(torch.relu(product))
        logits = last(normed)
        loss = nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long, device=device))
    loss.backward()
    gradient = first.weight.grad
    assert gradient is not None
    found = {
        "parameters": loading.dtype_name(first.weight.dtype),
        "product": loading.dtype_name(product.dtype),
        "layer_norm": loading.dtype_name(normed.dtype),
        "logits": loading.dtype_name(logits.dtype),
        "loss": loading.dtype_name(loss.dtype),
        "gradients": loading.dtype_name(gradient.dtype),
    }
    recorder.engaged(
        "autocast",
        loading.dtype_name(dtype),
        loading.dtype_name(logits.dtype) if active else "none",
    )
    recorder.engaged("autocast keeps parameters", "float32", found["parameters"])
    recorder.fact("autocast_dtypes", found)


def _errors(
    options: NumericsConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    recorder: Recorder,
) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (options.size, options.size)
    # Drawn in float64 and rounded first: the error is that of computing, not of the inputs.
    a, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for _ in range(2)
    )
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * options.scale
    logits = logits.to(device, dtype)
    cases = {
        "matmul": (a @ b, a.double() @ b.double()),
        "softmax": (logits.softmax(-1), logits.double().softmax(-1)),
        "softmax_by_hand": (_softmax_by_hand(logits), logits.double().softmax(-1)),
    }
    for name, (found, exact) in cases.items():
        recorder.engaged(
            f"{name} dtype", loading.dtype_name(dtype), loading.dtype_name(found.dtype)
        )
        if not exact.isfinite().all():
            reason = f"what it is taken of overflows {loading.dtype_name(dtype)}: lower task.scale"
            for error_name in ("max_absolute_error", "relative_error"):
                recorder.absent(f"{name}_{error_name}", "1", reason)
            continue
        error = (found.double() - exact).abs()
        recorder.value(f"{name}_max_absolute_error", "1", float(error.max()))
        relative = float(error.norm() / exact.norm())
        recorder.value(f"{name}_relative_error", "1", relative)
    recorder.value("epsilon", "1", torch.finfo(dtype).eps)
    largest = torch.finfo(dtype).max
    recorder.value("exp_overflows_at", "1", math.log(largest))


def _softmax_by_hand(logits: torch.Tensor) -> torch.Tensor:
    """Every step rounded to the dtype, where the library's own works in float32 inside."""
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


TASK = Task(
    name="numerics",
    config=NumericsConfig,
    run=run,
    unread=("model", "protocol"),
    check=check,
    preload=("torch",),
    content=lambda identity: {},
    whole_node=False,
    metrics=tuple(
        MetricSpec(f"{name}_{error}", "1", "lower", exact=True)
        for name in ("matmul", "softmax", "softmax_by_hand")
        for error in ("relative_error", "max_absolute_error")
    ),
    headline=(
        "matmul_relative_error",
        "softmax_relative_error",
        "softmax_by_hand_relative_error",
        "sum.float32",
        "sum.float16",
        "sum.bfloat16",
        "sum.float32_of_float16",
    ),
    figures=(Bars("matmul_relative_error"), Bars("softmax_relative_error")),
)
