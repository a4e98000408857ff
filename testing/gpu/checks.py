"""The checks, in the order they run: each gives facts, or raises ``Skip`` or ``Failure``."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import pickle
import platform
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from orchestrator.attempt import AttemptReport, Outcome
from orchestrator.telemetry.device import resolve_visible
from orchestrator.telemetry.verdict import judge
from testing.gpu.bench import SMALL, Bench, Facts, Failure, Skip, figure, figures, require

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    *("torch", "transformers", "numpy", "nvidia-ml-py", "triton", "bitsandbytes", "accelerate"),
    *("hydra-core", "ray", "mlflow"),
)
_MIB = 1 << 20


def machine(bench: Bench) -> Facts:
    """What is installed; a torch that cannot use the GPU is a failure, not a reason to skip."""
    found: Facts = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if bench.cuda:
        found["driver"] = bench.devices[0].driver_version
        found["gpus"] = [device.name for device in bench.devices]
        done = subprocess.run(
            [sys.executable, "-c", "import torch; print(torch.version.cuda)"],
            capture_output=True,
            text=True,
            timeout=bench.left_s(),
        )
        require(done.returncode == 0, f"torch cannot be imported: {done.stderr[-300:]}")
        found["cuda"] = done.stdout.strip()
        require(found["cuda"] != "None", "this torch is a build without CUDA")
    return found


def nvml_by_uuid(bench: Bench) -> Facts:
    """NVML's devices are found by position and UUID, and CUDA means the same by it."""
    _on_cuda(bench)
    for position, device in enumerate(bench.devices):
        require(device.uuid.startswith(("GPU-", "MIG-")), f"{device.uuid} is no UUID")
        require(device.memory_bytes > 1 << 30, f"{device.memory_bytes} bytes of memory")
        for name in (str(position), device.uuid):
            require(resolve_visible(name, bench.devices) == (device,), f"{name} is another GPU")
        bench.probe("visible", device=device, uuid=device.uuid)
    return {"uuids": [device.uuid for device in bench.devices]}


def telemetry(bench: Bench) -> Facts:
    """A busy GPU tells energy, power, clocks and memory, and rules can be applied to them."""
    _on_cuda(bench)
    seconds = 4.0
    report = bench.probe("busy", seconds=seconds)
    require(report.facts["simulated"] is False, "this GPU is simulated")
    watch = report.facts["telemetry"]
    require(not watch["lost"], f"lost: {watch['lost']}")
    found = figures(
        report,
        *("decode.energy_j", "decode.power_w", "decode.power_max_w", "decode.sm_clock_hz"),
        *("decode.device_memory_bytes", "decode.process_memory_bytes", "decode.foreign_processes"),
    )
    require(figure(report, "decode.sm_clock_hz") > 1e8, "a clock under 100 MHz")
    require(figure(report, "decode.device_memory_bytes") > 32 * _MIB, "no memory in use")
    energy_j, highest_w = found["decode.energy_j"], found["decode.power_max_w"]
    if isinstance(energy_j, float):
        mean_w = energy_j / seconds
        require(5 < mean_w < 3000, f"{mean_w:.0f} W on average")
        if isinstance(highest_w, float):
            require(mean_w <= 1.3 * highest_w, f"{mean_w:.0f} W, at most {highest_w:.0f} W")
    if isinstance(held := found["decode.process_memory_bytes"], float):
        require(held > 32 * _MIB, f"the process holds {held} bytes")
    for name, metric in report.telemetry.items():
        if name.startswith("decode.throttle_") and hasattr(metric, "value"):
            require(0 <= metric.value <= 1.2 * seconds, f"{name}: {metric.value} s of {seconds} s")
    verdict = judge(report, _rules())
    require(all(r.reason for r in verdict.rules if r.state == "unknown"), "unknown without reason")
    rules = {rule.rule: rule.state for rule in verdict.rules}
    require(rules["device_lost"] == "pass", "the GPU was lost")
    return {**found, "verdict": verdict.state, "rules": rules}


