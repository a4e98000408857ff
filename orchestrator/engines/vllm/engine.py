"""``engine=vllm``: vLLM on the CPU or on one GPU, in the environment ``vllm_cpu`` or ``vllm``.

Its engine runs inside the measured process and starts no other, so it ends with the attempt. One
step of it gives each sequence its next token; all prompts are prefilled in one step. A step hands
out ids that lie on the host, so on CUDA, too, a clock that is read after it has waited for the
device. Under a load it is vLLM's own server (:mod:`.served`).
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.engines.cache import cache_root
from orchestrator.engines.likeliest_proofs import judge
from orchestrator.engines.next_tokens import TOP
from orchestrator.engines.port import (
    Engine,
    Footprint,
    Generation,
    Model,
    NextLogprobs,
    Prompt,
    Session,
    Work,
    has_package,
)
from orchestrator.engines.proof import FAILED, PROVEN, Finding
from orchestrator.engines.reference import reference_identity
from orchestrator.engines.source import find_problem
from orchestrator.engines.tokenizer import Tokenizer
from orchestrator.engines.transformers.footprint import parameters_of
from orchestrator.errors import one_line
from orchestrator.host.cpu import flags
from orchestrator.measure import (
    Identity,
    Infeasible,
    InputError,
    OutOfMemory,
    Recorder,
    tracker,
)
from orchestrator.measure.phase_memory import PhaseMemory
from orchestrator.measure.sampling import Phases, no_phase
from orchestrator.measure.wording import format_name

if TYPE_CHECKING:
    from orchestrator.engines.transformers import Prepared

# Of its builds for a kind of device: the distribution, and the environment that has it.
_BUILDS = {"cpu": ("vllm-cpu", "vllm_cpu"), "cuda": ("vllm", "vllm")}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# The cache is shared out in blocks of so many tokens, at most.
_BLOCK = 256
# vLLM starts only where this share of the GPU is free. It is no limit where the cache has a size:
# what does not fit runs out of memory.
_FREE_SHARE = 0.01
# Tokens that a proof reads, and likeliest ones that it looks at.
_PROOF_TOKENS, _PROOF_TOP = 16, 256
# Relative error of log-probabilities that single precision explains.
_EXACT = 2e-5
_SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are the slot's
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRITON_F32_DEFAULT": "ieee",  # its attention would multiply float32 as TF32
}
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass
class VllmConfig:
    """Options of ``engine=vllm``.

    Attributes
    ----------
    enforce_eager : bool
        Do not compile the model; on CUDA, record no graphs of it either.
    """

    name: str = "vllm"
    enforce_eager: bool = True


class VllmModel(Model):
    """A directory of safetensors."""

    def __init__(self, prepared: Prepared, identity: Identity) -> None:
        self.prepared = prepared
        self.identity = identity
        self.files = prepared.files
        self.context_tokens = prepared.context_tokens
        self.dtype = _DTYPES[format_name(identity["quant"])]
        trusted = bool(identity["model"]["trust_remote_code"])
        parameters = parameters_of(prepared.config, own_code=trusted)
        # What is packed cannot be seen: the checkpoint's numbers, in the type that is proven.
        self.size = Footprint(parameters * _BYTES[self.dtype], parameters)

    def load(self, work: Work) -> Session:
        # Scored text: the token after the last one is read too, and one is generated.
        room = work.room_tokens(self.context_tokens) + 2
        rows = work.batch_size * room
        kind = self.identity["device"]["kind"]
        limits = {
            "kv_cache_memory_bytes": self.cache_bytes(work.batch_size, room),
            "gpu_memory_utilization": _FREE_SHARE,
        }
        os.environ |= {**_SETTINGS, "VLLM_CACHE_ROOT": str(cache_root() / "vllm")}
        loading.use_device(self.identity["device"])
        if work.served:
            from orchestrator.engines.vllm.served import ServedVllm

            return ServedVllm(self.identity, self.prepared, self.dtype, self.size, work, limits)
        os.environ |= _IN_PROCESS
        # It sets room aside while it loads, and on CPUs packs its weights: all else counts from
        # before.
        memory = PhaseMemory(tracker(kind), weights_bytes=self.size.weights_bytes)
        import vllm

        try:
            loaded = vllm.LLM(
                str(self.prepared.directory),
                dtype=self.dtype,
                enforce_eager=self.identity["engine"]["enforce_eager"],
                enable_prefix_caching=False,
                # A length beyond the model's own would be rejected.
                max_model_len=min(room, self.context_tokens or room),
                max_num_seqs=work.batch_size,
                max_num_batched_tokens=rows,
                max_logprobs=TOP,
                skip_tokenizer_init=True,
                disable_log_stats=True,
                seed=self.identity["seed"],
                **limits,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            if kind == "cuda" and "out of memory" in str(error):  # torch's, or vLLM's words for it
                raise OutOfMemory(one_line(error), where="device=cuda", device=True) from error
            raise InputError(
                f"vLLM cannot load this model: {one_line(error)}", where="engine=vllm"
            ) from error
        return VllmSession(loaded, self, memory, rows)

    def cache_bytes(self, sequences: int, room: int) -> int:
        """What the cache takes: ``room`` tokens of each sequence, in whole blocks.

        vLLM keeps a block to itself.
        """
        tokens = sequences * room + (sequences + 1) * _BLOCK
        config = self.prepared.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * tokens * int(config.num_hidden_layers * heads * size) * _BYTES[self.dtype]


class VllmSession(Session):
    """vLLM's engine, stepped here."""

    def __init__(self, loaded: Any, model: VllmModel, memory: PhaseMemory, tokens: int) -> None:
        from orchestrator.engines.transformers.tokens import ordinary_ids

        self._loaded = loaded
        self._engine = loaded.llm_engine
        self._model = model
        self._tokens = tokens
        self._asked = 0
        self._reused = 0
        self.vocabulary = int(model.prepared.config.get_text_config(decoder=True).vocab_size)
        self.ordinary_ids = ordinary_ids(model.prepared)
        self.context_tokens = model.context_tokens
        self.memory = memory

    def ready(self, recorder: Recorder) -> None:
        # Packed for oneDNN the matrices are empty, but keep their type.
        ((dtypes, devices),) = self._loaded.apply_model(_kinds)
        recorder.engaged("format", self._model.dtype, ", ".join(dtypes))
        recorder.engaged("device", self._model.identity["device"]["kind"], ", ".join(devices))
        config = self._engine.vllm_config
        cache = config.cache_config
        recorder.engaged("prefix cache", False, cache.enable_prefix_caching)
        # With less, sequences would wait for each other or be computed twice.
        there = cache.kv_cache_size_tokens
        recorder.engaged("cache room", self._tokens, there, ok=there >= self._tokens)
        compiled = config.compilation_config
        recorder.fact("cuda_graphs", compiled.cudagraph_mode.name)
        layers = compiled.static_forward_context.values()
        backends = {x.attn_backend.get_name() for x in layers if hasattr(x, "attn_backend")}
        recorder.fact("attention", sorted(backends))
        recorder.engaged(
            "eager",
            self._model.identity["engine"]["enforce_eager"],
            config.model_config.enforce_eager,
        )

    def generate(self, prompt: Prompt, new_tokens: int, phases: Phases = no_phase) -> Generation:
        import vllm

        asked = vllm.SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        clock = time.perf_counter_ns
        arrivals: list[int] = []
        with phases.together("generate"):
            begin = clock()
            out: dict[str, list[int]] = {}
            for row in prompt:
                out[self._ask(row, asked)] = []
            while self._engine.has_unfinished_requests():
                steps = self._engine.step()
                at = clock()
                for step in steps:
                    out[step.request_id] = list(step.outputs[0].token_ids)
                # Of the whole batch: when the last of its rows has it.
                arrivals += [at] * (min(map(len, out.values())) - len(arrivals))
        lengths = {len(ids) for ids in out.values()}
        if lengths != {new_tokens}:
            raise InputError(
                f"vLLM gave {sorted(lengths)} tokens, not the {new_tokens} asked for",
                where="engine=vllm",
            )
        self._reused += sum(step.num_cached_tokens for step in steps)
        phases.window("prefill", begin, arrivals[0])
        if new_tokens > 1:
            phases.window("decode", arrivals[0], arrivals[-1])
        return Generation(
            tuple((at - begin) / 1e9 for at in arrivals),
            tuple(map(tuple, out.values())),
        )

    def footprint(self) -> Footprint:
        return self._model.size

    def tokenizer(self) -> Tokenizer | str:
        from orchestrator.engines.transformers.tokens import load_tokenizer

        return load_tokenizer(self._model.prepared, trust_remote_code=False)

    def next_logprobs(self, ids: Sequence[int], targets: Sequence[int]) -> NextLogprobs:
        count = min(TOP, self.vocabulary)
        rows = self._of_prompt([*ids, targets[-1]], count)
        return NextLogprobs.of_rows(rows[-len(targets) :], targets, count)

    def tokens_after(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        import vllm

        asked = vllm.SamplingParams(
            temperature=0.0, max_tokens=most, ignore_eos=True, detokenize=False
        )
        name, given = self._ask(ids, asked), 0
        try:
            while self._engine.has_unfinished_requests():
                for step in self._engine.step():
                    tokens = step.outputs[0].token_ids
                    yield from tokens[given:]
                    given = len(tokens)
        finally:
            self._engine.abort_request([name])

    def prove(self, prompt: Prompt, new_tokens: int, recorder: Recorder) -> None:
        recorder.engaged("prompt tokens from a cache", 0, self._reused)
        fed = list(prompt[0][:_PROOF_TOKENS])
        if len(fed) < 2:
            return
        top = min(_PROOF_TOP, self.vocabulary)
        first, cached = self._decoded(fed, top)
        whole = self._of_prompt([*fed, first, first], top)
        other = self._of_prompt([*fed, first, fed[0] if fed[0] != first else fed[1]], top)
        alone = self._of_prompt([first, first], top)[-1]
        findings = {
            "finite log-probabilities": (
                _finite([*whole, cached]),
                "numbers, of prefill and decode",
            ),
            "causal": (_causal(whole, other), "a later token moves no earlier log-probabilities"),
            "cache": (
                judge(whole[-1], cached, alone, len(fed) + 1),
                "an error far below that without context",
            ),
        }
        recorder.fact("proofs", {name: found.state for name, (found, _) in findings.items()})
        for name, (found, asked) in findings.items():
            found.record(recorder, name, asked)

    def close(self) -> None:
        if self._loaded is not None:
            self._engine.engine_core.shutdown()
            self._loaded = self._engine = None

    def _ask(self, ids: Sequence[int], asked: Any) -> str:
        self._asked += 1
        name = str(self._asked)
        self._engine.add_request(name, {"prompt_token_ids": list(ids)}, asked)
        return name

    def _finished(self, ids: Sequence[int], **asked: Any) -> Any:
        import vllm

        self._ask(ids, vllm.SamplingParams(temperature=0.0, detokenize=False, **asked))
        steps: list[Any] = []
        while self._engine.has_unfinished_requests():
            steps += self._engine.step()
        return steps[-1]

    def _of_prompt(self, ids: Sequence[int], count: int) -> list[dict[int, float]]:
        """Log-probabilities of each token of ``ids`` but the first, and of the likeliest there."""
        found = self._finished(ids, max_tokens=1, prompt_logprobs=count)
        return [_plain(row) for row in found.prompt_logprobs[1:]]

    def _decoded(self, ids: Sequence[int], count: int) -> tuple[int, dict[int, float]]:
        """The token that follows ``ids``, and what follows it by the cache of all of them."""
        (out,) = self._finished(ids, max_tokens=2, ignore_eos=True, logprobs=count).outputs
        return int(out.token_ids[0]), _plain(out.logprobs[1])


def _plain(row: Any) -> dict[int, float]:
    return {int(token): float(entry.logprob) for token, entry in row.items()}


def _kinds(model: Any) -> tuple[list[str], list[str]]:
    parameters = list(model.parameters())
    dtypes = {str(p.dtype).removeprefix("torch.") for p in parameters}
    return sorted(dtypes), sorted({p.device.type for p in parameters})


def _finite(rows: Sequence[dict[int, float]]) -> Finding:
    bad = sum(not math.isfinite(value) for row in rows for value in row.values())
    return Finding(FAILED if bad else PROVEN, f"{bad} that are none")


def _causal(whole: Sequence[dict[int, float]], other: Sequence[dict[int, float]]) -> Finding:
    """Of two sequences that differ in the last token, which the rows here only predict."""
    pairs = [
        (one[token], two.get(token, -math.inf))
        for one, two in zip(whole[:-1], other[:-1], strict=True)
        for token in one
    ]
    moved = max(abs(one - two) for one, two in pairs)
    spread = max(abs(one) for one, _ in pairs)
    good = moved <= _EXACT * spread
    return Finding(PROVEN if good else FAILED, f"moved by {moved:.2g} of {spread:.2g}")


def _prepare(identity: Identity, recorder: Recorder) -> Model:
    if identity["device"]["kind"] == "cuda" and "," in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        raise Infeasible("vllm is run on one GPU here", where="resources.gpus", fix="Leave it out")
    return VllmModel(loading.prepare(reference_identity(identity), recorder), identity)


def _check(identity: Identity, work: Work) -> str | None:
    kind = identity["device"]["kind"]
    package, environment = _BUILDS[kind]
    if not has_package(identity, package):
        return f"vllm on device={kind} needs {package}: use environment={environment}"
    if identity["model"]["source"] == "random":
        return "vllm loads files: random weights have none"
    if problem := find_problem(identity["model"]):
        raise problem.as_config_error()
    if kind == "cpu" and platform.machine() == "x86_64" and "avx512f" not in flags():
        return "vllm's build for CPUs needs AVX-512, which this CPU lacks: use another engine"
    return None


ENGINE = Engine(
    name="vllm",
    config=VllmConfig,
    formats=tuple(_DTYPES),
    prepare=_prepare,
    check=_check,
    packages=lambda identity: (_BUILDS[identity["device"]["kind"]][0], "torch", "transformers"),
    preload=("numpy", "torch", "transformers", "vllm"),
    serves=True,
)
