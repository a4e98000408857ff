"""Prefill and decode of one batch, timed as a server would run them.

::

    prepare, load                     load_s
    first_call                        first_call_s: one prefill, nothing before it
    compile                           where asked for: until no step compiles any more
    warmup ...                        the protocol's, stored beside the samples
    prefill, decode, prefill, ...     samples, until the protocol's stopping rule
    prove                             that it was causal and its cache held what it was fed
    quality                           where asked for; a pass of its own

Greedy, of fixed length, an end-of-text id changes nothing: every repetition does the same work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.engines import transformers as loading
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.compilation import CompileWatch
from orchestrator.engines.transformers.expected import expect_inference
from orchestrator.engines.transformers.feasible import ATTENTIONS
from orchestrator.engines.transformers.generation import SequenceTiming, generator_for
from orchestrator.engines.transformers.proofs import prove
from orchestrator.measure import (
    Identity,
    Recorder,
    Repetition,
    Task,
    derive,
    first_call,
    repeat,
    tracker,
)
from orchestrator.measure.options import bounded, choice, options_of
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.tasks import quality

if TYPE_CHECKING:
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
    batch_size: int = bounded(1, low=1)
    prompt_tokens: int = bounded(512, low=1)
    new_tokens: int = bounded(32, low=1)
    attention: str = choice(*ATTENTIONS)
    compile: bool = False
    quality_tokens: int = bounded(0, low=0)
    token_sleep_s: float = bounded(0.0, low=0)


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
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

    options = options_of(InferenceConfig, identity)
    prepared = loading.prepare(identity, recorder)
    length = options.prompt_tokens + options.new_tokens
    prepared.require_context(length, "prompt_tokens + new_tokens")
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
    compiling = CompileWatch(model, recorder) if options.compile else None
    generator = generator_for(
        model,
        recorder.clock,
        forward=compiling.forward if compiling else None,
        token_sleep_s=options.token_sleep_s,
    )
    prompt = tokens.prompt(
        prepared, identity["seed"], options.batch_size, options.prompt_tokens
    ).to(model.device)
    memory = PhaseMemory(tracker(identity["device"]["kind"]))

    with (
        recorder.phase("first_call", measured=False),
        loading.runs(prepared),
        first_call(recorder),
    ):
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
        with repetition.phases(recorder, memory.phases(recorder)) as phase:
            timing, ids = generator.sequence(prompt, options.new_tokens, phase)
        _add(repetition, timing, options)
        outputs.add(tokens.output_digest(ids))
    if options.new_tokens == 1:
        for name, unit in (("itl_s", "s"), ("tpot_s", "s"), ("decode_tokens_per_s", "tokens/s")):
            recorder.absent(name, unit, _NO_INTERVAL)
    memory.record(recorder)
    recorder.fact("output_digests", sorted(outputs))
    if compiling:
        compiling.record(recorder)
    with recorder.phase("prove", measured=False):
        prove(
            model,
            generator,
            prompt,
            recorder,
            quant=identity["quant"],
            new_tokens=options.new_tokens,
            prefill_s=timing.ttft_s,
            fixed_shape=options.compile,
        )


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


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, and of the text where quality is asked for."""
    text = text_content("auto") if identity["task"]["quality_tokens"] else {}
    return content_of(identity["model"]) | text


TASK = Task(
    name="inference",
    config=InferenceConfig,
    run=run,
    check=check,
    preload=loading.PRELOAD,
    content=content,
    expect=expect_inference,
    headline=(
        "tpot_s",
        "ttft_s",
        "weights_bytes",
        "perplexity",
        "kl_to_reference",
        "decode_tokens_per_s",
        "peak_memory_over_weights_bytes",
        "load_s",
        "e2e_s",
    ),
)
