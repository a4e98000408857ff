"""Is the reported speed true? Decode tokens/s of an attempt against a plain loop, in turns.

Both run the packaged model in float32 with the same prompt length, output length, repetitions and
threads. First each in a process of its own, the attempt through isolation: they alternate, so that
drift of the machine hits both alike, and the ratio is taken within each pair. Then both on one
model in one process, sequence by sequence, which shows what the project's own code costs and
little of the machine's noise. ``--tiny`` uses a model of two layers: a check of this program, not
of the claim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from orchestrator.host.cpu import usable_cores

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from benchmarks.plain_loop import decode_rate
from orchestrator.attempt import AttemptReport, AttemptSpec, Outcome, Slot
from orchestrator.engines import transformers as loading
from orchestrator.engines.transformers import tokens
from orchestrator.engines.transformers.generation import GreedyGenerator
from orchestrator.isolate.isolation import Isolation
from orchestrator.measure import HostClock, Recorder, Samples, derive
from orchestrator.tasks.inference import InferenceConfig

ALLOWED = 0.05
TINY = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def identity_of(model: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """A trial's identity: float32, a fixed number of repetitions after one warm-up."""
    return {
        "schema": 1,
        "task": vars(
            InferenceConfig(prompt_tokens=options.prompt_tokens, new_tokens=options.new_tokens)
        ),
        "model": {
            "source": "packaged",
            "id": None,
            "revision": None,
            "path": None,
            "architecture": None,
            "trust_remote_code": False,
            **model,
        },
        "quant": {"scheme": "none", "dtype": "float32", "double_quant": False},
        "protocol": {
            "warmup": 1,
            "min_repetitions": options.repetitions,
            "max_repetitions": options.repetitions,
            "max_time_s": 3600.0,
            "ci_relative_half_width": 0.02,
            "confidence": 0.95,
            "resamples": 10_000,
        },
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }


def reported(isolation: Isolation, identity: dict[str, Any], number: int) -> list[float]:
    """Decode tokens/s samples of one attempt through the real path."""
    slot = Slot("node", "host", usable_cores())
    spec = AttemptSpec(f"accuracy-{number}", "0" * 64, identity)
    *_, report = isolation.run(spec, slot)
    if not isinstance(report, AttemptReport) or report.outcome is not Outcome.OK:
        raise SystemExit(f"attempt {number} ended badly: {getattr(report, 'reason', report)}")
    metric = report.metrics["decode_tokens_per_s"]
    assert isinstance(metric, Samples)
    return list(metric.values)


def by_hand(directory: Path, options: argparse.Namespace) -> list[float]:
    """Decode tokens/s samples of the plain loop."""
    program = Path(__file__).with_name("plain_loop.py")
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


def same_process(
    identity: dict[str, Any], options: argparse.Namespace, directory: Path
) -> list[float]:
    """Ratios of neighbouring sequences on one model: timed by the task's code, and by hand."""
    import torch
    from transformers import DynamicCache

    recorder = Recorder(lambda event: None, HostClock(), directory)
    prepared = loading.prepare(identity, recorder)
    model = loading.load(prepared, identity, recorder)
    generator = GreedyGenerator(
        model,
        recorder.clock,
        lambda: DynamicCache(config=model.config),
        prefill_options={"logits_to_keep": 1},
    )
    prompt = tokens.prompt(prepared, 0, 1, options.prompt_tokens)
    ratios = []
    with torch.inference_mode():
        for round_ in range(options.pairs * options.repetitions + 1):
            hand = decode_rate(model, prompt, options.new_tokens)
            timing, _ = generator.sequence(prompt, options.new_tokens, recorder.phase)
            own = derive.decode_tokens_per_s(timing.intervals_s)
            if round_ and own is not None:  # the first warms up
                ratios.append(own / hand)
    return ratios


def main() -> None:
    """Print one JSON line a figure; exit 1 if the two disagree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model, directory = _model(Path(temporary), options)
        identity = identity_of(model, options)
        ours, theirs = [], []
        with Isolation(preload=loading.PRELOAD) as isolation:
            for pair in range(options.pairs):
                # The one that goes first changes too.
                if pair % 2 == 0:
                    ours.append(reported(isolation, identity, pair))
                    theirs.append(by_hand(directory, options))
                else:
                    theirs.append(by_hand(directory, options))
                    ours.append(reported(isolation, identity, pair))
        within = same_process(identity, options, Path(temporary))
    ratios = [
        statistics.median(a) / statistics.median(b) for a, b in zip(ours, theirs, strict=True)
    ]
    ratio = statistics.median(ratios)
    count = options.pairs
    emit("decode_reported", statistics.median(chain(*ours)), "tokens/s", n=count)
    emit("decode_by_hand", statistics.median(chain(*theirs)), "tokens/s", n=count)
    emit("decode_ratio_lowest", min(ratios), "1", n=count)
    emit("decode_ratio_highest", max(ratios), "1", n=count)
    emit("decode_disagreement", abs(ratio - 1), "1", required=f"<= {ALLOWED}", n=count)
    emit("decode_ratio_same_process", statistics.median(within), "1", n=len(within))
    if abs(ratio - 1) > ALLOWED:
        raise SystemExit(1)


def _model(temporary: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The identity's model and a directory for the plain loop, of the same weights."""
    if options.tiny:
        from orchestrator.engines.transformers import random_weights as architecture

        directory = temporary / "model"
        config = architecture.configuration(TINY)
        architecture.build(config, 0, "float32", "sdpa").save_pretrained(directory)
        return {"source": "path", "path": str(directory)}, directory
    recorder = Recorder(lambda event: None, HostClock(), temporary)
    prepared = loading.prepare(identity_of({}, options), recorder)
    assert prepared.directory is not None
    return {}, prepared.directory


if __name__ == "__main__":
    main()