def clock_against_wall(bench: Bench) -> Facts:
    """Marks inside a region add up to its wall time, and the host does not wait for the device."""
    report = bench.probe("clock", size=4096 if bench.cuda else 256, count=50)
    marks_s = sum(report.metrics["interval_s"].values)  # type: ignore[union-attr]
    wall_s, host_s = figure(report, "wall_s"), figure(report, "host_s")
    require(all(s > 0 for s in report.metrics["interval_s"].values), "an interval of no length")  # type: ignore[union-attr]
    if bench.cuda:
        require(abs(marks_s / wall_s - 1) < 0.1, f"events {marks_s} s, wall {wall_s} s")
        require(host_s < marks_s, "the host waited for the device")
    else:
        require(marks_s <= wall_s, f"marks {marks_s} s, wall {wall_s} s")
    return {"marks_s": marks_s, "wall_s": wall_s, "host_s": host_s}


def allocator_peak(bench: Bench) -> Facts:
    """The peak of the CUDA allocator is that of its phase alone."""
    _on_cuda(bench)
    report = bench.probe("allocator")
    names = ("held_bytes", "peak_bytes", "peak_after_reset_bytes")
    held, peak, after = (figure(report, name) for name in names)
    require(held >= 64 * _MIB and peak >= 64 * _MIB, "a block of 64 MiB was not seen")
    require(after < 64 * _MIB, "the peak of an earlier phase was seen")
    return figures(report, *names)


def logits_as_on_the_cpu(bench: Bench) -> Facts:
    """The GPU computes in float32 what the CPU computes."""
    _on_cuda(bench)
    report = bench.probe("logits", prompt_tokens=64)
    require(figure(report, "largest_relative_difference") < 1e-3, "the GPU computes otherwise")
    return figures(report, "largest_relative_difference")


def inference_bf16(bench: Bench) -> Facts:
    """``task=inference`` in bfloat16, every proof made."""
    return _inference(bench, "bf16")


def inference_int8(bench: Bench) -> Facts:
    """The same in LLM.int8, with bitsandbytes."""
    return _inference(bench, "int8")


def inference_nf4(bench: Bench) -> Facts:
    """The same in NF4, with bitsandbytes."""
    return _inference(bench, "nf4")


def spawned(bench: Bench) -> Facts:
    """The same from a fresh interpreter instead of the fork server."""
    return _inference(bench, "bf16", start="spawn")


def _inference(bench: Bench, quant: str, *, start: str = "fork") -> Facts:
    asked = bench.identity(quant, prompt_tokens=128, new_tokens=17, batch_size=2)
    report = bench.measure(asked, start=start)
    _proven(report, "weights", "attention", "device", "threads")
    require(len(report.facts["output_digests"]) == 1, "a repetition gave other tokens")
    for phase in report.phases:
        require(phase.end_ns is not None, f"{phase.name} has not ended")
    decode = [p for p in report.phases if p.name == "decode"]
    intervals_s = report.metrics["itl_s"].values  # type: ignore[union-attr]
    for index, phase in enumerate(decode):
        timed_s = sum(intervals_s[index * 16 : (index + 1) * 16])
        whole_s = ((phase.end_ns or 0) - phase.begin_ns) / 1e9
        require(timed_s <= 1.01 * whole_s, f"intervals of {timed_s} s in a phase of {whole_s} s")
    names = ("load_s", "ttft_s", "tpot_s", "weights_bytes", "peak_memory_over_weights_bytes")
    proofs = {proof.what: proof.got for proof in report.engaged}
    return {**figures(report, *names), "parameters": report.facts["parameters"], "proofs": proofs}


def engine_vllm(bench: Bench) -> Facts:
    """``engine=vllm`` in its in-process form, every proof made."""
    asked = _vllm(bench)
    facts: Facts = {}
    for quant in ("bf16", "fp32"):
        report = bench.measure(bench.identity(quant, batch_size=2, **asked))
        _proven(report, "format", "device", "prefix cache", "prompt tokens from a cache")
        require(len(report.facts["output_digests"]) == 1, "a repetition gave other tokens")
        names = ("load_s", "ttft_s", "tpot_s", "weights_bytes", "peak_memory_over_weights_bytes")
        facts[quant] = {**figures(report, *names), "attention": report.facts["attention"]}
    return facts


