"""Training steps of a decoder: forward, backward and AdamW, each timed by itself.

::

    prepare, load                     load_s
    compiler, compile                 where asked for: until no step compiles any more, of which the
                                      warm-up may be the proof
    warmup ...                        the protocol's, stored beside the samples; protocol.warmup=0
                                      shows what it is for: the very first step is then a sample
    forward, backward, optimizer ...  samples, until the protocol's stopping rule
    memory                            on the CPU: what one more step allocates, a pass of its own
    memory_snapshot                   where asked for; a pass of its own

The precision is that of ``quant`` (``fp32``, or ``bf16`` for pure bfloat16: weights, gradients and
moments) and ``task.autocast`` (``bfloat16`` over ``quant=fp32``). All steps see the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.proof import judge_finite
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.compilation import MOST_ROUNDS, CompileWatch
from orchestrator.engines.transformers.configuration import known_config
from orchestrator.measure import (
    ConfigError,
    CudaMemory,
    Identity,
    MetricSpec,
    Recorder,
    Repetition,
    Task,
    derive,
    repeat,
    tracker,
)
from orchestrator.measure.figures import Bars, Breakdown, Scaling
from orchestrator.measure.options import options_of
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.tasks._cuda_memory import device_memory_bytes, memory_history
from orchestrator.tasks.training.allocated import held_bytes, step_peak_bytes
from orchestrator.tasks.training.options import TrainingConfig
from orchestrator.tasks.training.step import StepTiming, TrainingStep
from orchestrator.tasks.training.training_expected import (
    Expected,
    expectation,
    peak_flops_per_s,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from orchestrator.model.expectation import Expectation

_LEARNING_RATE = 1e-4


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options, quant = identity["task"], identity["quant"]
    if options["batch_size"] % options["accumulation"]:
        raise ConfigError(
            f"a batch of {options['batch_size']} cannot be split into "
            f"{options['accumulation']} equal micro-batches",
            where="task.accumulation",
            fix="It must divide task.batch_size",
        )
    return (
        loading.check_model(identity)
        or _check_precision(quant["scheme"], quant["dtype"], options["autocast"])
        or loading.check_attention(identity, options["attention"])
        or loading.check_compile(identity, options["compile"])
        or loading.check_length(identity["model"], options["context_tokens"], "context_tokens")
        or _check_snapshot(identity["device"]["kind"], options["memory_snapshot"])
    )


def _check_precision(scheme: str, dtype: str, autocast: str) -> str | None:
    if scheme != "none":
        return f"{scheme} weights have no gradients: train with quant=fp32 or quant=bf16"
    if dtype == "float16":
        return "float16 gradients underflow without loss scaling: train with fp32 or bf16"
    if autocast != "none" and dtype != "float32":
        return f"autocast to {autocast} needs float32 parameters: quant=fp32"
    return None


def _check_snapshot(device_kind: str, asked: bool) -> str | None:
    if asked and device_kind != "cuda":
        return "a memory snapshot is of CUDA's allocator: the CPU has none"
    return None


def expect(identity: Identity, config: Mapping[str, Any] | None) -> Expectation | None:
    """What arithmetic says of the trial; None without the model's configuration."""
    found = config if config is not None else known_config(identity["model"])
    if found is None or check(identity) is not None:
        return None
    options = options_of(TrainingConfig, identity)
    return expectation(found, options, identity["quant"]["dtype"], identity["device"]["kind"])


def _computed_in(options: TrainingConfig, identity: Identity) -> str:
    return str(identity["quant"]["dtype"]) if options.autocast == "none" else options.autocast


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    options = options_of(TrainingConfig, identity)
    prepared = loading.prepare(identity, recorder)
    prepared.require_context(options.context_tokens, "context_tokens", where="task.context_tokens")
    device_kind = identity["device"]["kind"]
    dtype = identity["quant"]["dtype"]
    expected = Expected(prepared.config.to_dict(), options, dtype, device_kind)
    # Written down before anything can run out of memory: what was asked for stands in the row.
    if expected.memory is not None:
        recorder.value("predicted_memory_bytes", "bytes", expected.memory.total_bytes)
    expected.refuse_impossible(device_memory_bytes(device_kind))
    model = loading.load(prepared, identity, recorder, attention=options.attention)
    weights_bytes = _make_trainable(model, options, recorder)
    memory = PhaseMemory(tracker(device_kind))
    try:
        _measure(model, prepared, options, expected, memory, identity, recorder)
    finally:
        memory.record(recorder)
        if device_kind == "cuda" and memory.highest_over_bytes is not None:
            # With the weights: what the prediction is of.
            peak_bytes = weights_bytes + memory.highest_over_bytes
            recorder.value("peak_memory_bytes", "bytes", peak_bytes)
        _record_allocator(device_kind, memory, recorder)


