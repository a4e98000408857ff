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

from benchmarks._attempts import fixed_repetitions, trial_of
from benchmarks._machine import arguments, emit, finish

_PROMPT_TOKENS = 16


def identity_of(options: argparse.Namespace) -> dict[str, Any]:
    """The trial: the ladder's dual prefetch, weights in bf16."""
    return trial_of(
        *("task=streaming", f"model={options.model}", "quant=bf16"),
        *(f"task.prompt_tokens={_PROMPT_TOKENS}", f"task.new_tokens={options.steps + 1}"),
        *("task.transfer=async", "task.depth=2", "task.workers=2"),
        *("task.page_cache=dropped", "task.direct=true"),
        f"task.budget_bytes={options.budget_bytes}",
        f"task.disk_bytes_per_s={options.disk_bytes_per_s or 'null'}",
        *("protocol.warmup=1", *fixed_repetitions(1)),
    ).identity


def measure_ours(options: argparse.Namespace) -> dict[str, Any]:
    """The task itself, as an attempt runs it."""
    from orchestrator.measure import Recorder
    from orchestrator.measure.clock import clock_for
    from orchestrator.measure.registry import find_task

    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        recorder = Recorder(events.append, clock_for("cpu"), Path(directory))
        find_task("streaming").run(identity_of(options), recorder)
    values = {e["name"]: e["value"] for e in events if e["e"] == "value"}
    steps_s = [
        value
        for e in events
        if e["e"] == "samples" and e["name"] == "itl_s" and e["role"] == "measured"
        for value in e["values"]
    ]
    return {"steps_s": steps_s, **values}


def measure_accelerate(options: argparse.Namespace) -> dict[str, Any]:
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

    identity = identity_of(options)
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
    if options.disk_bytes_per_s:
        throttle = Throttle(options.disk_bytes_per_s)
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
        for _ in range(options.steps):
            token = logits[:, -1].argmax(-1, keepdim=True)
            reader.drop_cache()
            begin_s = time.perf_counter()
            logits = model(input_ids=token, past_key_values=cache).logits
            logits[:, -1].argmax(-1)
            steps_s.append(time.perf_counter() - begin_s)
    return {"steps_s": steps_s, "peak_memory_bytes": (memory.peak_bytes() or 0) - before}


def run_side(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    asked = [f"--model={options.model}", f"--steps={options.steps}"]
    asked.append(f"--budget-bytes={options.budget_bytes}")
    if options.disk_bytes_per_s:
        asked.append(f"--disk-bytes-per-s={options.disk_bytes_per_s}")
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
    options = arguments(
        __doc__,
        **{"model": "random_1b", "rounds": 2, "steps": 4, "budget_bytes": 700_000_000},
        **{"throttled_bytes_per_s": 5e8, "disk_bytes_per_s": 0.0, "side": ""},
    )
    if options.side:
        measure = measure_ours if options.side == "ours" else measure_accelerate
        print(json.dumps(measure(options)))
        return

    name = "streaming_vs_accelerate"
    compare(name, options, speedup_required=">= 2")
    if options.throttled_bytes_per_s:
        emit(f"{name}.throttled.disk_bytes_per_s", options.throttled_bytes_per_s, "bytes/s")
        options.disk_bytes_per_s = options.throttled_bytes_per_s
        options.rounds, options.steps = 1, 2
        compare(f"{name}.throttled", options, speedup_required=None)
    finish()


def compare(name: str, options: argparse.Namespace, *, speedup_required: str | None) -> None:
    """Both sides in turn, their figures printed."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "accelerate": []}
    for _ in range(options.rounds):
        for side, results in found.items():
            results.append(run_side(side, options))
    medians_s = {}
    for side, results in found.items():
        steps_s = [step for result in results for step in result["steps_s"]]
        medians_s[side] = statistics.median(steps_s)
        emit(f"{name}.{side}.step_s", medians_s[side], "s", n=len(steps_s))
        peak = max(result["peak_memory_bytes"] for result in results)
        required = f"<= {options.budget_bytes}" if side == "ours" else None
        emit(f"{name}.{side}.peak_memory_bytes", peak, "bytes", required=required)
    ours = found["ours"]
    for metric, unit in (("disk_bandwidth_bytes_per_s", "bytes/s"), ("compute_bound_s", "s")):
        value = statistics.median(result[metric] for result in ours)
        emit(f"{name}.{metric}", value, unit, n=len(ours))
    over_bound = statistics.median(result["tpot_over_bound"] for result in ours)
    emit(f"{name}.step_over_bound", over_bound, "1", required="<= 1.15", n=len(ours))
    speedup = medians_s["accelerate"] / medians_s["ours"]
    emit(f"{name}.speedup", speedup, "1", required=speedup_required)


if __name__ == "__main__":
    main()