def serving_vllm(bench: Bench) -> Facts:
    """vLLM's own server under a load; its processes are those of the attempt."""
    if importlib.util.find_spec("pyarrow") is None:
        raise Skip("the load generator needs pyarrow")
    load: Facts = {"requests": 8, "concurrency": 2, "warmup_s": 0.0}
    report = bench.measure(bench.identity("bf16", task="serving", **_vllm(bench), **load))
    require(report.facts["requests"]["answered"] == 8, "not every request was answered")
    if bench.cuda:
        require(figure(report, "under_load.foreign_processes") == 0, "its server is a foreigner")
    return figures(report, "ttft_s", "tpot_s")


def _vllm(bench: Bench) -> Facts:
    """What is asked of it: random weights in a directory, with a tokenizer for its server."""
    if importlib.util.find_spec("vllm") is None:
        raise Skip("vllm is not installed in this Python")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from orchestrator.engines.transformers import random_weights

    directory = bench.directory / "random"
    config = random_weights.configuration(dict(SMALL))
    random_weights.build(config, 0, "float32", "sdpa").save_pretrained(directory)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    known = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=known, unk_token="w0").save_pretrained(directory)
    model = {"source": "path", "path": str(directory)}
    return {"engine": "vllm", "model": model, "prompt_tokens": 128, "new_tokens": 17}


def profile_kernels(bench: Bench) -> Facts:
    """``task=profile`` sees kernels and copies, and its shares add up."""
    asked = bench.identity(
        "bf16", task="profile", scenario="custom", prompt_tokens=64, decode_steps=4
    )
    report = bench.measure(asked)
    table = json.loads(report.artifacts["operators.json"])
    trace = json.loads(gzip.decompress(report.artifacts["trace.json.gz"]))["traceEvents"]
    shares = sum(row["share"] for row in table["operators"])
    require(abs(shares - 1) < 1e-3, f"shares add up to {shares}")
    require(0 < figure(report, "busy_fraction") <= 1, "busy for more than all the time")
    where = "device" if bench.cuda else "host"
    require(table["self_time_of"] == where, f"time of the {table['self_time_of']}")
    facts = figures(report, "busy_fraction", "profiler_overhead", "operator_calls")
    if bench.cuda:
        kernels = sum(row["kernels"] for row in table["operators"])
        require(kernels > 0, "no kernel in the table")
        require(any(e.get("cat") == "kernel" for e in trace), "no kernel in the trace")
        require(_actions(report) >= {"alloc"}, "the allocator's history has no allocation")
        facts |= {"kernels": kernels, "top": table["operators"][0]["name"]}
    return facts


def streaming(bench: Bench) -> Facts:
    """``task=streaming`` gives the tokens of the resident model, by every way to the device."""
    lengths: Facts = {"prompt_tokens": 8, "new_tokens": 5}
    resident = bench.measure(bench.identity(**lengths)).facts["output_digests"]
    pinned = {"pinned": True} if bench.cuda else {}
    ways: dict[str, Facts] = {
        "sync": {"transfer": "sync", "buffer": "tensor"},
        "sync, single buffer": {"transfer": "sync", **pinned},
        "read ahead": {"depth": 2, "workers": 2, **pinned},
        "read ahead, a buffer a tensor": {"depth": 2, "workers": 2, "buffer": "tensor", **pinned},
        "nothing resident": dict.fromkeys(
            ("resident_embedding", "resident_norm", "resident_head"), False
        ),
        "page cache": {"page_cache": "warm", "direct": False},
    }
    if not bench.cuda:  # the others differ by what a CPU has not, or by how the disk is read
        ways = {name: ways[name] for name in ("sync", "read ahead")}
    facts: Facts = {}
    for name, options in ways.items():
        report = bench.measure(bench.identity(task="streaming", **lengths, **options))
        require(report.facts["output_digests"] == resident, f"{name}: other tokens")
        facts[name] = figures(report, "tpot_s", "tpot_over_bound", "h2d_bandwidth_bytes_per_s")
        facts[name]["bottleneck"] = report.facts["bottleneck"]
        if bench.cuda:
            require(figure(report, "h2d_busy_s") > 0, f"{name}: nothing went over the bus")
    return facts


