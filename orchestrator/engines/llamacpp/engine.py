"""``engine=llamacpp``: a GGUF file run by llama.cpp.

Weights are taken from the file as it is for ``quant=source``, and where most of them are in the
format asked for already; else the file is written in that format once, into the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.engines import gguf_formats as formats
from orchestrator.engines.gguf_files import gguf_files
from orchestrator.engines.likeliest_proofs import prove
from orchestrator.engines.llamacpp.expected import GGUF_MADE, GGUF_TYPE, expect_llamacpp
from orchestrator.engines.llamacpp.options import context_problem, gpu_layers, room_tokens
from orchestrator.engines.llamacpp.same_tokens import judge_tokens
from orchestrator.engines.llamacpp.server import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    Completion,
    LlamaServer,
    Setting,
)
from orchestrator.engines.llamacpp.speculation import prove_speculation
from orchestrator.engines.next_tokens import TOP, along
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    OwnTimings,
    Prompt,
    Service,
    Session,
    Work,
    has_package,
)
from orchestrator.engines.texts import begin_of_text
from orchestrator.engines.tokenizer import Tokenizer, cut_before
from orchestrator.host.cpu import usable_cores
from orchestrator.measure import (
    Clock,
    ConfigError,
    HostMemory,
    Identity,
    Mismatch,
    Recorder,
)
from orchestrator.measure.options import bounded, choice
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.sampling import Phases, no_phase

_INSTALL = "Reinstall this project's dependencies: make setup"
_PROBE = "a text"
# Requests that its server holds at once, waiting for a slot or being answered.
_CONNECTIONS = 512
_PLAIN_CACHES = ("f32", "f16", "bf16")


@dataclass
class LlamaCppConfig:
    """Options of ``engine=llamacpp``. Threads are ``device.threads``, as on every engine.

    Attributes
    ----------
    threads_batch : int
        For the prompt; 0 for as many as for decode.
    batch, micro_batch : int
        Tokens of a prompt taken at once, logically and (no more) in one computation. Logically the
        prompts of several sequences are always taken at once: they begin to decode together.
    context_tokens : int
        Room for prompt and output of each sequence, a multiple of 256; 0 for as much as they need.
    gpu_layers : str
        A number, a percentage of all layers (the output layer counts as one), or ``all``.
    flash_attention : str
        ``auto``, ``on`` or ``off``.
    cache_type_k, cache_type_v : str
        Formats of the key-value cache.
    draft : str or None
        Speculative decoding by the same weights in this format.
    draft_tokens : int or None
        Tokens that the draft proposes a step.
    """

    name: str = "llamacpp"
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
    draft: str | None = field(default=None, metadata={"choices": tuple(formats.WRITTEN)})
    draft_tokens: int | None = bounded(None, low=1)


class LlamaCppModel(Model):
    """A GGUF file in the format asked for."""

    def __init__(
        self,
        identity: Identity,
        file: Path,
        contents: formats.Contents,
        draft: Path | None,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._file = file
        self._contents = contents
        self._draft = draft
        self._clock = clock
        self.files = [*gguf_files(file), *([draft] if draft else [])]
        self.context_tokens = contents.context_tokens

    def load(self, work: Work) -> LlamaCppSession:
        options, device = self._identity["engine"], self._identity["device"]
        threads = device["threads"] or len(usable_cores())
        rows = work.batch_size
        together = rows * (work.tokens - work.depth) if rows > 1 and not work.served else 0
        setting = Setting(
            file=self._file,
            rows=rows,
            context_tokens=room_tokens(options["context_tokens"], work),
            threads=threads,
            threads_batch=options["threads_batch"] or threads,
            batch=max(options["batch"], together),
            micro_batch=min(options["micro_batch"], options["batch"]),
            gpu_layers=gpu_layers(options["gpu_layers"], self._contents.layers + 1),
            flash_attention=options["flash_attention"],
            cache_type_k=options["cache_type_k"],
            cache_type_v=options["cache_type_v"],
            mmap=options["mmap"],
            mlock=options["mlock"],
            draft=self._draft,
            draft_tokens=options["draft_tokens"] or 0,
            connections=_CONNECTIONS if work.served else 0,
        )
        # Its weights are mapped and its room set aside at once: all else counts from before.
        memory: PhaseMemory | str = "layers are on the GPU, whose memory telemetry has"
        if not setting.gpu_layers:
            weights_bytes = self._contents.weights_bytes
            if self._draft:
                weights_bytes += formats.contents(self._draft).weights_bytes
            memory = PhaseMemory(HostMemory(), weights_bytes=weights_bytes)
        server = LlamaServer(setting)
        return LlamaCppSession(server, setting, self._contents, memory, self._clock, work)


class LlamaCppSession(Session):
    """llama.cpp's server inside this process."""

    def __init__(
        self,
        server: LlamaServer,
        setting: Setting,
        contents: formats.Contents,
        memory: PhaseMemory | str,
        clock: Clock,
        work: Work,
    ) -> None:
        self._server = server
        self._setting = setting
        self._contents = contents
        self._clock = clock
        self._work, self._depth = work, work.depth
        self.memory = memory
        self.vocabulary = contents.vocabulary
        self.ordinary_ids = contents.ordinary_ids
        self.context_tokens = contents.context_tokens
        self._last: tuple[int, list[Completion]] | None = None

    def ready(self, recorder: Recorder) -> None:
        setting, contents = self._setting, self._contents
        recorder.fact("threads", {"decode": setting.threads, "batch": setting.threads_batch})
        if setting.gpu_layers:
            layers = contents.layers + 1
            taken = self._server.gpu_taken_bytes or 0
            # Half of it leaves room for layers of unequal size; a build that offloads nothing takes
            # none.
            least = 0.5 * setting.gpu_layers / layers * contents.weights_bytes
            recorder.engaged(
                "gpu layers",
                f"{setting.gpu_layers} of {layers}",
                f"{taken} bytes taken of the GPU",
                ok=taken >= least,
            )

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        length, depth = len(prompt[0]), self._depth
        if depth:
            self._server.fill(prompt, depth)
        with phases.together("generate"):
            answers = self._server.complete(prompt, new_tokens, self._clock, depth=depth)
        for answer in answers:
            _refuse_other_counts(answer, length, new_tokens, depth)
        self._last = length, answers
        begin_ns = answers[0].begin_ns
        # A token of the batch is there when the last sequence has it.
        arrivals = [max(at) for at in zip(*(a.arrivals_ns for a in answers), strict=True)]
        phases.window("prefill", begin_ns, arrivals[0])
        if new_tokens > 1:
            phases.window("decode", arrivals[0], arrivals[-1])
        return Generation(
            tuple((at_ns - begin_ns) / 1e9 for at_ns in arrivals),
            "".join(answer.text for answer in answers),
            OwnTimings(
                max(answer.own_prefill_s for answer in answers),
                max(answer.own_decode_s for answer in answers),
            ),
        )

    def service(self) -> Service:
        body = self._server.served_body(reuse=self._work.reuse)
        return Service(
            f"{self._server.address}/v1/completions",
            body,
            goes_on={"cache_prompt": True},
            metrics_url=f"{self._server.address}/metrics",
        )

    def footprint(self) -> Footprint:
        return Footprint(self._contents.weights_bytes, self._contents.parameters)

    def tokenizer(self) -> Tokenizer | str:
        plain, full = (self._server.tokenize(_PROBE, special=special) for special in (False, True))
        begin, start_id = begin_of_text(plain, full), self._contents.start_id
        return Tokenizer(self._server.tokenize, begin, start_id=start_id)

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        count = min(TOP, self.vocabulary)
        return along(self._server.next_logprobs, ids, targets, count, self.vocabulary)

    def likelihood(self, ids: Sequence[int], targets: Sequence[int]) -> tuple[float, bool]:
        return along(self._server.next_logprobs, ids, targets, 1, self.vocabulary).likelihood(
            targets
        )

    def continuation(
        self, ids: Sequence[int], most: int, until: Sequence[str], tokenizer: Tokenizer
    ) -> str:
        return cut_before(self._server.text(ids, most, until), until)

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        if self._last is not None:
            asked, answers = self._last
            for what, wanted, got in (
                ("prompt tokens", asked, {a.prompt_tokens for a in answers}),
                ("prompt tokens from a cache", self._depth, {a.cached_tokens for a in answers}),
            ):
                recorder.engaged(what, wanted, ", ".join(map(str, sorted(got))))
        server, depth = self._server, self._depth
        prove(server, prompt[0], self.vocabulary, recorder, depth, server.fill)
        if len(prompt) > 1:
            together = self._server.tokens(prompt, new_tokens)
            found = judge_tokens(self._server, prompt, together)
            found.record(recorder, "tokens of each row", "those of the row alone")
        if self._setting.draft:
            prove_speculation(self._server, self._setting, prompt[0], new_tokens, recorder)

    def close(self) -> None:
        self._server.close()


