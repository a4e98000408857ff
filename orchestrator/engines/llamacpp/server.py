"""llama.cpp's server inside this process: what it is started with, and completions timed by chunk.

Greedy, of fixed length (``ignore_eos``), the prompt cache off: it would answer a repeated prompt
without computing it. llama.cpp's own timings come with each chunk and are kept beside ours::

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

from orchestrator.measure import Clock, Infeasible, InputError, Mismatch

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
FLASH_ATTENTION = ("auto", "on", "off")
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
    """What a server is started with; names as in ``engine=llamacpp``."""

    file: Path
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


@dataclass(frozen=True)
class Completion:
    """One prompt answered.

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
    text : str
    """

    begin_ns: int
    arrivals_ns: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int
    own_prefill_s: float
    own_decode_s: float
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

    def complete(self, prompt: Sequence[int], new_tokens: int, clock: Clock) -> Completion:
        """Answer ``prompt`` (token ids) with exactly ``new_tokens`` tokens, timed as they come."""
        request = {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "timings_per_token": True,
        }
        chunks: list[tuple[int, Any]] = []
        now_ns = clock.now_ns
        begin_ns = now_ns()
        self._server.handle_completions(request, lambda chunk: chunks.append((now_ns(), chunk)))
        return read_completion(begin_ns, chunks)

    def next_logprobs(
        self, prompt: Sequence[int], count: int, *, cached: bool = True
    ) -> list[tuple[int, float]]:
        """As :meth:`orchestrator.engines.next_tokens.NextTokens.next_logprobs`."""
        if self._character is None:
            self._character = self.tokenize("a")[0]
        answers: list[Any] = []
        request = {
            "prompt": list(prompt),
            "n_predict": 1,
            "temperature": 0.0,
            "ignore_eos": False,
            "cache_prompt": cached,
            "stream": False,
            "logprobs": count,
            # They are left out where a part of a character is sampled; they are without this bias.
            "logit_bias": {str(self._character): 100},
        }
        self._server.handle_completions(request, answers.append)
        answer = _refuse_error(answers[0])
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(int(entry["id"]), float(entry["logprob"])) for entry in found]

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


def read_completion(begin_ns: int, chunks: Sequence[tuple[int, Any]]) -> Completion:
    """Times from chunks, (when it came, what it was).

    Raises
    ------
    InputError
        If llama.cpp rejected the request.
    Mismatch
        If the stream is not one of tokens with their counts.
    """
    arrivals: list[int] = []
    usage: dict[str, Any] = {}
    timings: dict[str, Any] = {}
    text: list[str] = []
    for at_ns, chunk in chunks:
        _refuse_error(chunk)
        timings = chunk.get("timings") or timings
        usage = chunk.get("usage") or usage
        text.append(chunk["choices"][0].get("text") or "")
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
    parameters.n_ctx = setting.context_tokens
    parameters.n_batch = setting.batch
    parameters.n_ubatch = setting.micro_batch
    parameters.n_parallel = 1
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
    parameters.warmup = False  # else the first call would not be a cold start
    # Else it would change the settings above until the model fits, without a word.
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    return parameters


def _gpu_free_bytes(llama: Any) -> int | None:
    cpu = llama.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    gpus = [device for device in llama.get_device_info() if device["type"] != cpu]
    return sum(int(device["memory_free"]) for device in gpus) if gpus else None
