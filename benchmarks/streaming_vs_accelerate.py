"""task=streaming against accelerate's disk offload: same model, disk, page cache and residents.

``python benchmarks/streaming_vs_accelerate.py [--rounds 2] [--model random_1b] [--steps 4]``
writes the model once to the cache (2.2 GB for ``random_1b``), then measures both in turn, each in
a process of its own. Accelerate maps the files; the page cache is dropped before each of its steps,
outside what is timed. Ours reads past it. What it could reach at best, the bound, is measured in
its own process between its sequences.

Then once more with a disk slowed down for both (``--throttled-bytes-per-s``; 0 leaves it out):
a disk that is always the same, where an hour of another machine's work on the real one does not
show. There both wait for the same disk, so what is gained is at most the computing behind it.

Prints one JSON line a figure; exit status 1 where a required one is missed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import emit
from orchestrator.plan.places import conf_directory

REQUIRED_SPEEDUP = 2.0
REQUIRED_OVER_BOUND = 1.15
_PROMPT_TOKENS = 16


def identity_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The trial: the ladder's dual prefetch, weights in bf16."""
    from omegaconf import OmegaConf

    model = OmegaConf.to_container(
        OmegaConf.load(conf_directory() / "model" / f"{arguments.model}.yaml")
    )
    assert isinstance(model, dict)
    return {
        "schema": 1,
        "task": {
            "name": "streaming",
            "prompt_tokens": _PROMPT_TOKENS,
            "new_tokens": arguments.steps + 1,
            "transfer": "async",
            "depth": 2,
            "workers": 2,
            "page_cache": "dropped",
            "direct": True,
            "budget_bytes": arguments.budget_bytes,
            "disk_bytes_per_s": arguments.disk_bytes_per_s,
        },
        "model": {
            **dict.fromkeys(("id", "revision", "path", "architecture")),
            "trust_remote_code": False,
            **{str(key): value for key, value in model.items()},
        },
        "quant": {"scheme": "none", "dtype": "bfloat16", "double_quant": False},
        "protocol": {
            "warmup": 1,
            "min_repetitions": 1,
            "max_repetitions": 1,
            "max_time_s": 60.0,
            "ci_relative_half_width": 1.0,
            "confidence": 0.95,
            "resamples": 100,
        },
        "device": {"kind": "cpu", "threads": None},
        "seed": 0,
    }