def _refuse_other_counts(
    answer: Completion, prompt_tokens: int, new_tokens: int, depth: int
) -> None:
    got = (answer.prompt_tokens, answer.new_tokens, answer.cached_tokens)
    if got != (prompt_tokens, new_tokens, depth) or len(answer.arrivals_ns) != new_tokens:
        raise Mismatch(
            f"llama.cpp took {got[0]} prompt tokens ({got[2]} from a cache) and gave {got[1]}; "
            f"asked for {prompt_tokens} ({depth} from a cache) and {new_tokens}"
        )


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    with recorder.phase("prepare", measured=False):
        found = formats.prepare(identity, recorder)
        draft = None
        if identity["engine"]["draft"]:
            kind = formats.WRITTEN[identity["engine"]["draft"]]
            draft = formats.in_format(found.source, found.digest, kind, recorder)
            smaller = formats.contents(draft)
            recorder.value("draft_weights_bytes", "bytes", smaller.weights_bytes)
            recorder.engaged("draft", kind, smaller.matrix_type)
    contents = found.contents
    if contents.config is not None:
        config = {**contents.config, GGUF_TYPE: contents.matrix_type, GGUF_MADE: found.made}
        recorder.fact("model_config", config)
    return LlamaCppModel(identity, found.file, contents, draft, recorder.clock)


