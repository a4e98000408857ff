"""Are the reported times true? TTFT and decode of an attempt against a plain loop, in turns.

Both run the packaged model with the same number format, batch, lengths, repetitions and threads,
each in a process of its own, the attempt through isolation: they alternate, so that drift of the
machine hits both alike, and the ratio is taken within each pair. Exit status 1 where the two
disagree. ``--tiny`` uses a model of two layers: a check of this program, not of the claim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks._attempts import attempt, fixed_repetitions, trial_of
from benchmarks._machine import arguments, emit, finish
from orchestrator.engines import transformers as loading
from orchestrator.host.cpu import usable_cores
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import HostClock, Recorder, Samples
from testing.trial import TINY

METRICS = {"ttft_s": "s", "decode_tokens_per_s": "tokens/s"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
PACKAGED = ["model=smollm2_135m"]


def identity_of(model: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """A trial's identity, with a fixed number of repetitions after one warm-up."""
    return trial_of(
        "task=inference",
        f"task.batch_size={options.batch}",
        f"task.prompt_tokens={options.prompt_tokens}",
        f"task.new_tokens={options.new_tokens}",
        *model,
        f"quant={options.quant}",
        "protocol.warmup=1",
        *fixed_repetitions(options.repetitions),
    ).identity


def reported(isolation: Isolation, identity: dict[str, Any]) -> dict[str, list[float]]:
    """Samples of one attempt through the real path, by metric."""
    metrics = attempt(isolation, identity).metrics
    found = {}
    for name in METRICS:
        metric = metrics[name]
        assert isinstance(metric, Samples)
        found[name] = list(metric.values)
    return found


def by_hand(directory: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """The same of the plain loop."""
    program = Path(__file__).with_name("_plain_loop.py")
    numbers = (
        options.batch,
        options.prompt_tokens,
        options.new_tokens,
        options.repetitions,
        len(usable_cores()),
    )
    done = subprocess.run(
        [sys.executable, str(program), str(directory), DTYPES[options.quant], *map(str, numbers)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"the plain loop failed:\n{done.stderr}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one JSON line a figure."""
    options = arguments(
        __doc__,
        pairs=4,
        repetitions=5,
        batch=1,
        prompt_tokens=512,
        new_tokens=32,
        quant="fp32",
        tiny=False,
    )
    with tempfile.TemporaryDirectory() as temporary:
        model, directory = _model(Path(temporary), options)
        identity = identity_of(model, options)
        ours, theirs = [], []
        with Isolation(preload=loading.PRELOAD) as isolation:
            for pair in range(options.pairs):
                if pair % 2:  # the one that goes first changes too
                    theirs.append(by_hand(directory, options))
                ours.append(reported(isolation, identity))
                if not pair % 2:
                    theirs.append(by_hand(directory, options))
    for name, unit in METRICS.items():
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs]
        count = options.pairs
        emit(f"{name}.reported", statistics.median(chain(*(a for a, _ in pairs))), unit, n=count)
        emit(f"{name}.by_hand", statistics.median(chain(*(b for _, b in pairs))), unit, n=count)
        emit(f"{name}.ratio_lowest", min(ratios), "1", n=count)
        emit(f"{name}.ratio_highest", max(ratios), "1", n=count)
        disagreement = abs(statistics.median(ratios) - 1)
        emit(f"{name}.disagreement", disagreement, "1", required="<= 0.05", n=count)
    finish()


def _model(temporary: Path, options: argparse.Namespace) -> tuple[list[str], Path]:
    """The trial's model, as overrides, and a directory for the plain loop, of the same weights."""
    if options.tiny:
        from orchestrator.engines.transformers import random_weights as architecture

        directory = temporary / "model"
        sizes = {"vocab_size": 49152, "max_position_embeddings": 2048}
        config = architecture.configuration({**TINY, **sizes})
        architecture.build(config, 0, "float32", "sdpa").save_pretrained(directory)
        return ["model=path", f"model.path={directory}"], directory
    recorder = Recorder(lambda event: None, HostClock(), temporary)
    prepared = loading.prepare(identity_of(PACKAGED, options), recorder)
    assert prepared.directory is not None
    return PACKAGED, prepared.directory


if __name__ == "__main__":
    main()