def _make_trainable(model: PreTrainedModel, options: TrainingConfig, recorder: Recorder) -> int:
    """Ready the model; returns what its weights take."""
    model.requires_grad_(True)
    model.train()
    if options.checkpointing:
        # Not reentrant: the kind that torch recommends and that can be compiled.
        model.activation_checkpointing_enable({"use_reentrant": False})
    engaged = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    recorder.engaged("checkpointing", options.checkpointing, engaged)
    size = loading.footprint(model)
    recorder.value("weights_bytes", "bytes", size.weights_bytes)
    recorder.fact("parameters", size.parameters)
    return size.weights_bytes


def _measure(
    model: PreTrainedModel,
    prepared: loading.Prepared,
    options: TrainingConfig,
    expected: Expected,
    memory: PhaseMemory,
    identity: Identity,
    recorder: Recorder,
) -> None:
    import torch

    compiling = (
        CompileWatch(model, recorder, scope=options.compile_scope) if options.compile else None
    )
    ids = tokens.prompt(prepared, identity["seed"], options.batch_size, options.context_tokens)
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE) if options.optimizer else None
    )
    step = TrainingStep(
        model,
        compiling.forward if compiling else model,
        ids.to(model.device).chunk(options.accumulation),
        recorder.clock,
        optimizer=optimizer,
        autocast=None if options.autocast == "none" else getattr(torch, options.autocast),
    )
    if compiling:
        with recorder.phase("compile", measured=False):
            compiling.settle(step.run, most=1 if identity["protocol"]["warmup"] else MOST_ROUNDS)
    found = expectation(
        prepared.config.to_dict(), options, identity["quant"]["dtype"], identity["device"]["kind"]
    )
    work = None if found is None else found.work.get("mfu")
    metrics = _StepMetrics(options, expected, identity, work if isinstance(work, str) else None)
    phases = memory.phases(recorder)
    for repetition in repeat(recorder, identity["protocol"], watch="step_s"):
        first = not repetition.warmup and repetition.index == 0
        if compiling and first and not compiling.is_settled():
            with recorder.phase("compile", measured=False):
                compiling.settle(step.run)
        with repetition.phases(recorder, phases) as phase:
            timing = step.run(phase)
        metrics.add(repetition, timing)
    metrics.record_absent(recorder)
    _prove(step, optimizer, options, recorder)
    if compiling:
        compiling.record(recorder)
    if identity["device"]["kind"] == "cpu":
        _record_peak(model, optimizer, step, recorder)
    if options.memory_snapshot:
        with recorder.phase("memory_snapshot", measured=False), memory_history(recorder):
            step.run()


class _StepMetrics:
    """From a step's times to its samples."""

    def __init__(
        self,
        options: TrainingConfig,
        expected: Expected,
        identity: Identity,
        no_peak: str | None,
    ) -> None:
        self._tokens = options.batch_size * options.context_tokens
        self._flops = expected.flops
        self._peak, self._reason = peak_flops_per_s(
            identity["device"]["kind"], _computed_in(options, identity)
        )
        if no_peak is not None:
            self._peak, self._reason = None, no_peak
        if self._flops is None:
            self._reason = expected.absent_reason or "the FLOPs of this model are not known"
        self._optimizer = options.optimizer

    def add(self, repetition: Repetition, timing: StepTiming) -> None:
        """Add the samples of one step."""
        repetition.add("forward_s", "s", timing.forward_s)
        repetition.add("backward_s", "s", timing.backward_s)
        if timing.optimizer_s is not None:
            repetition.add("optimizer_s", "s", timing.optimizer_s)
        repetition.add("step_s", "s", timing.step_s)
        rate = derive.step_tokens_per_s(self._tokens, timing.step_s)
        if rate is not None:
            repetition.add("train_tokens_per_s", "tokens/s", rate)
        if self._flops is None:
            return
        repetition.add("model_flop_per_s", "flop/s", self._flops.model / timing.step_s)
        for name, flops in (("mfu", self._flops.model), ("hfu", self._flops.hardware)):
            share = derive.mfu(flops, timing.step_s, self._peak)
            if share is not None:
                repetition.add(name, "1", share)

    def record_absent(self, recorder: Recorder) -> None:
        """Say why what was never added is not there."""
        if not self._optimizer:
            recorder.absent("optimizer_s", "s", "the optimizer is off")
        if self._flops is None:
            recorder.absent("model_flop_per_s", "flop/s", self._reason)
        else:
            recorder.fact("model_flops", self._flops.model)
            recorder.fact("hardware_flops", self._flops.hardware)
        if self._flops is None or self._peak is None:
            for name in ("mfu", "hfu"):
                recorder.absent(name, "1", self._reason)