def _check(identity: Identity, work: Work) -> str | None:
    options = identity["engine"]
    if not has_package(identity, "xllamacpp"):
        raise ConfigError("xllamacpp is not installed", where="engine=llamacpp", fix=_INSTALL)
    if reason := formats.check_source(identity, "llama.cpp"):
        return reason
    offloads = gpu_layers(options["gpu_layers"], 100) > 0
    if offloads and identity["device"]["kind"] != "cuda":
        return f"engine.gpu_layers={options['gpu_layers']} needs a GPU"
    flash = options["flash_attention"]
    if flash == "off" and options["cache_type_v"] not in _PLAIN_CACHES:
        return f"cache_type_v={options['cache_type_v']} needs flash attention"
    if "f32" in (options["cache_type_k"], options["cache_type_v"]) and flash != "off":
        # Its graph casts them (llama-graph.cpp, build_attn_mha): more memory, the same numbers.
        return "flash attention reads a cache of f32 as f16: use engine.flash_attention=off"
    if reason := context_problem(options) or _draft_reason(identity, work):
        return reason
    needed = work.room_tokens()
    if options["context_tokens"] and needed > options["context_tokens"]:
        return (
            f"{work.named}, or a text that is scored, take {needed} tokens, more than "
            f"engine.context_tokens={options['context_tokens']}"
        )
    return None


def _draft_reason(identity: Identity, work: Work) -> str | None:
    options, task = identity["engine"], identity["task"]
    draft, tokens = options["draft"], options["draft_tokens"]
    if (draft is None) != (tokens is None):
        return (
            f"engine.draft_tokens={tokens} has no effect: give engine.draft=q4_0, too"
            if draft is None
            else f"engine.draft={draft} proposes how many tokens? Give engine.draft_tokens=4"
        )
    if draft is None:
        return None
    if task.get("prompt", "random") == "random":
        return "a draft needs a text to go on with: use task=inference task.prompt=text"
    if work.batch_size > 1:
        return "a draft is for one sequence: use task.batch_size=1"
    if task["new_tokens"] == 1:
        return "a draft proposes nothing for one token: use task.new_tokens=32"
    if work.tokens - task["new_tokens"] < tokens + 2:
        return f"engine.draft_tokens={tokens} needs task.prompt_tokens={tokens + 2}, at least"
    return None


ENGINE = Engine(
    name="llamacpp",
    config=LlamaCppConfig,
    formats=formats.NAMES,
    prepare=_prepare,
    check=_check,
    packages=lambda identity: ("xllamacpp",),
    expect=expect_llamacpp,
    takes_depth=True,
    serves=True,
)
