"""Is the reported speed true? Decode tokens/s of an attempt against a plain loop, in turns.

Both run the packaged model in float32 with the same prompt length, output length, repetitions and
threads, each in a process of its own, the attempt through isolation: they alternate, so that drift
of the machine hits both alike, and the ratio is taken within each pair. Exit status 1 where the two
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

PACKAGED = ["model=smollm2_135m"]


def identity_of(model: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """A trial's identity: float32, a fixed number of repetitions after one warm-up."""
    return trial_of(
        "task=inference",
        f"task.prompt_tokens={options.prompt_tokens}",
        f"task.new_tokens={options.new_tokens}",
        *model,
        "quant=fp32",
        "protocol.warmup=1",
        *fixed_repetitions(options.repetitions),
    ).identity


def reported(isolation: Isolation, identity: dict[str, Any]) -> list[float]:
    """Decode tokens/s samples of one attempt through the real path."""
    metric = attempt(isolation, identity).metrics["decode_tokens_per_s"]
    assert isinstance(metric, Samples)
    return list(metric.values)


def by_hand(directory: Path, options: argparse.Namespace) -> list[float]:
    """Decode tokens/s samples of the plain loop."""
    program = Path(__file__).with_name("_plain_loop.py")
    numbers = (
        options.prompt_tokens,
        options.new_tokens,
        options.repetitions,
        len(usable_cores()),
    )
    done = subprocess.run(
        [sys.executable, str(program), str(directory), *map(str, numbers)],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"the plain loop failed:\n{done.stderr}")
    rates: list[float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def main() -> None:
    """Print one JSON line a figure."""
    options = arguments(
        __doc__, pairs=4, repetitions=5, prompt_tokens=512, new_tokens=32, tiny=False
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
    ratios = [
        statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)
    ]
    ratio = statistics.median(ratios)
    count = options.pairs
    emit("decode_reported", statistics.median(chain(*ours)), "tokens/s", n=count)
    emit("decode_by_hand", statistics.median(chain(*theirs)), "tokens/s", n=count)
    emit("decode_ratio_lowest", min(ratios), "1", n=count)
    emit("decode_ratio_highest", max(ratios), "1", n=count)
    emit("decode_disagreement", abs(ratio - 1), "1", required="<= 0.05", n=count)
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
