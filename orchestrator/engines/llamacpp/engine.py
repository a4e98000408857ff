"""``engine=llamacpp``: a GGUF file run by llama.cpp.

Weights are taken from the file as it is for ``quant=source``, and where most of them are in the
format asked for already; else the file is written in that format once, into the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.engines.digest import digest_files, digest_text
from orchestrator.engines.gguf_files import gguf_files
from orchestrator.engines.llamacpp import formats
from orchestrator.engines.llamacpp.expected import GGUF_MADE, GGUF_TYPE, expect_llamacpp
from orchestrator.engines.llamacpp.options import gpu_layers, room_tokens
from orchestrator.engines.llamacpp.proofs import prove
from orchestrator.engines.llamacpp.server import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    Completion,
    LlamaServer,
    Setting,
)
from orchestrator.engines.next_tokens import TOP, along
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    OwnTimings,
    Prompt,
    Session,
    Tokenizer,
    Work,
    has_package,
)
from orchestrator.engines.source import find_problem, model_path, packaged_file
from orchestrator.engines.texts import begin_of_text
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
_PLAIN_CACHES = ("f32", "f16", "bf16")


@dataclass
class LlamaCppConfig:
    """Options of ``engine=llamacpp``. Threads are ``device.threads``, as on every engine.

    Attributes
    ----------
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


