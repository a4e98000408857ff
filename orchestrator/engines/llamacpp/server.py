"""llama.cpp's server inside this process: what it is started with, and completions timed by chunk.

Greedy, of fixed length (``ignore_eos``), the prompt cache off: it would answer a repeated prompt
without computing it. With a depth it is on, and holds that depth and nothing more::

    fill      depth ids, then one that does not follow them
    complete  depth ids, then the prompt: it has the first ``depth`` in common with what is cached

llama.cpp's own timings come with each chunk and are kept beside ours::

    ours      call ──────────── first chunk ── chunk ── ... ── chunk      ttft_s, intervals
    theirs       prompt_ms ─────┘└──────────── predicted_ms ──────┘
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.engines.next_tokens import Likeliest, with_chosen
from orchestrator.measure import Clock, Infeasible, InputError, Mismatch

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = ("auto", "on", "off")
# Added to a logit, it is chosen.
_FORCED = 1e6
_LOCAL_TIMEOUT_S = 60.0


def import_xllamacpp() -> Any:
    """The module; :class:`InputError` where it is missing or cannot run here."""
    try:
        import xllamacpp
    except (ImportError, OSError) as error:
        raise InputError(
            f"llama.cpp cannot be used here: {error}", where="engine=llamacpp"
        ) from error
    return xllamacpp


@dataclass(frozen=True)
class Setting:
    """What a server is started with; names as in ``engine=llamacpp``.

    Attributes
    ----------
    context_tokens : int
        Of each of ``rows`` sequences that it takes at once.
    draft, draft_tokens : Path or None, int
        A smaller file of the same weights, which proposes so many tokens a step.
    connections : int
        Requests over HTTP that it takes at once; 0 for as many as it likes.
    """

    file: Path
    rows: int
    context_tokens: int
    threads: int
    threads_batch: int
    batch: int
    micro_batch: int
    gpu_layers: int
    flash_attention: str
    cache_type_k: str
    cache_type_v: str
    mmap: bool
    mlock: bool
    draft: Path | None = None
    draft_tokens: int = 0
    connections: int = 0


@dataclass(frozen=True)
class Completion:
    """One prompt answered, of one row or as one of several.

    Attributes
    ----------
    begin_ns : int
        When it was asked for.
    arrivals_ns : tuple of int, shape (new_tokens,)
        When each token was there. Where the server held an unfinished character back, several have
        the time of the chunk that brought them.
    prompt_tokens, new_tokens, cached_tokens : int
        As the model's own tokenizer counts them.
    own_prefill_s, own_decode_s : float
        llama.cpp's own timings.
    drafted, accepted : int
        Tokens that a draft proposed, and those of them that are among the new ones.
    text : str
    """

    begin_ns: int
    arrivals_ns: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    own_prefill_s: float
    own_decode_s: float
    drafted: int
    accepted: int
    text: str


class LlamaServer:
    """A running server; made in a measured child only, and gone with it.

    Raises
    ------
    InputError
        If llama.cpp is not installed or cannot load the file.
    Infeasible
        If layers are to go to a GPU and llama.cpp sees none.
    """

    def __init__(self, setting: Setting) -> None:
        llama = import_xllamacpp()
        self.gpu_free_bytes = _gpu_free_bytes(llama)
        if setting.gpu_layers and self.gpu_free_bytes is None:
            raise Infeasible(
                "llama.cpp sees no GPU: its installed build may be for CPUs only",
                where="engine.gpu_layers",
                fix="Install a build of xllamacpp for this GPU, or engine.gpu_layers=0",
            )
        parameters = _parameters(llama, setting)
        try:
            self._server: Any = llama.Server(parameters)
        except RuntimeError as error:
            raise InputError(
                "llama.cpp cannot load this file with these settings; its log says why",
                where=str(setting.file),
                fix="Look at the attempt's log, or try the file with quant=source",
            ) from error
        self._character: int | None = None
        now_free = _gpu_free_bytes(llama)
        self.gpu_taken_bytes = (
            None
            if now_free is None or self.gpu_free_bytes is None
            else self.gpu_free_bytes - now_free
        )

    def complete(
        self,
        prompt: Sequence[Sequence[int]],
        new_tokens: int,
        clock: Clock,
        *,
        depth: int = 0,
    ) -> list[Completion]:
        """Answer each row of ``prompt`` (token ids), all submitted at once.

        With exactly ``new_tokens`` tokens, timed as they come. The first ``depth`` ids of each row
        are taken from the cache, where :meth:`fill` left them.
        """
        request = _greedy(prompt, new_tokens, cached=depth > 0) | {
            "stream": True,
            "timings_per_token": True,
        }
        chunks: list[tuple[int, Any]] = []
        now_ns = clock.now_ns
        begin_ns = now_ns()
        self._server.handle_completions(request, lambda chunk: chunks.append((now_ns(), chunk)))
        return read_completions(begin_ns, chunks, len(prompt))

    def tokens(self, prompt: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        """The ids that :meth:`complete` makes of each row, without any cache, not timed."""
        request = _greedy(prompt, new_tokens, cached=False)
        if len(prompt) == 1:
            answer = self._ask(request | {"return_tokens": True, "verbose": True})
            return [[int(i) for i in answer["__verbose"]["tokens"]]]
        # Of several it returns the first one's only, and where there is a draft no probabilities.
        choices = self._ask(request | {"logprobs": 1})["choices"]
        return [[int(each["id"]) for each in c["logprobs"]["content"]] for c in choices]

    def text(self, prompt: Sequence[int], most: int, until: Sequence[str]) -> str:
        """What follows ``prompt``, at most so many tokens; what it has in common with the last one
        is taken from the cache.
        """
        request = _greedy([prompt], most, cached=True)
        stops = list(filter(None, until))
        answer = self._ask(request | {"ignore_eos": False, "stop": stops})
        return str(answer["choices"][0]["text"])

    def fill(self, prompt: Sequence[Sequence[int]], depth: int) -> None:
        """Have the first ``depth`` ids of each row in the cache, and no more of it."""
        # They are computed once: what is there already stays, and whatever follows them goes.
        rows = [[*row[:depth], row[depth] - 1 if row[depth] else 1] for row in prompt]
        self._ask(_greedy(rows, 1, cached=True))

    def next_logprobs(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        cached: bool = True,
        chosen: int | None = None,
    ) -> Likeliest:
        """As :meth:`orchestrator.engines.next_tokens.NextTokens.next_logprobs`."""
        if self._character is None:
            self._character = self.tokenize("a")[0]
        forced = self._character if chosen is None else chosen
        request = _greedy([prompt], 1, cached=cached) | {"ignore_eos": False, "logprobs": count}
        # They are of before this bias; and left out where a part of a character is chosen.
        answer = self._ask(request | {"logit_bias": [[forced, _FORCED]]})
        return with_chosen((answer["choices"][0]["logprobs"] or {}).get("content"), chosen)

    @property
    def address(self) -> str:
        """Of its HTTP interface, on the loopback one."""
        return str(self._server.listening_address)

    @staticmethod
    def served_body(*, reuse: bool) -> dict[str, Any]:
        """What a request over HTTP has besides prompt and ``max_tokens``."""
        return {
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": reuse,
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
        }

    def _ask(self, request: dict[str, Any]) -> Any:
        answers: list[Any] = []
        self._server.handle_completions(request, answers.append)
        return _refuse_error(answers[0])

    def close(self) -> None:
        """Stop the server and give its memory back."""
        self._server = None

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text by the model's own tokenizer, with what it adds to one if ``special``."""
        # The module has no call for it; the server listens on the loopback interface only.
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize",
            json.dumps({"content": text, "add_special": special}).encode(),
            {"Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_LOCAL_TIMEOUT_S) as answer:
            return [int(i) for i in json.load(answer)["tokens"]]


def _greedy(prompt: Sequence[Sequence[int]], new_tokens: int, *, cached: bool) -> dict[str, Any]:
    return {
        "prompt": [list(row) for row in prompt],
        "n_predict": new_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "cache_prompt": cached,
        "stream": False,
    }


def read_completions(
    begin_ns: int, chunks: Sequence[tuple[int, Any]], rows: int
) -> list[Completion]:
    """Times from chunks, (when it came, what it was), of ``rows`` prompts submitted at once.

    Raises
    ------
    InputError
        If llama.cpp rejected the request.
    Mismatch
        If the stream is not one of tokens with their counts.
    """
    found: list[list[tuple[int, Any]]] = [[] for _ in range(rows)]
    for at_ns, chunk in chunks:
        # All but the first of several prompts are answered with nothing at first.
        if chunk is not None:
            _refuse_error(chunk)
            found[chunk["choices"][0].get("index", 0)].append((at_ns, chunk))
    return [_read_completion(begin_ns, each) for each in found]


def _read_completion(begin_ns: int, chunks: Sequence[tuple[int, Any]]) -> Completion:
    arrivals: list[int] = []
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    text: list[str] = []
    for at_ns, chunk in chunks:
        before = timings.get("predicted_ms")
        timings = chunk.get("timings") or timings
        usage = chunk.get("usage") or usage
        text.append(chunk["choices"][0].get("text") or "")
        # What a draft got right was there with the token before it: a chunk each, of one time.
        if arrivals and timings.get("predicted_ms") == before:
            at_ns = arrivals[-1]
        # The closing chunk brings no token of its own, unless one was held back to the end.
        arrivals += [at_ns] * (int(timings.get("predicted_n", 0)) - len(arrivals))
    if not arrivals or not usage or not timings:
        raise Mismatch("llama.cpp's stream ended without tokens, usage and timings")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Completion(
        begin_ns=begin_ns,
        arrivals_ns=tuple(arrivals),
        prompt_tokens=int(usage["prompt_tokens"]),
        new_tokens=int(usage["completion_tokens"]),
        cached_tokens=int(cached),
        own_prefill_s=float(timings["prompt_ms"]) / 1e3,
        own_decode_s=float(timings["predicted_ms"]) / 1e3,
        drafted=int(timings.get("draft_n", 0)),
        accepted=int(timings.get("draft_n_accepted", 0)),
        text="".join(text),
    )


def _refuse_error(chunk: Any) -> Any:
    if "error" in chunk:
        raise InputError(
            f"llama.cpp rejected the request: {chunk['error'].get('message', chunk['error'])}",
            where="engine=llamacpp",
        )
    return chunk


def _parameters(llama: Any, setting: Setting) -> Any:
    parameters = llama.CommonParams()
    parameters.model.path = str(setting.file)
    parameters.n_ctx = setting.context_tokens * setting.rows
    parameters.n_batch = setting.batch
    parameters.n_ubatch = setting.micro_batch
    parameters.n_parallel = setting.rows
    # Else a short depth before a long prompt is not found again, and another row's slot is taken.
    parameters.slot_prompt_similarity = 1e-6
    parameters.n_gpu_layers = setting.gpu_layers
    parameters.cpuparams.n_threads = setting.threads
    parameters.cpuparams_batch.n_threads = setting.threads_batch
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[setting.flash_attention]
    parameters.flash_attn_type = getattr(
        llama.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}"
    )
    for side in ("k", "v"):
        kind = getattr(setting, f"cache_type_{side}").upper()
        setattr(parameters, f"cache_type_{side}", getattr(llama.ggml_type, f"GGML_TYPE_{kind}"))
    mode = {
        (True, False): "MMAP",
        (False, False): "NONE",
        (True, True): "MMAP_MLOCK",
        (False, True): "MLOCK",
    }[setting.mmap, setting.mlock]
    parameters.load_mode = getattr(llama.llama_load_mode, f"LLAMA_LOAD_MODE_{mode}")
    if setting.connections:
        parameters.n_threads_http = setting.connections
        parameters.endpoint_metrics = True
    parameters.warmup = False  # else the first call would not be a cold start
    # Else it would change the settings above until the model fits, without a word.
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    if setting.draft is not None:
        _set_draft(llama, parameters, setting)
    return parameters


def _set_draft(llama: Any, parameters: Any, setting: Setting) -> None:
    simple = llama.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
    parameters.speculative.types = [simple]
    draft = parameters.speculative.draft
    draft.mparams.path = str(setting.draft)
    # However unlikely it finds them: each step proposes as many.
    draft.n_max, draft.n_min, draft.p_min = setting.draft_tokens, 0, 0.0
    draft.n_gpu_layers = setting.gpu_layers
    draft.cpuparams.n_threads = setting.threads
    draft.cpuparams_batch.n_threads = setting.threads_batch
    draft.cache_type_k, draft.cache_type_v = parameters.cache_type_k, parameters.cache_type_v


def _gpu_free_bytes(llama: Any) -> int | None:
    cpu = llama.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    gpus = [device for device in llama.get_device_info() if device["type"] != cpu]
    return sum(int(device["memory_free"]) for device in gpus) if gpus else None