def streaming_nf4(bench: Bench) -> Facts:
    """Four bits are unpacked after the transfer, with bitsandbytes."""
    options: Facts = {"depth": 2, "workers": 2, "pinned": bench.cuda}
    report = bench.measure(
        bench.identity("nf4", task="streaming", prompt_tokens=8, new_tokens=5, **options)
    )
    full = bench.measure(bench.identity("bf16", task="streaming", prompt_tokens=8, new_tokens=5))
    require(
        figure(report, "weights_bytes") < figure(full, "weights_bytes"), "as large as in bfloat16"
    )
    return figures(report, "tpot_s", "weights_bytes", "h2d_bandwidth_bytes_per_s")


def training(bench: Bench) -> Facts:
    """A training step under autocast, its allocations recorded, and the model learns."""
    return _training(bench, memory_snapshot=bench.cuda)


def training_compiled(bench: Bench) -> Facts:
    """The same, its layers compiled."""
    _on_cuda(bench)
    if not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        raise Skip("triton needs a C compiler: gcc, clang, or CC")
    return _training(bench, compile=True)


def _training(bench: Bench, **options: Any) -> Facts:
    lengths: Facts = {"batch_size": 2, "context_tokens": 128}
    asked = bench.identity(task="training", autocast="bfloat16", **lengths, **options)
    report = bench.measure(asked)
    _proven(report, "autocast", "optimizer", "device")
    first, last = figure(report, "first_loss"), figure(report, "last_loss")
    require(last < first, f"the loss went from {first} to {last}")
    parts = ("forward_s", "backward_s", "optimizer_s")
    steps = [report.metrics[name].values for name in (*parts, "step_s")]  # type: ignore[union-attr]
    for *phases_s, step_s in zip(*steps, strict=True):
        require(abs(sum(phases_s) / step_s - 1) < 1e-6, "phases are not the step")
    names = ["step_s", *parts, "peak_memory_over_weights_bytes", "allocated_memory_bytes", "mfu"]
    if options.get("compile"):
        _proven(report, "compile")
        names += ["compile_s", "compile_graphs", "compile_graph_breaks"]
    if options.get("memory_snapshot"):
        require("memory_snapshot.pickle" in report.artifacts, "no snapshot of the allocator")
    return figures(report, *names)


