"""aiperf and guidellm, each in an environment of its own, as a user of theirs would start them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.engines.cache import cache_root
from orchestrator.engines.source import packaged_file
from orchestrator.environments.uv import run_uv

# Answers as long as asked for, and nothing out of a cache, as ours asks.
ALWAYS = {"ignore_eos": True, "cache_prompt": False}
AIPERF, GUIDELLM = "aiperf==0.13.0", "guidellm==0.8.1"


@dataclass(frozen=True)
class Asked:
    """A load of constant arrivals: ``api`` is the server's address without ``/v1``."""

    api: str
    model: str
    rate: float
    duration_s: float
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Printed:
    """What a tool says, milliseconds, and how long it took from start to there, seconds.

    Attributes
    ----------
    tail_ms : float
        p99 of TTFT; guidellm's own table has p95.
    warned : bool
        Whether it says that something is wrong with what it measured.
    """

    mean_ttft_ms: float
    tail_ms: float
    median_ttft_ms: float
    median_itl_ms: float
    median_e2e_ms: float
    requests: int
    wall_s: float
    warned: bool


def _program(package: str) -> str:
    """The peer's program; its environment is made where it is missing."""
    place = cache_root() / "benchmarks" / package
    name = package.partition("==")[0]
    if not (place / "made").exists():
        if "PIP_FIND_LINKS" in os.environ:
            os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
        run_uv("venv", "--clear", place)
        run_uv("pip", "install", "--python", place / "bin" / "python", package)
        (place / "made").touch()
    return str(place / "bin" / name)


def _tokenizer() -> str:
    """The packaged model's tokenizer as a directory, which both peers want."""
    place = cache_root() / "benchmarks" / "tokenizer"
    if not place.is_dir():
        from transformers import AutoTokenizer

        file = packaged_file()
        if file is None:
            raise SystemExit("the packaged model is not installed")
        read: Any = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
        read.save_pretrained(place)
    return str(place)


def _run(words: Sequence[str], directory: str, read: Callable[[str], dict[str, Any]]) -> Printed:
    begin_s = time.monotonic()
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True)
    wall_s = time.monotonic() - begin_s
    if done.returncode != 0:
        raise SystemExit(f"{words[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return Printed(wall_s=wall_s, **read(done.stdout))


def aiperf(asked: Asked) -> Printed:
    """Its figures of a load."""
    program, tokenizer = _program(AIPERF), _tokenizer()
    with tempfile.TemporaryDirectory() as directory:

        def read(said: str) -> dict[str, Any]:
            found = json.loads(Path(directory, "profile_export_aiperf.json").read_text())
            ttft = found["time_to_first_token"]
            return {
                "mean_ttft_ms": ttft["avg"],
                "tail_ms": ttft["p99"],
                "median_ttft_ms": ttft["p50"],
                "median_itl_ms": found["inter_token_latency"]["p50"],
                "median_e2e_ms": found["request_latency"]["p50"],
                "requests": int(found["request_count"]["avg"]),
                "warned": "rate" in said.lower() and "WARNING" in said,
            }

        words = (
            *(program, "profile", "--model", asked.model, "--url", asked.api),
            *("--endpoint-type", "completions", "--streaming", "--tokenizer", tokenizer),
            *("--request-rate", str(asked.rate), "--arrival-pattern", "constant"),
            *("--benchmark-duration", str(asked.duration_s), "--export-level", "summary"),
            *("--isl", str(asked.prompt_tokens), "--osl", str(asked.new_tokens)),
            *("--extra-inputs", json.dumps(ALWAYS), "--artifact-dir", directory, "--ui", "none"),
        )
        return _run(words, directory, read)


def guidellm(asked: Asked) -> Printed:
    """Its figures of a load."""
    program, tokenizer = _program(GUIDELLM), _tokenizer()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "out.json")

        def read(said: str) -> dict[str, Any]:
            metrics = json.loads(file.read_text())["benchmarks"][0]["metrics"]
            ttft = metrics["time_to_first_token_ms"]["successful"]
            return {
                "mean_ttft_ms": ttft["mean"],
                "tail_ms": ttft["percentiles"]["p95"],
                "median_ttft_ms": ttft["median"],
                "median_itl_ms": metrics["inter_token_latency_ms"]["successful"]["median"],
                "median_e2e_ms": 1e3 * metrics["request_latency"]["successful"]["median"],
                "requests": ttft["count"],
                "warned": "Warnings" in said,
            }

        backend = {
            **{"kind": "openai_http", "target": asked.api, "model": asked.model},
            **{"request_format": "/v1/completions", "validate_backend": False},
            "extras": {"body": ALWAYS},
        }
        data = f"prompt_tokens={asked.prompt_tokens},output_tokens={asked.new_tokens}"
        words = (
            *(program, "run", "--disable-console-interactive"),
            *("--backend", json.dumps(backend)),
            *("--profile", f"kind=constant,rate={asked.rate}"),
            *("--constraint", f"kind=max_duration,seconds={asked.duration_s}"),
            *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
            *("--data", f"kind=synthetic_text,{data}", "--output", f"kind=json,path={file}"),
        )
        return _run(words, directory, read)


PEERS = {"aiperf": aiperf, "guidellm": guidellm}
