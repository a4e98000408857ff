"""Prefill and decode of one batch, timed as a server would run them.

::

    prepare, load                     load_s
    first_call                        first_call_s: one prefill, nothing before it
    compile                           where asked for: until no step compiles any more
    warmup ...                        the protocol's, stored beside the samples
    prefill, decode, prefill, ...     samples, until the protocol's stopping rule
    quality                           where asked for; a pass of its own

Greedy, of fixed length, an end-of-text id changes nothing: every repetition does the same work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from orchestrator.measure import (
    HostMemory,
    Identity,
    InputError,
    MemoryTracker,
    Recorder,
    Repetition,
    Task,
    derive,
    first_call,
    repeat,
    tracker,
)
from tasks import loading, quality, tokens
from tasks.compilation import CompileWatch
from tasks.generation import GreedyGenerator, SequenceTiming

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_NO_INTERVAL = "one new token has no interval between tokens"


@dataclass
class InferenceConfig:
    """Options of ``task=inference``.

    Attributes
    ----------
    batch_size, prompt_tokens, new_tokens : int
        Rows of the batch; random ids in each; ids generated for each, the prefill's included.
    attention : str
        ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
    compile : bool
        Run the model through ``torch.compile``.
    quality_tokens : int
        Afterwards measure quality over so many tokens (see ``task=quality``); 0 for none.
    token_sleep_s : float
        Sleep inside every token interval: an injected slowdown, to prove that the gate finds one.
    """

    name: str = "inference"
    batch_size: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 32
    attention: str = "sdpa"
    compile: bool = False
    quality_tokens: int = 0
    token_sleep_s: float = 0.0


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
    loading.check_positive(options, "batch_size", "prompt_tokens", "new_tokens")
    loading.check_not_negative(options, "quality_tokens", "token_sleep_s")
    length = options["prompt_tokens"] + options["new_tokens"]
    return (
        loading.check_model(identity)
        or loading.check_attention(identity, options["attention"])
        or loading.check_compile(identity, options["compile"])
        or loading.check_length(identity["model"], length, "prompt_tokens + new_tokens")
    )


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    import torch

    known = {field.name for field in fields(InferenceConfig)}
    options = InferenceConfig(**{k: v for k, v in identity["task"].items() if k in known})
    prepared = loading.prepare(identity, recorder)
    length = options.prompt_tokens + options.new_tokens
    if prepared.context_tokens is not None and length > prepared.context_tokens:
        raise InputError(
            f"prompt_tokens + new_tokens = {length}, more than the model's context of "
            f"{prepared.context_tokens}",
            where="task",
            fix="Shorten task.prompt_tokens or task.new_tokens",
        )
    model = loading.load(prepared, identity, recorder, attention=options.attention)
    with torch.inference_mode():
        _measure(model, prepared, options, identity, recorder)
        if options.quality_tokens:
            quality.measure(
                model,
                prepared,
                identity,
                recorder,
                quality.QualityConfig(tokens=options.quality_tokens, attention=options.attention),
            )


def _measure(
    model: PreTrainedModel,
    prepared: loading.Prepared,
    options: InferenceConfig,
    identity: Identity,
    recorder: Recorder,
) -> None:
    from transformers import DynamicCache

    compiling = CompileWatch(model, recorder.directory) if options.compile else None
    accepts = inspect.signature(model.forward).parameters
    generator = GreedyGenerator(
        compiling.forward if compiling else model,
        recorder.clock,
        lambda: DynamicCache(config=model.config),
        prefill_options={"logits_to_keep": 1} if "logits_to_keep" in accepts else {},
        token_sleep_s=options.token_sleep_s,
    )
    prompt = tokens.prompt(
        prepared, identity["seed"], options.batch_size, options.prompt_tokens
    ).to(model.device)
    memory = _PhaseMemory(tracker(identity["device"]["kind"]))

    with recorder.phase("first_call", measured=False), first_call(recorder):
        generator.prefill(prompt)
    if compiling:
        with recorder.phase("compile", measured=False):
            compiling.settle(lambda: generator.sequence(prompt, options.new_tokens))
    # After the first call: bitsandbytes may repack the weights in it.
    size = loading.footprint(model)
    recorder.value("weights_bytes", "bytes", size.weights_bytes)
    recorder.value("weights_bits_per_parameter", "bit", size.bits_per_parameter)
    recorder.fact("parameters", size.parameters)
    recorder.fact("quantized_parameters", size.quantized_parameters)

    outputs: set[str] = set()
    watch = "tpot_s" if options.new_tokens > 1 else "ttft_s"
    for repetition in repeat(recorder, identity["protocol"], watch=watch):
        if repetition.warmup:
            with recorder.phase("warmup", measured=False):
                timing, ids = generator.sequence(prompt, options.new_tokens)
        else:
            phase = memory.phases(recorder)
            timing, ids = generator.sequence(prompt, options.new_tokens, phase)
        _add(repetition, timing, options)
        outputs.add(_digest(ids))
    if options.new_tokens == 1:
        for name, unit in (("itl_s", "s"), ("tpot_s", "s"), ("decode_tokens_per_s", "tokens/s")):
            recorder.absent(name, unit, _NO_INTERVAL)
    memory.record(recorder)
    recorder.fact("output_digests", sorted(outputs))
    if compiling:
        compiling.record(recorder)


def _add(repetition: Repetition, timing: SequenceTiming, options: InferenceConfig) -> None:
    prefilled = options.batch_size * options.prompt_tokens
    repetition.add("ttft_s", "s", timing.ttft_s)
    repetition.add("prefill_tokens_per_s", "tokens/s", prefilled / timing.ttft_s)
    repetition.add("e2e_s", "s", derive.e2e_s(timing.ttft_s, timing.intervals_s))
    repetition.extend("itl_s", "s", timing.intervals_s)
    tpot_s = derive.tpot_s(timing.intervals_s)
    rate = derive.decode_tokens_per_s(timing.intervals_s, batch=options.batch_size)
    if tpot_s is not None and rate is not None:
        repetition.add("tpot_s", "s", tpot_s)
        repetition.add("decode_tokens_per_s", "tokens/s", rate)


def _digest(ids: list[torch.Tensor]) -> str:
    import torch

    return tokens.ids_digest(torch.cat(ids, dim=-1).flatten().tolist())[:16]


class _PhaseMemory:
    """Peaks of each measured phase over what was held once the model was loaded."""

    def __init__(self, memory: MemoryTracker) -> None:
        self._memory = memory
        self._held = memory.held_bytes()
        self._reason = memory.absent_reason
        self._peaks: dict[str, int] = {}
        self._process_bytes: int | None = None

    def phases(self, recorder: Recorder) -> Any:
        """A ``phase`` function that also takes the phase's peak, outside what is timed."""

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            self._memory.reset()
            with recorder.phase(name):
                yield
            peak = self._memory.peak_bytes()
            if peak is None:
                self._reason = self._memory.absent_reason
                return
            self._peaks[name] = max(peak, self._peaks.get(name, 0))
            self._see_process(peak)

        return phase

    def record(self, recorder: Recorder) -> None:
        """Write the peaks, each phase's own and the highest, and the whole process's."""
        for name, peak in self._peaks.items():
            self._record_over(recorder, f"{name}.peak_memory_over_weights_bytes", peak)
        highest = max(self._peaks.values(), default=None)
        self._record_over(recorder, "peak_memory_over_weights_bytes", highest)
        if self._process_bytes is not None:
            recorder.value("process_memory_bytes", "bytes", self._process_bytes)

    def _see_process(self, peak: int) -> None:
        # On CUDA telemetry asks the driver for it. Here: the proportional set size now, and what
        # the resident set was higher at its peak, which is memory of this process alone.
        if not isinstance(self._memory, HostMemory):
            return
        pss, held = self._memory.pss_bytes(), self._memory.held_bytes()
        if pss is not None and held is not None:
            self._process_bytes = max(self._process_bytes or 0, pss + max(0, peak - held))

    def _record_over(self, recorder: Recorder, name: str, peak: int | None) -> None:
        if peak is None or self._held is None:
            recorder.absent(name, "bytes", self._reason or "no measured phase")
        elif peak < self._held:
            recorder.absent(name, "bytes", "less was held in the phase than before it")
        else:
            recorder.value(name, "bytes", peak - self._held)


TASK = Task(
    name="inference",
    config=InferenceConfig,
    run=run,
    check=check,
    preload=loading.PRELOAD,
    headline=(
        "tpot_s",
        "ttft_s",
        "decode_tokens_per_s",
        "e2e_s",
        "load_s",
        "weights_bytes",
        "peak_memory_over_weights_bytes",
        "perplexity",
        "kl_to_reference",
    ),
)