class LlamaCppModel(Model):
    """A GGUF file in the format asked for."""

    def __init__(
        self,
        identity: Identity,
        file: Path,
        contents: formats.Contents,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._file = file
        self._contents = contents
        self._clock = clock
        self.files = gguf_files(file)
        self.context_tokens = contents.context_tokens

    def load(self, work: Work) -> LlamaCppSession:
        options, device = self._identity["engine"], self._identity["device"]
        threads = device["threads"] or len(usable_cores())
        setting = Setting(
            file=self._file,
            context_tokens=room_tokens(options["context_tokens"], work),
            threads=threads,
            threads_batch=options["threads_batch"] or threads,
            batch=options["batch"],
            micro_batch=min(options["micro_batch"], options["batch"]),
            gpu_layers=gpu_layers(options["gpu_layers"], self._contents.layers + 1),
            flash_attention=options["flash_attention"],
            cache_type_k=options["cache_type_k"],
            cache_type_v=options["cache_type_v"],
            mmap=options["mmap"],
            mlock=options["mlock"],
        )
        # Its weights are mapped and its room set aside at once: all else counts from before.
        memory: PhaseMemory | str = "layers are on the GPU, whose memory telemetry has"
        if not setting.gpu_layers:
            memory = PhaseMemory(HostMemory(), weights_bytes=self._contents.weights_bytes)
        server = LlamaServer(setting)
        return LlamaCppSession(server, setting, self._contents, memory, self._clock)


class LlamaCppSession(Session):
    """llama.cpp's server inside this process."""

    def __init__(
        self,
        server: LlamaServer,
        setting: Setting,
        contents: formats.Contents,
        memory: PhaseMemory | str,
        clock: Clock,
    ) -> None:
        self._server = server
        self._setting = setting
        self._contents = contents
        self._clock = clock
        self.memory = memory
        self.vocabulary = contents.vocabulary
        self.ordinary_ids = contents.ordinary_ids
        self.context_tokens = contents.context_tokens
        self._last: tuple[int, Completion] | None = None

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
        (ids,) = prompt
        with phases.together("generate"):
            answer = self._server.complete(ids, new_tokens, self._clock)
        _refuse_other_counts(answer, len(ids), new_tokens)
        self._last = len(ids), answer
        phases.window("prefill", answer.begin_ns, answer.arrivals_ns[0])
        if new_tokens > 1:
            phases.window("decode", answer.arrivals_ns[0], answer.arrivals_ns[-1])
        return Generation(
            tuple((at_ns - answer.begin_ns) / 1e9 for at_ns in answer.arrivals_ns),
            digest_text(answer.text)[:16],
            OwnTimings(answer.own_prefill_s, answer.own_decode_s),
        )

    def footprint(self) -> Footprint:
        return Footprint(self._contents.weights_bytes, self._contents.parameters)

    def tokenizer(self) -> Tokenizer | str:
        plain, full = (self._server.tokenize(_PROBE, special=special) for special in (False, True))
        return Tokenizer(self._server.tokenize, begin_of_text(plain, full))

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        count = min(TOP, self.vocabulary)
        return along(self._server.next_logprobs, ids, targets, count, self.vocabulary)

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        if self._last is not None:
            asked, answer = self._last
            recorder.engaged("prompt tokens", asked, answer.prompt_tokens)
            recorder.engaged("prompt tokens from a cache", 0, answer.cached_tokens)
        prove(self._server, prompt[0], self.vocabulary, recorder)

    def close(self) -> None:
        self._server.close()


def _refuse_other_counts(answer: Completion, prompt_tokens: int, new_tokens: int) -> None:
    got = (answer.prompt_tokens, answer.new_tokens, answer.cached_tokens)
    if got != (prompt_tokens, new_tokens, 0) or len(answer.arrivals_ns) != new_tokens:
        raise Mismatch(
            f"llama.cpp took {got[0]} prompt tokens ({got[2]} from a cache) and gave {got[1]}; "
            f"asked for {prompt_tokens} and {new_tokens}"
        )


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    with recorder.phase("prepare", measured=False):
        if problem := find_problem(identity["model"]):
            raise problem.as_input_error()
        packaged = packaged_file() if identity["model"]["source"] == "packaged" else None
        source_file = packaged or model_path(identity["model"])
        digest = digest_files(gguf_files(source_file))
        asked = formats.gguf_type(identity["quant"])
        file = formats.in_format(source_file, digest, asked, recorder)
        contents = formats.contents(file)
    made = file != source_file
    recorder.fact("weights_digest", digest)
    recorder.fact("gguf", {"architecture": contents.architecture, "tensors": contents.types})
    if asked is not None:
        recorder.engaged("format", asked, contents.matrix_type)
    if contents.config is not None:
        config = {**contents.config, GGUF_TYPE: contents.matrix_type, GGUF_MADE: made}
        recorder.fact("model_config", config)
    return LlamaCppModel(identity, file, contents, recorder.clock)


def _check(identity: Identity, work: Work) -> str | None:
    options = identity["engine"]
    if not has_package(identity, "xllamacpp"):
        raise ConfigError("xllamacpp is not installed", where="engine=llamacpp", fix=_INSTALL)
    if identity["model"]["source"] not in ("packaged", "gguf"):
        return (
            f"llama.cpp runs GGUF files, not a {identity['model']['source']} model: "
            "use model=gguf model.path=FILE.gguf"
        )
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    if work.batch_size > 1:
        return f"llamacpp generates one sequence, not task.batch_size={work.batch_size}"
    offloads = gpu_layers(options["gpu_layers"], 100) > 0
    if offloads and identity["device"]["kind"] != "cuda":
        return f"engine.gpu_layers={options['gpu_layers']} needs a GPU"
    if options["flash_attention"] == "off" and options["cache_type_v"] not in _PLAIN_CACHES:
        return f"cache_type_v={options['cache_type_v']} needs flash attention"
    needed = work.room_tokens()
    if options["context_tokens"] and needed > options["context_tokens"]:
        return (
            f"prompt and output, or quality_tokens, take {needed} tokens, more than "
            f"engine.context_tokens={options['context_tokens']}"
        )
    return None


ENGINE = Engine(
    name="llamacpp",
    config=LlamaCppConfig,
    formats=formats.NAMES,
    prepare=_prepare,
    check=_check,
    packages=lambda identity: ("xllamacpp",),
    expect=expect_llamacpp,
)
