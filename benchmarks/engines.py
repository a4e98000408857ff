"""Are the times of every engine true? Attempts against its own timings and a loop by hand.

Each engine runs the packaged model: an attempt through isolation and a process that a user might
have written take turns, with the same prompt length, output length and threads. The median of the
ratios within pairs must be within 5 % of 1; where an engine has timings of its own, ours are within
3 % of these. In full precision all engines must give the same perplexity, within 1 %. Environments
are built where they are missing; an engine whose environment cannot be had here is left out, with
the reason on stderr. Exit status 1 where a figure misses its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._attempts import attempt, fixed_repetitions, trial_of
from benchmarks._machine import arguments, emit, finish
from orchestrator.engines.cache import cache_root
from orchestrator.environments.build import built
from orchestrator.errors import OrchestratorError
from orchestrator.host.cpu import usable_cores
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import Samples, Value

# engine, quant, environment, and what its files in the cache are called
TIMED = (
    ("llamacpp", "q8_0", "none", "formats/*-Q8_0-*.gguf"),
    ("llamacpp", "q4_0", "none", "formats/*-Q4_0-*.gguf"),
    ("onnxruntime", "int4wo", "onnxruntime", "onnx/*"),
    ("openvino", "q8_0", "openvino", "formats/*-Q8_0-*.gguf"),
    ("vllm", "bf16", "vllm_cpu", "converted/*"),
)
PRECISE = (
    ("transformers", "fp32", "none"),
    ("transformers", "bf16", "none"),
    ("llamacpp", "fp32", "none"),
    ("llamacpp", "bf16", "none"),
    ("onnxruntime", "fp32", "onnxruntime"),
    ("vllm", "bf16", "vllm_cpu"),
)
METRICS = ("ttft_s", "tpot_s")
OWN = {"prefill": "prefill_over_own_timing", "decode": "decode_over_own_timing"}


def identity_of(engine: str, quant: str, environment: str, *more: str) -> dict[str, Any]:
    """A trial's identity."""
    named = (f"engine={engine}", f"quant={quant}", f"environment={environment}")
    return trial_of("task=inference", *named, *more).identity


def by_hand(engine: str, python: Path | str, model: Path, options: argparse.Namespace) -> Any:
    """TTFT and TPOT of the plain program."""
    numbers = (
        options.prompt_tokens,
        options.new_tokens,
        options.repetitions,
        len(usable_cores()),
    )
    program = Path(__file__).with_name("_plain_engines.py")
    done = subprocess.run(
        [str(python), str(program), engine, str(model), *map(str, numbers)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    if done.returncode != 0:
        raise SystemExit(f"{engine} by hand failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    isolation: Isolation, trial: tuple[str, str, str, str], options: argparse.Namespace
) -> None:
    """Print the figures of one engine and format."""
    engine, quant, environment, made = trial
    identity = identity_of(
        *(engine, quant, environment),
        f"task.prompt_tokens={options.prompt_tokens}",
        f"task.new_tokens={options.new_tokens}",
        "protocol.warmup=1",
        *fixed_repetitions(options.repetitions),
    )
    packages = identity["environment"]
    python = sys.executable if packages is None else built(packages)
    ratios: dict[str, list[float]] = {name: [] for name in METRICS}
    own: dict[str, list[float]] = {name: [] for name in OWN}
    for _ in range(options.pairs):
        report = attempt(isolation, identity)
        (model,) = cache_root().glob(made)
        theirs = by_hand(engine, python, model, options)
        for name in METRICS:
            ours = report.metrics[name]
            assert isinstance(ours, Samples)
            ratios[name].append(statistics.median(ours.values) / statistics.median(theirs[name]))
        for name, metric in OWN.items():
            if isinstance(told := report.metrics.get(metric), Samples):
                own[name].append(statistics.median(told.values))
    for name, found in ratios.items():
        figure = f"engines.{engine}.{quant}.{name}.over_by_hand"
        emit(figure, statistics.median(found), "1", n=len(found))
        off = abs(statistics.median(found) - 1)
        emit(f"{figure}.disagreement", off, "1", required="<= 0.05", n=len(found))
    for name, shares in own.items():
        if shares:
            off = abs(statistics.median(shares) - 1)
            figure = f"engines.{engine}.{quant}.{name}.over_own.disagreement"
            emit(figure, off, "1", required="<= 0.03", n=len(shares))


def perplexities(isolation: Isolation) -> None:
    """Print the perplexity of every engine in full precision, over that of the first."""
    first = None
    for engine, quant, environment in PRECISE:
        words = ("task.prompt_tokens=8", "task.new_tokens=2", "task.quality_tokens=256")
        try:
            identity = identity_of(engine, quant, environment, *words, *fixed_repetitions(1))
            report = attempt(isolation, identity)
        except (OrchestratorError, SystemExit) as error:
            print(f"{engine} {quant} left out: {error}", file=sys.stderr)
            continue
        found = report.metrics["perplexity"]
        assert isinstance(found, Value)
        first = found.value if first is None else first
        off = abs(found.value / first - 1)
        emit(f"engines.{engine}.{quant}.perplexity.disagreement", off, "1", required="<= 0.01")


def main() -> None:
    """Print one JSON line a figure."""
    options = arguments(__doc__, pairs=3, repetitions=7, prompt_tokens=128, new_tokens=32, only="")
    environments = cache_root() / "environments"
    environments.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as cache, Isolation() as isolation:
        # Of this run alone, so that each engine's files are the only ones; packages are kept.
        os.environ["ORCHESTRATOR_CACHE"] = cache
        (cache_root() / "environments").symlink_to(environments)
        for trial in TIMED:
            if options.only not in trial[0]:
                continue
            try:
                compare(isolation, trial, options)
            except OrchestratorError as error:
                print(f"{trial[0]} left out: {error}", file=sys.stderr)
        if not options.only:
            perplexities(isolation)
    finish()


if __name__ == "__main__":
    main()
