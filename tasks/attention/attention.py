"""Scaled dot-product attention by itself: forward and backward, time and memory.

::

    prepare                   inputs from the seed
    engaged                   which kernel runs; a pass of its own
    compile                   where asked for
    warmup ...                the protocol's
    forward, backward ...     samples, until the protocol's stopping rule
    prove                     the result is that of exact attention
    kept                      bytes alive before the backward pass; a pass of its own

No model is loaded; the dtype is that of ``quant`` (``fp32``, ``bf16``, ``fp16``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers.compilation import CompileWatch
from orchestrator.measure import (
    Identity,
    Infeasible,
    MetricSpec,
    Recorder,
    Task,
    repeat,
    timed,
    tracker,
)
from orchestrator.measure.figures import Bars, Scaling
from orchestrator.measure.options import bounded, choice, options_of
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.wording import gib
from orchestrator.model.weights import DTYPE_BYTES
from orchestrator.tasks._cuda_memory import device_memory_bytes
from orchestrator.tasks.attention.kernels import (
    COMPILED,
    IMPLEMENTATIONS,
    NAIVE,
    SDPA,
    Attend,
    judge_result,
    kept_bytes,
    naive,
    ran,
    refuse_unavailable,
    sdpa,
)

if TYPE_CHECKING:
    import torch

# Squares of scores that exist at once: two in the forward pass, three in the backward pass.
_SQUARES = 3


@dataclass
class AttentionConfig:
    """Options of ``task=attention``.

    Attributes
    ----------
    implementation : str
        ``naive``, ``sdpa_math``, ``sdpa_flash``, ``sdpa_efficient``, ``sdpa_cudnn``, or
        ``compiled``: the naive one through ``torch.compile``.
    batch_size, heads, tokens, head_dim : int
        Shape of queries, keys and values.
    causal : bool
        A token attends to itself and those before it.
    """

    name: str = "attention"
    implementation: str = choice(*IMPLEMENTATIONS, default="sdpa_flash")
    batch_size: int = bounded(8, low=1)
    heads: int = bounded(1, low=1)
    tokens: int = bounded(1024, low=1)
    head_dim: int = bounded(64, low=1)
    causal: bool = True

    @property
    def forward_flops(self) -> float:
        """Two products; under a causal mask only the pairs that it leaves."""
        pairs = self.tokens * (self.tokens + 1) / 2 if self.causal else float(self.tokens) ** 2
        return 4.0 * self.batch_size * self.heads * self.head_dim * pairs

    def square_bytes(self, dtype: str) -> int:
        """All scores."""
        return self.batch_size * self.heads * self.tokens**2 * DTYPE_BYTES[dtype]


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options, quant = identity["task"], identity["quant"]
    kind, implementation = identity["device"]["kind"], options["implementation"]
    if quant["scheme"] != "none":
        return f"attention has no weights to be {quant['scheme']}: quant=fp32, bf16 or fp16"
    if implementation in ("sdpa_efficient", "sdpa_cudnn") and kind != "cuda":
        return f"{implementation} has a kernel for CUDA devices only"
    halves = kind == "cuda" and implementation in ("sdpa_flash", "sdpa_cudnn")
    if halves and quant["dtype"] == "float32":
        return f"{implementation} on CUDA needs bfloat16 or float16, not float32"
    return loading.check_compile(identity, implementation == COMPILED)


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    options = options_of(AttentionConfig, identity)
    kind, dtype = identity["device"]["kind"], identity["quant"]["dtype"]
    device = loading.use_device(identity["device"])
    _expect(options, kind, dtype, recorder)
    with recorder.phase("prepare", measured=False):
        inputs, gradient = _inputs(options, dtype, identity["seed"], device)
        if options.implementation in SDPA:
            attend = sdpa(options.implementation, causal=options.causal)
            refuse_unavailable(options.implementation, attend, [t.detach() for t in inputs])
        else:
            attend = naive(options.tokens, causal=options.causal, device=device)
    memory = PhaseMemory(tracker(kind))
    try:
        _measure(attend, inputs, gradient, options, memory, identity, recorder)
    finally:
        memory.record(recorder)


def _expect(options: AttentionConfig, kind: str, dtype: str, recorder: Recorder) -> None:
    """Write down what the scores need, and refuse what can never fit."""
    if options.implementation not in (NAIVE, "sdpa_math", COMPILED):
        return
    # torch's reference kernel computes in float32.
    computed = "float32" if options.implementation == "sdpa_math" else dtype
    needed = _SQUARES * options.square_bytes(computed)
    recorder.value("predicted_memory_bytes", "bytes", needed)
    available = device_memory_bytes(kind)
    # One square alone: what a compiler may fuse away is no reason to refuse.
    if available is not None and options.square_bytes(dtype) > available:
        raise Infeasible(
            f"the scores alone need {gib(options.square_bytes(dtype))}, "
            f"the device has {gib(available)}",
            where="task.tokens",
            fix="Take fewer tokens, or sdpa_flash, which keeps no scores",
        )


def _inputs(
    options: AttentionConfig, dtype: str, seed: int, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys and values that want a gradient, and the gradient of the output."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (options.batch_size, options.heads, options.tokens, options.head_dim)
    drawn = [
        torch.randn(shape, generator=generator).to(device, getattr(torch, dtype)) for _ in range(4)
    ]
    return [tensor.requires_grad_(True) for tensor in drawn[:3]], drawn[3]


def _measure(
    attend: Attend,
    inputs: list[torch.Tensor],
    gradient: torch.Tensor,
    options: AttentionConfig,
    memory: PhaseMemory,
    identity: Identity,
    recorder: Recorder,
) -> None:
    _prove(attend, inputs, options, identity, recorder)
    clock = recorder.clock
    compiling = None
    if options.implementation == COMPILED:
        compiling = CompileWatch(attend, recorder)
        attend = compiling.forward
        with recorder.phase("compile", measured=False):
            compiling.settle(lambda: attend(*inputs).backward(gradient))
        for tensor in inputs:
            tensor.grad = None
    phases = memory.phases(recorder)

    def one(phase: Any) -> tuple[float, float]:
        with phase("forward"), timed(clock) as ahead:
            output = attend(*inputs)
        with phase("backward"), timed(clock) as back:
            output.backward(gradient)
        for tensor in inputs:
            tensor.grad = None
        return ahead.seconds, back.seconds

    for repetition in repeat(recorder, identity["protocol"], watch="attention_s"):
        with repetition.phases(recorder, phases) as phase:
            forward_s, backward_s = one(phase)
        repetition.add("forward_s", "s", forward_s)
        repetition.add("backward_s", "s", backward_s)
        repetition.add("attention_s", "s", forward_s + backward_s)
        repetition.add("forward_flop_per_s", "flop/s", options.forward_flops / forward_s)
    recorder.fact("forward_flops", options.forward_flops)
    if compiling:
        compiling.record(recorder)
    with recorder.phase("prove", measured=False):
        found = judge_result(attend, inputs, causal=options.causal)
    found.record(recorder, "result", "exact attention's, but for rounding")
    # Last: its hooks make compiled code compile again.
    with recorder.phase("kept", measured=False):
        kept = kept_bytes(attend, inputs)
    recorder.value("memory_before_backward_bytes", "bytes", kept)


def _prove(
    attend: Attend,
    inputs: list[torch.Tensor],
    options: AttentionConfig,
    identity: Identity,
    recorder: Recorder,
) -> None:
    import torch

    with recorder.phase("engaged", measured=False):
        dtypes = {loading.dtype_name(t.dtype) for t in inputs}
        recorder.engaged("dtype", identity["quant"]["dtype"], ", ".join(sorted(dtypes)))
        recorder.engaged("device", identity["device"]["kind"], inputs[0].device.type)
        threads = loading.thread_count(identity["device"])
        recorder.engaged("threads", threads, torch.get_num_threads())
        if options.implementation in SDPA:
            got = ran(attend, [tensor.detach() for tensor in inputs])
            recorder.engaged("attention", options.implementation, got)


TASK = Task(
    name="attention",
    config=AttentionConfig,
    run=run,
    unread=("model",),
    check=check,
    preload=("torch",),
    content=lambda identity: {},
    metrics=(
        MetricSpec(
            "memory_before_backward_bytes", "bytes", "lower", exact=True, title="before backward"
        ),
        MetricSpec("forward_flop_per_s", "flop/s", "higher", title="forward FLOPs"),
    ),
    headline=(
        "attention_s",
        "forward_s",
        "backward_s",
        "memory_before_backward_bytes",
        "peak_memory_over_weights_bytes",
        "forward_flop_per_s",
        "compile_s",
    ),
    figures=(
        Bars("attention_s"),
        Scaling("forward_s", over="task.tokens"),
        Scaling("backward_s", over="task.tokens"),
        Scaling("memory_before_backward_bytes", over="task.tokens"),
    ),
)
