"""A GGUF file run by llama.cpp: load, prefill, decode token by token, and quality by format.

::

    prepare                            format made into the cache where it is not there
    load                               load_s
    first_call                         first_call_s: nothing before it, not even the server's own
                                       warm-up unless ``server_warmup`` asks for it
    warmup ...                         the protocol's
    prefill, decode, prefill, ...      samples, until the protocol's stopping rule
    prove                              that its cache held what it was fed
    quality                            where asked for; a pass of its own

llama.cpp's own reading of each run is recorded beside ours: ``prefill_over_own_timing`` and
``decode_over_own_timing`` are ours over theirs. Theirs divides the decode by its tokens, of which
the first took none of that time: compare the times, not its tokens per second.
"""

from __future__ import annotations

import importlib.util
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engines import transformers as loading
from orchestrator.engines.content import content_of, text_content
from orchestrator.engines.digest import digest_files, digest_text
from orchestrator.engines.gguf_files import gguf_files
from orchestrator.engines.llamacpp import formats, quality
from orchestrator.engines.llamacpp.expected import GGUF_TYPE, expect_llamacpp
from orchestrator.engines.llamacpp.options import context_room, gpu_layers, needed_tokens
from orchestrator.engines.llamacpp.proofs import prove
from orchestrator.engines.llamacpp.reference import is_reference, reference_for
from orchestrator.engines.llamacpp.server import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    INSTALL,
    Completion,
    LlamaServer,
)
from orchestrator.engines.llamacpp.server import Setting as ServerSetting
from orchestrator.engines.residency import resident_fraction
from orchestrator.engines.source import context_tokens, find_problem, model_path, packaged_file
from orchestrator.engines.text_windows import WINDOW_TOKENS, cut, window_tokens
from orchestrator.engines.transformers import tokens
from orchestrator.measure import (
    ConfigError,
    HostMemory,
    Identity,
    InputError,
    Recorder,
    Repetition,
    Task,
    derive,
    first_call,
    repeat,
    timed,
)
from orchestrator.measure.columns import Column
from orchestrator.measure.figures import Bars, Distribution, Pareto
from orchestrator.measure.options import bounded, choice, options_of
from orchestrator.measure.phase_memory import PhaseMemory

OWN_TIMING_TOLERANCE = 0.03
_CHARACTERS_A_TOKEN = 64
_TEXT = "pydoc_topics"
_OVER_WEIGHTS = "peak_memory_over_weights_bytes"


@dataclass
class LlamaCppConfig:
    """Options of ``task=llamacpp``. Threads are ``device.threads``, as in every task.

    Attributes
    ----------
    format : str
        ``source`` (the file as it is), or its weights as ``BF16``, ``Q8_0``, ``Q5_1``, ``Q4_0``,
        ``Q4_1`` or ``MXFP4``.
    threads_batch : int
        For the prompt; 0 for as many as for decode.
    batch, micro_batch : int
        Tokens of a prompt taken at once, logically and in one computation.
    context_tokens : int
        Room for prompt and output; 0 for as much as they need.
    gpu_layers : str
        A number, a percentage of all layers (the output layer counts as one), or ``all``.
    flash_attention : str
        ``auto``, ``on`` or ``off``.
    cache_type_k, cache_type_v : str
        Formats of the key-value cache.
    server_warmup : bool
        Let the server run once while it loads: then ``first_call_s`` is not a cold start.
    quality_tokens : int
        Afterwards measure perplexity over so many tokens, and the distance to the same weights in
        BF16; 0 for none.
    """

    name: str = "llamacpp"
    format: str = choice(formats.SOURCE, *formats.FORMATS)
    prompt_tokens: int = bounded(128, low=1)
    new_tokens: int = bounded(64, low=1)
    threads_batch: int = bounded(0, low=0)
    batch: int = bounded(512, low=1)
    micro_batch: int = bounded(512, low=1)
    context_tokens: int = bounded(0, low=0)
    gpu_layers: str = "0"
    flash_attention: str = choice(*FLASH_ATTENTION, default="auto")
    cache_type_k: str = choice(*CACHE_TYPES, default="f16")
    cache_type_v: str = choice(*CACHE_TYPES, default="f16")
    mmap: bool = True
    mlock: bool = False
    server_warmup: bool = False
    quality_tokens: int = bounded(0, low=0)