def _prove(step: TrainingStep, optimizer: Any, options: TrainingConfig, recorder: Recorder) -> None:
    """That autocast and the optimizer did what was asked for, on numbers."""
    recorder.engaged("autocast", options.autocast, step.seen["autocast"])
    recorder.fact("training_dtypes", step.seen)
    states = 0 if optimizer is None else len(optimizer.state)
    recorder.engaged("optimizer", options.optimizer, states > 0)
    if step.first is not None:
        recorder.value("first_call_s", "s", step.first.step_s)
    losses = [float(loss) for loss in step.losses]
    finite = judge_finite(all(map(math.isfinite, losses)))
    finite.record(recorder, "finite loss", "a number, of each step")
    recorder.value("first_loss", "1", losses[0])
    recorder.value("last_loss", "1", losses[-1])


def _record_allocator(device_kind: str, memory: PhaseMemory, recorder: Recorder) -> None:
    """The caching allocator's own figures; the CPU has no such allocator."""
    names = (("allocated_memory_bytes", "bytes"), ("reserved_memory_bytes", "bytes"))
    if device_kind != "cuda":
        for name, unit in (*names, ("allocator_retries", "1")):
            recorder.absent(name, unit, "the CPU has no caching allocator")
        return
    import torch

    if memory.highest_bytes is not None:
        recorder.value("allocated_memory_bytes", "bytes", memory.highest_bytes)
    recorder.value("reserved_memory_bytes", "bytes", CudaMemory().reserved_bytes())
    retries = sum(
        torch.cuda.memory_stats(device).get("num_alloc_retries", 0)
        for device in range(torch.cuda.device_count())
    )
    recorder.value("allocator_retries", "1", retries)


def _record_peak(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer | None,
    step: TrainingStep,
    recorder: Recorder,
) -> None:
    """``peak_memory_bytes`` of the CPU's tensors, by one more step."""
    with recorder.phase("memory", measured=False):
        beyond_bytes = step_peak_bytes(step.run)
    if beyond_bytes is None:
        reason = "torch's profiler told of no allocation"
        recorder.absent("peak_memory_bytes", "bytes", reason)
    else:
        peak_bytes = held_bytes(model, optimizer) + beyond_bytes
        recorder.value("peak_memory_bytes", "bytes", peak_bytes)


TASK = Task(
    name="training",
    config=TrainingConfig,
    run=run,
    check=check,
    expect=expect,
    preload=loading.PRELOAD,
    metrics=(
        MetricSpec("train_tokens_per_s", "tokens/s", "higher", title="training"),
        MetricSpec("model_flop_per_s", "flop/s", "higher", title="model FLOPs"),
        MetricSpec("mfu.measured_peak", "1", "higher", title="MFU measured peak"),
        MetricSpec("hfu.measured_peak", "1", "higher", title="HFU measured peak"),
    ),
    headline=(
        "step_s",
        "forward_s",
        "backward_s",
        "optimizer_s",
        "train_tokens_per_s",
        "mfu",
        "mfu.measured_peak",
        "model_flop_per_s",
        "peak_memory_over_weights_bytes",
        "compile_s",
        "weights_bytes",
    ),
    figures=(
        Bars("step_s"),
        Breakdown(("forward_s", "backward_s", "optimizer_s")),
        Scaling("step_s", over="task.context_tokens"),
        Scaling("peak_memory_over_weights_bytes", over="task.context_tokens"),
    ),
)