def measure_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The task itself, as an attempt runs it."""
    from orchestrator.measure import Recorder
    from orchestrator.measure.clock import clock_for
    from orchestrator.measure.registry import find_task

    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(events.append, clock_for("cpu"), Path(directory))
        find_task("streaming").run(identity_of(arguments), recorder)
    values = {e["name"]: e["value"] for e in events if e["e"] == "value"}
    steps_s = [
        value
        for e in events
        if e["e"] == "samples" and e["name"] == "itl_s" and e["role"] == "measured"
        for value in e["values"]
    ]
    return {"steps_s": steps_s, **values}


def measure_accelerate(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same weights files behind accelerate's hooks, its embedding, norm and head resident."""
    import torch
    from accelerate import dispatch_model
    from accelerate.utils import OffloadedWeightsLoader, set_module_tensor_to_device
    from safetensors import safe_open
    from transformers import DynamicCache

    from orchestrator.engines import transformers as loading
    from orchestrator.engines.transformers import tokens
    from orchestrator.measure import HostMemory, Recorder
    from orchestrator.measure.clock import clock_for
    from orchestrator.tasks.streaming.reader import Reader, Throttle
    from orchestrator.tasks.streaming.runner import build_empty
    from orchestrator.tasks.streaming.unit_files import open_store

    identity = identity_of(arguments)
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(lambda event: None, clock_for("cpu"), Path(directory))
        prepared = loading.prepare(identity, recorder)
    places = open_store(prepared, identity).places
    model = build_empty(prepared.config, torch.bfloat16, "sdpa")
    files = {place.file for place in places.values()}
    reader = Reader(files, cached=True)
    reader.drop_cache()
    loading.release_free_memory()
    memory = HostMemory()
    before = memory.held_bytes() or 0
    memory.reset()
    for name, place in places.items():
        if ".layers." not in name:
            with safe_open(str(place.file), framework="pt") as source:
                weight = source.get_tensor(name).clone()
            set_module_tensor_to_device(model, name, "cpu", value=weight)
    if prepared.config.tie_word_embeddings:
        model.tie_weights()
    index = {
        name: {"safetensors_file": str(place.file), "weight_name": name, "dtype": place.dtype}
        for name, place in places.items()
        if ".layers." in name
    }
    layers = {f"model.layers.{i}": "disk" for i in range(prepared.config.num_hidden_layers)}
    resident = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    model = dispatch_model(
        model,
        {**dict.fromkeys(resident, "cpu"), **layers},
        main_device="cpu",
        offload_index=index,
    )
    if arguments.disk_bytes_per_s:
        throttle = Throttle(arguments.disk_bytes_per_s)
        plain = OffloadedWeightsLoader.__getitem__

        def slowed(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
            due_s = throttle.reserve(places[key].nbytes) if key in places else 0.0
            weight = plain(self, key)
            # A mapping of the file: brought in here, within the booked time, not on top of it.
            weight.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
            throttle.wait_until(due_s)
            return weight

        OffloadedWeightsLoader.__getitem__ = slowed
    prompt = tokens.prompt(prepared, identity["seed"], 1, _PROMPT_TOKENS)
    steps_s: list[float] = []
    with torch.inference_mode():
        cache = DynamicCache(config=prepared.config)
        logits = model(input_ids=prompt, past_key_values=cache, logits_to_keep=1).logits
        for _ in range(arguments.steps):
            token = logits[:, -1].argmax(-1, keepdim=True)
            reader.drop_cache()
            begin_s = time.perf_counter()
            logits = model(input_ids=token, past_key_values=cache).logits
            logits[:, -1].argmax(-1)
            steps_s.append(time.perf_counter() - begin_s)
    return {"steps_s": steps_s, "peak_memory_bytes": (memory.peak_bytes() or 0) - before}


def run_side(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    asked = [f"--model={arguments.model}", f"--steps={arguments.steps}"]
    asked.append(f"--budget-bytes={arguments.budget_bytes}")
    if arguments.disk_bytes_per_s:
        asked.append(f"--disk-bytes-per-s={arguments.disk_bytes_per_s}")
    done = subprocess.run(
        [sys.executable, __file__, *asked, "--side", side],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode != 0:
        sys.exit(f"{side} failed with exit status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Alternate both sides, compare the medians of their steps; then on a slower disk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random_1b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--budget-bytes", type=int, default=700_000_000)
    parser.add_argument("--throttled-bytes-per-s", type=float, default=5e8)
    parser.add_argument("--disk-bytes-per-s", type=float, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("ours", "accelerate"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure = measure_ours if arguments.side == "ours" else measure_accelerate
        print(json.dumps(measure(arguments)))
        return

    name = "streaming_vs_accelerate"
    held = compare(name, arguments, required_speedup=REQUIRED_SPEEDUP)
    if arguments.throttled_bytes_per_s:
        emit(f"{name}.throttled.disk_bytes_per_s", arguments.throttled_bytes_per_s, "bytes/s")
        arguments.disk_bytes_per_s = arguments.throttled_bytes_per_s
        arguments.rounds, arguments.steps = 1, 2
        held &= compare(f"{name}.throttled", arguments, required_speedup=None)
    sys.exit(not held)


def compare(name: str, arguments: argparse.Namespace, *, required_speedup: float | None) -> bool:
    """Both sides in turn, their figures printed; whether what is required holds."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "accelerate": []}
    for _ in range(arguments.rounds):
        for side, results in found.items():
            results.append(run_side(side, arguments))
    medians_s = {}
    for side, results in found.items():
        steps_s = [step for result in results for step in result["steps_s"]]
        medians_s[side] = statistics.median(steps_s)
        emit(f"{name}.{side}.step_s", medians_s[side], "s", n=len(steps_s))
        peak = max(result["peak_memory_bytes"] for result in results)
        required = f"<= {arguments.budget_bytes}" if side == "ours" else None
        emit(f"{name}.{side}.peak_memory_bytes", peak, "bytes", required=required)
    ours = found["ours"]
    for metric, unit in (("disk_bandwidth_bytes_per_s", "bytes/s"), ("compute_bound_s", "s")):
        value = statistics.median(result[metric] for result in ours)
        emit(f"{name}.{metric}", value, unit, n=len(ours))
    over_bound = statistics.median(result["tpot_over_bound"] for result in ours)
    required = f"<= {REQUIRED_OVER_BOUND}"
    emit(f"{name}.step_over_bound", over_bound, "1", required=required, n=len(ours))
    speedup = medians_s["accelerate"] / medians_s["ours"]
    required = None if required_speedup is None else f">= {required_speedup}"
    emit(f"{name}.speedup", speedup, "1", required=required)
    return bool(over_bound <= REQUIRED_OVER_BOUND and speedup >= (required_speedup or 0.0))


if __name__ == "__main__":
    main()