def check(identity: Identity) -> str | None:
    """None, or one line why this cannot be done; :class:`ConfigError` for what has no sense."""
    options = identity["task"]
    if importlib.util.find_spec("xllamacpp") is None:
        raise ConfigError("llama.cpp is not installed", where="task=llamacpp", fix=INSTALL)
    if identity["model"]["source"] not in ("packaged", "gguf"):
        raise ConfigError(
            f"llama.cpp runs GGUF files, not a {identity['model']['source']} model",
            where="model",
            fix="Use model=gguf model.path=FILE.gguf, or model=smollm2_135m",
        )
    if identity["quant"]["scheme"] != "none":
        raise ConfigError(
            f"llama.cpp has formats of its own, not {identity['quant']['scheme']}",
            where="quant",
            fix=f"Leave it out and choose task.format: {', '.join(formats.FORMATS)}",
        )
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    offloads = gpu_layers(options["gpu_layers"], 100) > 0
    if offloads and identity["device"]["kind"] != "cuda":
        return f"task.gpu_layers={options['gpu_layers']} needs a GPU"
    if options["flash_attention"] == "off" and options["cache_type_v"] not in (
        "f32",
        "f16",
        "bf16",
    ):
        return f"cache_type_v={options['cache_type_v']} needs flash attention"
    needed = needed_tokens(options, context_tokens(identity["model"]))
    if options["context_tokens"] and needed > options["context_tokens"]:
        return (
            f"prompt and output, or quality_tokens, take {needed} tokens, more than "
            f"task.context_tokens={options['context_tokens']}"
        )
    return loading.check_length(identity["model"], needed, "prompt and output, or quality_tokens,")


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure one trial; see the module for its phases."""
    options = options_of(LlamaCppConfig, identity)
    with recorder.phase("prepare", measured=False):
        if problem := find_problem(identity["model"]):
            raise problem.as_input_error()
        packaged = packaged_file() if identity["model"]["source"] == "packaged" else None
        source = packaged or model_path(identity["model"])
        digest = digest_files(gguf_files(source))
        file = formats.in_format(source, digest, options.format, recorder)
        contents = formats.contents(file)
        setting = _setting(options, identity, contents, file)
    recorder.fact("weights_digest", digest)
    recorder.fact("gguf", {"architecture": contents.architecture, "tensors": contents.types})
    recorder.fact("parameters", contents.parameters)
    recorder.fact("server_warmup", options.server_warmup)
    recorder.fact(
        "page_cache",
        {
            "controlled": False,
            "resident_fraction_before_load": resident_fraction(gguf_files(file)),
            "bytes": sum(each.stat().st_size for each in gguf_files(file)),
        },
    )
    recorder.value("weights_bytes", "bytes", contents.weights_bytes)
    recorder.value(
        "weights_bits_per_parameter", "bit", 8 * contents.weights_bytes / contents.parameters
    )
    if contents.config is not None:
        recorder.fact("model_config", {**contents.config, GGUF_TYPE: contents.matrix_type})
    if options.format != formats.SOURCE:
        recorder.engaged("format", options.format, contents.matrix_type)
    memory = PhaseMemory(HostMemory(), weights_bytes=contents.weights_bytes)
    with recorder.phase("load", measured=False), timed(recorder.clock) as span:
        server = LlamaServer(setting)
    recorder.value("load_s", "s", span.seconds)
    if setting.gpu_layers:
        _prove_offloaded(server, setting, contents, recorder)
    _measure(server, setting, contents, options, identity, memory, recorder)
    if setting.gpu_layers:
        recorder.absent(_OVER_WEIGHTS, "bytes", "layers are on the GPU, whose memory telemetry has")
    else:
        memory.record(recorder)
    if options.quality_tokens:
        with recorder.phase("quality", measured=False):
            _measure_quality(server, setting, contents, options, source, digest, recorder)


def _setting(
    options: LlamaCppConfig, identity: Identity, contents: formats.Contents, file: Path
) -> ServerSetting:
    limit = contents.context_tokens
    needed, room = needed_tokens(identity["task"], limit), context_room(identity["task"])
    if (limit is not None and needed > limit) or needed > room:
        raise InputError(
            f"prompt and output, or quality_tokens, take {needed} tokens; the context has "
            f"{min(room, limit or room)}",
            where="task",
            fix="Shorten task.prompt_tokens, task.new_tokens or task.quality_tokens",
        )
    threads = loading.thread_count(identity["device"])
    return ServerSetting(
        file=file,
        context_tokens=room,
        threads=threads,
        threads_batch=options.threads_batch or threads,
        batch=options.batch,
        micro_batch=min(options.micro_batch, options.batch),
        gpu_layers=gpu_layers(options.gpu_layers, contents.layers + 1),
        flash_attention=options.flash_attention,
        cache_type_k=options.cache_type_k,
        cache_type_v=options.cache_type_v,
        mmap=options.mmap,
        mlock=options.mlock,
        warmup=options.server_warmup,
    )


def _prove_offloaded(
    server: LlamaServer, setting: ServerSetting, contents: formats.Contents, recorder: Recorder
) -> None:
    share = setting.gpu_layers / (contents.layers + 1)
    taken = server.gpu_taken_bytes or 0
    # Half of it leaves room for layers of unequal size; a build that offloads nothing takes none.
    least = 0.5 * share * contents.weights_bytes
    recorder.engaged(
        "gpu layers",
        f"{setting.gpu_layers} of {contents.layers + 1}",
        f"{taken} bytes taken of the GPU",
        ok=taken >= least,
    )


def _measure(
    server: LlamaServer,
    setting: ServerSetting,
    contents: formats.Contents,
    options: LlamaCppConfig,
    identity: Identity,
    memory: PhaseMemory,
    recorder: Recorder,
) -> None:
    prompt = random_prompt(contents.ordinary_ids, options.prompt_tokens, identity["seed"])
    if options.server_warmup:
        recorder.absent("first_call_s", "s", "the server had warmed up before its first call")
    cold = nullcontext() if options.server_warmup else first_call(recorder)
    with recorder.phase("first_call", measured=False), cold:
        first = server.complete(prompt, 1, recorder.clock)
    _prove_counts(first, options.prompt_tokens, 1, recorder)
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    merged = 0
    outputs: set[str] = set()
    watch = "tpot_s" if options.new_tokens > 1 else "ttft_s"
    for repetition in repeat(recorder, identity["protocol"], watch=watch):
        if repetition.warmup:
            with recorder.phase("warmup", measured=False):
                answer = server.complete(prompt, options.new_tokens, recorder.clock)
        else:
            with memory.watching("generate"):
                answer = server.complete(prompt, options.new_tokens, recorder.clock)
            recorder.window("prefill", answer.begin_ns, answer.first_ns)
            if options.new_tokens > 1:
                recorder.window("decode", answer.first_ns, answer.last_ns)
        _refuse_wrong_counts(answer, options.prompt_tokens, options.new_tokens)
        _add(repetition, answer, options, ratios if not repetition.warmup else None)
        merged += answer.merged_tokens
        outputs.add(digest_text(answer.text)[:16])
    recorder.fact("threads", {"decode": setting.threads, "batch": setting.threads_batch})
    recorder.fact("output_digests", sorted(outputs))
    recorder.fact("tokens_that_came_together", merged)
    if options.new_tokens == 1:
        for name, unit in (("itl_s", "s"), ("tpot_s", "s"), ("decode_tokens_per_s", "tokens/s")):
            recorder.absent(name, unit, "one new token has no interval between tokens")
    within = {
        name: abs(statistics.median(values) - 1.0) <= OWN_TIMING_TOLERANCE
        for name, values in ratios.items()
        if values
    }
    recorder.fact("own_timings_agree", {"tolerance": OWN_TIMING_TOLERANCE, **within})
    with recorder.phase("prove", measured=False):
        prove(server, prompt, contents.vocabulary, recorder)


def _add(
    repetition: Repetition,
    answer: Completion,
    options: LlamaCppConfig,
    ratios: dict[str, list[float]] | None,
) -> None:
    steps = options.new_tokens - 1
    repetition.add("ttft_s", "s", answer.ttft_s)
    repetition.add("prefill_tokens_per_s", "tokens/s", options.prompt_tokens / answer.ttft_s)
    repetition.add("e2e_s", "s", answer.ttft_s + answer.decode_s)
    found = {"prefill": _over(answer.ttft_s, answer.own_prefill_s)}
    if steps and answer.decode_s > 0:
        repetition.extend("itl_s", "s", answer.intervals_s)
        # From the two ends, not from the intervals: tokens that came together are in it.
        mean_s = answer.decode_s / steps
        repetition.add("tpot_s", "s", mean_s)
        rate = derive.decode_tokens_per_s([mean_s] * steps)
        if rate is not None:
            repetition.add("decode_tokens_per_s", "tokens/s", rate)
        found["decode"] = _over(answer.decode_s, answer.own_decode_s)
    for name, ratio in found.items():
        if ratio is None:
            continue
        repetition.add(f"{name}_over_own_timing", "1", ratio)
        if ratios is not None:
            ratios[name].append(ratio)


def _over(ours_s: float, theirs_s: float) -> float | None:
    return ours_s / theirs_s if theirs_s > 0 else None


def _prove_counts(
    answer: Completion, prompt_tokens: int, new_tokens: int, recorder: Recorder
) -> None:
    recorder.engaged("prompt tokens", prompt_tokens, answer.prompt_tokens)
    recorder.engaged("new tokens", new_tokens, answer.new_tokens)
    recorder.engaged("prompt tokens from a cache", 0, answer.cached_tokens)


def _refuse_wrong_counts(answer: Completion, prompt_tokens: int, new_tokens: int) -> None:
    got = (answer.prompt_tokens, answer.new_tokens, answer.cached_tokens)
    if got != (prompt_tokens, new_tokens, 0):
        raise InputError(
            f"llama.cpp took {got[0]} prompt tokens ({got[2]} from a cache) and gave {got[1]}; "
            f"asked for {prompt_tokens} and {new_tokens}",
            where="task=llamacpp",
        )


def random_prompt(ids: tuple[int, ...], length: int, seed: int) -> list[int]:
    """Seeded random ids that are text: never a special token, which would end or begin one."""
    import numpy as np

    if not ids:
        raise InputError("the vocabulary has no ordinary tokens", where="model")
    picks = np.random.default_rng(seed).integers(len(ids), size=length)
    return [ids[int(pick)] for pick in picks]


def _measure_quality(
    server: LlamaServer,
    setting: ServerSetting,
    contents: formats.Contents,
    options: LlamaCppConfig,
    source: Path,
    digest: str,
    recorder: Recorder,
) -> None:
    text = tokens.read_text(_TEXT, options.quality_tokens * _CHARACTERS_A_TOKEN)
    ids = server.tokenize(text)[: options.quality_tokens + 1]
    if len(ids) <= options.quality_tokens:
        raise InputError(
            f"the text has {len(ids)} tokens, {options.quality_tokens + 1} are needed",
            where="task.quality_tokens",
            fix="Give fewer",
        )
    tokens.refuse_foreign(ids, contents.vocabulary)
    window = window_tokens(WINDOW_TOKENS, contents.context_tokens)
    windows = cut(ids, window, server.begin_of_text())
    recorder.fact("quality_text", _TEXT)
    recorder.fact("quality_tokens_digest", tokens.ids_digest(ids))
    recorder.fact("quality_windows", windows.facts())
    own = quality.predict(server, windows, contents.vocabulary)
    server.close()
    itself = own if is_reference(options.format, setting) else None
    quality.record(
        recorder,
        own,
        reference_for(itself, setting, source, digest, windows, contents.vocabulary, recorder),
    )


_P95 = Column("itl_s", "p95")
_LONG_OVER_SHORT = Column("itl_s", "p95", over="task.new_tokens")


def content(identity: Identity) -> dict[str, str | None]:
    """Of the model, and of the text where quality is asked for."""
    text = text_content("auto") if identity["task"]["quality_tokens"] else {}
    return content_of(identity["model"]) | text


TASK = Task(
    name="llamacpp",
    config=LlamaCppConfig,
    run=run,
    check=check,
    content=content,
    packages=lambda identity: ("xllamacpp",),
    expect=expect_llamacpp,
    columns=(_P95, _LONG_OVER_SHORT),
    headline=(
        "tpot_s",
        "ttft_s",
        "weights_bytes",
        "perplexity",
        "kl_to_reference",
        "top1_agreement",
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "itl_s",
        _P95.name,
        _LONG_OVER_SHORT.name,
        "load_s",
        "first_call_s",
        _OVER_WEIGHTS,
    ),
    figures=(
        Bars("tpot_s"),
        Distribution("itl_s"),
        Pareto("weights_bytes", "tpot_s", colour="perplexity"),
    ),
)
