"""Prefill and decode of one batch, timed as a server would run them, on the engine of the trial.

::

    prepare, load                     load_s
    first_call                        first_call_s: one prefill, nothing before it
    compile                           where asked for: until no step compiles any more
    warmup ...                        the protocol's, stored beside the samples
    prefill, decode, prefill, ...     samples, until the protocol's stopping rule
    prove                             that it was causal and its cache held what it was fed
    quality                           where asked for; a pass of its own

Greedy, of fixed length, an end-of-text id changes nothing: every repetition does the same work.

Where an engine has timings of its own they are recorded beside ours: ``prefill_over_own_timing``
and ``decode_over_own_timing`` are ours over theirs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from orchestrator.engines import registry as engines
from orchestrator.engines import texts
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.digest import ids_digest
from orchestrator.engines.port import Footprint, Generation, Prompt, Session, Work
from orchestrator.measure import (
    Identity,
    Recorder,
    Repetition,
    Task,
    derive,
    first_call,
    repeat,
)
from orchestrator.measure.columns import Column
from orchestrator.measure.options import bounded, options_of
from orchestrator.measure.sampling import RecordedPhases
from orchestrator.tasks import evaluation, quality

OWN_TIMING_TOLERANCE = 0.03
RANDOM, TEXT = "random", "text"
_NO_INTERVAL = "one new token has no interval between tokens"
_TOGETHER = "each token came together with another"
_OVER_WEIGHTS = "peak_memory_over_weights_bytes"


@dataclass
class InferenceConfig:
    """Options of ``task=inference``.

    Attributes
    ----------
    batch_size, prompt_tokens, new_tokens : int
        Rows of the batch; ids in each; ids generated for each, the prefill's included.
    depth : int
        Tokens of each row that are in the cache before the prompt is timed.
    prompt : str
        ``random`` ids, ``text`` (Python's own reference, by the model's tokenizer), or a ``.txt``
        or ``.parquet`` file.
    quality_tokens : int
        Afterwards measure quality over so many tokens (see ``task=quality``); 0 for none.
    evaluate : str
        Afterwards answer a task of lm-evaluation-harness: ``lm_eval:NAME`` or ``lm_eval:FILE``.
    """

    name: str = "inference"
    batch_size: int = bounded(1, low=1)
    prompt_tokens: int = bounded(512, low=1)
    new_tokens: int = bounded(32, low=1)
    depth: int = bounded(0, low=0)
    prompt: str = RANDOM
    quality_tokens: int = bounded(0, low=0)
    evaluate: str = ""


def _work(options: InferenceConfig) -> Work:
    depth = options.depth
    return Work(
        batch_size=options.batch_size,
        tokens=depth + options.prompt_tokens + options.new_tokens,
        scored_tokens=options.quality_tokens,
        read_tokens=evaluation.LONGEST_TOKENS if options.evaluate else 0,
        named=f"{'depth + ' if depth else ''}prompt_tokens + new_tokens",
        depth=depth,
    )


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = options_of(InferenceConfig, identity)
    evaluation.check(options.evaluate)
    if options.prompt not in (RANDOM, TEXT):
        texts.check_text(options.prompt, where="task.prompt")
    return engines.check(identity, _work(options))


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    options = options_of(InferenceConfig, identity)
    work = _work(options)
    session = engines.load(engines.prepare(identity, recorder, work), work, recorder)
    prompt = _prompt(session, options, identity)
    _measure(session, prompt, options, identity, recorder)
    if options.evaluate:
        evaluation.measure(session, recorder, options.evaluate)
    if options.quality_tokens:
        asked = quality.QualityConfig(tokens=options.quality_tokens)
        quality.measure(session, identity, recorder, asked)
    session.close()


def _prompt(session: Session, options: InferenceConfig, identity: Identity) -> Prompt:
    size = (options.batch_size, options.depth + options.prompt_tokens)
    if options.prompt == RANDOM:
        return texts.random_prompt(session.ordinary_ids, identity["seed"], *size)
    name = texts.PACKAGED_TEXT if options.prompt == TEXT else options.prompt
    return texts.text_prompt(session, name, *size)


def _measure(
    session: Session,
    prompt: Prompt,
    options: InferenceConfig,
    identity: Identity,
    recorder: Recorder,
) -> None:
    digest = ids_digest([token for row in prompt for token in row])
    recorder.fact("prompt", {"of": options.prompt, "digest": digest})
    with recorder.phase("first_call", measured=False), first_call(recorder):
        session.generate(prompt, 1)
    session.settle(prompt, options.new_tokens, recorder)
    _record_size(session.footprint(), recorder)

    memory = session.memory
    phases = RecordedPhases(recorder) if isinstance(memory, str) else memory.phases(recorder)
    outputs: set[str] = set()
    merged_tokens = intervals = 0
    own: dict[str, list[float]] = {}
    watch = "tpot_s" if options.new_tokens > 1 else "ttft_s"
    for repetition in repeat(recorder, identity["protocol"], watch=watch):
        with repetition.phases(recorder, phases) as marked:
            made = session.generate(prompt, options.new_tokens, marked)
        _add(repetition, made, options, own)
        outputs.add(made.digest)
        merged_tokens += made.merged_tokens
        intervals += len(made.intervals_s)
    if options.new_tokens == 1:
        for name, unit in (("itl_s", "s"), ("tpot_s", "s"), ("decode_tokens_per_s", "tokens/s")):
            recorder.absent(name, unit, _NO_INTERVAL)
    elif not intervals:
        recorder.absent("itl_s", "s", _TOGETHER)
    if isinstance(memory, str):
        recorder.absent(_OVER_WEIGHTS, "bytes", memory)
    else:
        memory.record(recorder)
    recorder.fact("output_digests", sorted(outputs))
    if own:
        recorder.fact("tokens_that_came_together", merged_tokens)
        recorder.fact("own_timings_agree", {"tolerance": OWN_TIMING_TOLERANCE, **_agree(own)})
    with recorder.phase("prove", measured=False):
        session.prove(prompt, options.new_tokens, recorder)


def _record_size(size: Footprint | str, recorder: Recorder) -> None:
    if isinstance(size, str):
        recorder.absent("weights_bytes", "bytes", size)
        recorder.absent("weights_bits_per_parameter", "bit", size)
        return
    recorder.value("weights_bytes", "bytes", size.weights_bytes)
    recorder.value("weights_bits_per_parameter", "bit", size.bits_per_parameter)
    recorder.fact("parameters", size.parameters)
    if size.quantized_parameters is not None:
        recorder.fact("quantized_parameters", size.quantized_parameters)


def _add(
    repetition: Repetition, made: Generation, options: InferenceConfig, own: dict[str, list[float]]
) -> None:
    prefilled = options.batch_size * options.prompt_tokens
    repetition.add("ttft_s", "s", made.ttft_s)
    repetition.add("prefill_tokens_per_s", "tokens/s", prefilled / made.ttft_s)
    repetition.add("e2e_s", "s", derive.e2e_s(made.ttft_s, made.gaps_s))
    repetition.extend("itl_s", "s", made.intervals_s)
    # From all of them: tokens that came together are in it.
    tpot_s = derive.tpot_s(made.gaps_s)
    rate = derive.decode_tokens_per_s(made.gaps_s, batch=options.batch_size)
    if tpot_s is not None and rate is not None:
        repetition.add("tpot_s", "s", tpot_s)
        repetition.add("decode_tokens_per_s", "tokens/s", rate)
    if made.own is None:
        return
    for name, ours_s, theirs_s in (
        ("prefill", made.ttft_s, made.own.prefill_s),
        ("decode", made.decode_s, made.own.decode_s),
    ):
        if ours_s > 0 and theirs_s > 0:
            repetition.add(f"{name}_over_own_timing", "1", ours_s / theirs_s)
            if not repetition.warmup:
                own.setdefault(name, []).append(ours_s / theirs_s)


def _agree(own: dict[str, list[float]]) -> dict[str, bool]:
    return {
        name: abs(statistics.median(ratios) - 1.0) <= OWN_TIMING_TOLERANCE
        for name, ratios in own.items()
    }


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, and of the texts that are read."""
    options = identity["task"]
    found = content_of(identity["model"])
    if options["quality_tokens"]:
        found |= text_content("auto")
    found |= evaluation.content(options["evaluate"])
    if options["prompt"] != RANDOM:
        name = texts.PACKAGED_TEXT if options["prompt"] == TEXT else options["prompt"]
        found |= {"prompt": text_content(name)["text"]}
    return found


_P95 = Column("itl_s", "p95")
_LONG_OVER_SHORT = Column("itl_s", "p95", over="task.new_tokens")

TASK = Task(
    name="inference",
    config=InferenceConfig,
    run=run,
    check=check,
    on_engine=True,
    preload=engines.preload,
    secrets=engines.secrets,
    packages=engines.packages,
    content=content,
    expect=engines.expect,
    columns=(_P95, _LONG_OVER_SHORT),
    named=("gguf_layers", "file_layers"),
    headline=(
        "tpot_s",
        "ttft_s",
        "weights_bytes",
        "perplexity",
        "kl_to_reference",
        "kl_top_to_reference",
        *evaluation.HEADLINE,
        "draft_speedup",
        "predicted_draft_speedup",
        "draft_acceptance",
        "decode_tokens_per_s",
        _OVER_WEIGHTS,
        "load_s",
        "e2e_s",
        "itl_s",
        _P95.name,
        _LONG_OVER_SHORT.name,
    ),
)