def out_of_memory(bench: Bench) -> Facts:
    """Too large a batch is an outcome; its last allocations are left, and the next attempt runs."""
    hidden = 4096 if bench.cuda else 1024
    wide = {
        **{"model_type": "llama", "vocab_size": 256, "intermediate_size": 64},
        **{"hidden_size": hidden, "num_hidden_layers": 1, "max_position_embeddings": 8192},
        **{"num_attention_heads": hidden // 128, "num_key_value_heads": 1},
    }
    limit = None if bench.cuda else 1 << 30
    # The embedding's output alone, (rows, 4096, hidden) in float32, is twice what there is.
    rows = 2 * (limit or bench.devices[0].memory_bytes) // (4096 * hidden * 4) + 1
    lengths: Facts = {"batch_size": rows, "prompt_tokens": 4096, "model": {"architecture": wide}}
    full = bench.attempt(bench.identity(new_tokens=2, **lengths), memory_limit_bytes=limit)
    expected = Outcome.OOM_DEVICE if bench.cuda else Outcome.OOM_HOST
    require(full.outcome is expected, f"{full.outcome.value}: {full.reason}")
    if bench.cuda:
        asked = bench.identity(task="profile", scenario="custom", decode_steps=2, **lengths)
        profiled = bench.attempt(asked)
        require(profiled.outcome is expected, f"{profiled.outcome.value}: {profiled.reason}")
        require("oom" in _actions(profiled), "the allocator's history has no out-of-memory")
        budget: Facts = {"budget_bytes": 30_000_000, "depth": 4}
        streamed = bench.attempt(bench.identity(task="streaming", **budget))
        require(streamed.outcome is expected, f"{streamed.outcome.value}: {streamed.reason}")
    bench.measure(bench.identity(prompt_tokens=8, new_tokens=2))
    return {"outcome": full.outcome.value, "reason": full.reason, "rows": rows}


def nvtx_ranges(bench: Bench) -> Facts:
    """Each phase is a range of ``torch.cuda.nvtx``, pushed and popped."""
    _on_cuda(bench)
    report = bench.probe("ranges")
    found = report.facts["ranges"]
    require(
        list(found) == ["prepare", "load", "first_call", "warmup", "prefill", "decode"],
        f"ranges {', '.join(found)}",
    )
    phases = len(report.phases)
    require(sum(found.values()) == phases, f"{sum(found.values())} ranges of {phases} phases")
    return {"ranges": found}


def nsys_timeline(bench: Bench) -> Facts:
    """Nsight Systems finds these ranges in the timeline of an attempt."""
    _on_cuda(bench)
    nsys = shutil.which("nsys")
    if nsys is None:
        raise Skip("nsys (Nsight Systems) is not installed")
    report = bench.directory / "timeline"
    # Spawned: Nsight Systems starts threads in what it follows, and such a process must not fork.
    measured = [sys.executable, "-m", "testing.gpu", "spawned"]
    _call(bench, nsys, "profile", "--trace=cuda,nvtx", f"--output={report}", *measured)
    exported = report.with_suffix(".sqlite")
    recorded = next(report.parent.glob("timeline.*rep"), None)
    require(recorded is not None, "nsys left no report")
    _call(bench, nsys, "export", "--type=sqlite", f"--output={exported}", str(recorded))
    with closing(sqlite3.connect(exported)) as database:
        rows = database.execute(
            "SELECT COALESCE(event.text, string.value), COUNT(*) FROM NVTX_EVENTS AS event "
            "LEFT JOIN StringIds AS string ON event.textId = string.id GROUP BY 1"
        )
        found = {name: count for name, count in rows if name}
    missing = {"load", "warmup", "prefill", "decode"} - found.keys()
    require(not missing, f"not on the timeline: {', '.join(sorted(missing))}; there: {found}")
    return {"ranges": found}


def sweep(bench: Bench) -> Facts:
    """A whole sweep, with Hydra, Ray and MLflow."""
    for module in ("hydra", "ray", "mlflow"):
        if importlib.util.find_spec(module) is None:
            raise Skip(f"a whole sweep needs Hydra, Ray and MLflow: {module} is not installed")
    words = ("model=random_tiny", "quant=fp32,bf16", "protocol=quick", f"device={bench.kind}")
    done = _call(bench, sys.executable, "-m", "orchestrator", *words, "--json")
    found = json.loads(done.stdout)
    require(found["outcomes"] == {"ok": 2}, f"outcomes {found['outcomes']}")
    return {"outcomes": found["outcomes"], "wall_s": found["wall_s"]}


CHECKS: tuple[Callable[[Bench], Facts], ...] = (
    *(machine, nvml_by_uuid, telemetry, clock_against_wall, allocator_peak, logits_as_on_the_cpu),
    *(inference_bf16, inference_int8, inference_nf4, profile_kernels),
    *(engine_vllm, serving_vllm),
    *(streaming, streaming_nf4, training, training_compiled, out_of_memory),
    # What is spawned has no use for the warm server, which ends: so it comes after all others.
    *(nvtx_ranges, spawned, nsys_timeline, sweep),
)


def _on_cuda(bench: Bench) -> None:
    if not bench.cuda:
        raise Skip("only a GPU can show it")


def _proven(report: AttemptReport, *what: str) -> None:
    missing = set(what) - {proof.what for proof in report.engaged}
    require(not missing, f"not proven: {', '.join(sorted(missing))}")


def _actions(report: AttemptReport) -> set[str]:
    """What the CUDA allocator's history is of; our own child wrote it a moment ago."""
    content = report.artifacts.get("memory_snapshot.pickle")
    if content is None:
        raise Failure("no history of the CUDA allocator was left")
    traces = pickle.loads(content)["device_traces"]
    return {event["action"] for trace in traces for event in trace}


def _rules() -> Facts:
    import yaml  # transformers needs it

    rules: Facts = yaml.safe_load((ROOT / "conf" / "verdict" / "default.yaml").read_text())
    return rules


def _call(bench: Bench, *command: str) -> subprocess.CompletedProcess[str]:
    """Run another program in the bench's directory; it must end well."""
    try:
        done = subprocess.run(
            command,
            cwd=bench.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=bench.left_s(),
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{Path(command[0]).name} did not end in time") from error
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise Failure(f"{Path(command[0]).name} ended with {done.returncode}")
    return done
