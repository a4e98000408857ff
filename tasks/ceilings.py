"""What this device can do at most: how long each operation of a model takes, and memory.

::

    product     one matrix product, by size, rows and dtype; of an inference and of a training step
    passes      norms, rotation, gate and residuals of a layer, a pass over memory at a time
    attention   fused causal attention, of a prefill, of one token, of a training step
    loss, optimizer   cross-entropy and AdamW
    triad       bytes/s of a = b + s * c into new memory by amount of data
    reading     bytes/s of weights by amount of them, multiplied with one row
    launch      what an eager transformers layer adds around a kernel

All of it in several rounds, the best of which counts: what disturbs one round is not there in the
next. How much better it was than the typical round (``spread``) says how quiet the machine was.
Predictions are held against these ceilings; they are kept by hardware fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Identity, Infeasible, Recorder, Task
from orchestrator.measure.arithmetic.measured import STEADY_SPREAD, Measured
from tasks import loading
from tasks.ceiling_operations import CPU, CUDA, Operations, Timer

if TYPE_CHECKING:
    import torch

    from orchestrator.measure.arithmetic import Operation

DTYPES = ("float32", "bfloat16", "float16")
TRAINED = ("float32", "bfloat16")
# More rounds where the machine is busy: what disturbs may pass.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 7

# Table and two sizes of a point, and its seconds: less is better.
Round = dict[tuple[str, float, float], float]


@dataclass
class CeilingsConfig:
    """Options of ``task=ceilings``."""

    name: str = "ceilings"


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure all ceilings; the whole of them is the fact ``ceilings``."""
    import torch

    kind = identity["device"]["kind"]
    if kind == "cuda" and not torch.cuda.is_available():
        raise Infeasible("torch sees no CUDA device here", where="device=cuda")
    torch.set_num_threads(loading.thread_count(identity["device"]))
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    operations = Operations(device, CUDA if kind == "cuda" else CPU, Timer(recorder.clock))
    step, counted = _launcher(device)
    rounds: list[Round] = []
    while len(rounds) < _MOST_ROUNDS:
        with recorder.phase("round"):
            rounds.append(_round(operations, step))
        if len(rounds) >= _LEAST_ROUNDS and combine(rounds)[1] <= STEADY_SPREAD:
            break
    best, spread = combine(rounds)
    found = _measured(best, spread, counted, _memory_bytes(device))
    for name in (*DTYPES, "int8"):
        metric, peak = f"gemm_flop_per_s.{name}", found.peak(name)
        if peak is not None:
            recorder.value(metric, "flop/s", peak)
        else:
            recorder.absent(metric, "flop/s", "torch has none here, or it takes too long")
    recorder.value("triad_bytes_per_s", "bytes/s", found.triad[-1][1])
    recorder.value("read_bytes_per_s", "bytes/s", found.reading[-1][1])
    recorder.value("launch_s", "s", found.launch_s)
    recorder.value("spread", "1", spread)
    recorder.fact("ceilings", found.to_json())


def combine(rounds: Sequence[Round]) -> tuple[Round, float]:
    """The best of every point, and the spread: how much better it is than the median round.

    A quarter of the points has a larger spread.
    """
    best: Round = {}
    spreads = []
    for key in {key: None for each in rounds for key in each}:
        found = [each[key] for each in rounds if key in each]
        best[key] = min(found)
        spreads.append(median(found) / min(found))
    return best, quantiles(spreads, n=4)[2]


def _round(operations: Operations, step: Callable[[], Any]) -> Round:
    import torch

    points = []
    for name in DTYPES:
        points.extend(operations.inference(name))
    for name in TRAINED:
        points.extend(operations.training(name))
    found = {(name, x, y): seconds for name, x, y, seconds in points}
    with torch.inference_mode():
        for name, x, y, seconds in operations.integer_products():
            found[name, x, y] = seconds
        for size in operations.scale.triad_bytes:
            found["triad", size, 1] = operations.triad(size)
        for size in operations.scale.reading_bytes:
            found["reading", size, 1] = operations.reading(size)
        seconds_of_step = operations.timer.seconds(step)
    assert seconds_of_step is not None
    found["launch", 1, 1] = seconds_of_step
    return found


def _launcher(device: torch.device) -> tuple[Callable[[], Any], tuple[Operation, ...]]:
    """A decode step of tiny layers, and what arithmetic counts in it."""
    import torch
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from orchestrator.measure.arithmetic import (
        EAGER,
        Architecture,
        CacheFormat,
        WeightFormat,
        decode,
    )

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=16,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def step() -> None:
        model(token, past_key_values=DynamicCache(config=config), logits_to_keep=1)

    architecture = Architecture.from_config(config.to_dict())
    weights, cache = WeightFormat("none", "float32"), CacheFormat("float32")
    return step, decode(architecture, 1, 0, weights, cache, EAGER)


def _measured(
    best: Round, spread: float, counted: tuple[Operation, ...], memory_bytes: int
) -> Measured:
    from orchestrator.measure.arithmetic import estimate

    tables: dict[str, list[tuple[float, float, float]]] = {}
    for (name, x, y), seconds in sorted(best.items()):
        tables.setdefault(name, []).append((x, y, seconds))
    rates = {
        name: tuple((size, 1 / seconds) for size, _, seconds in tables.pop(name))
        for name in ("triad", "reading")
    }
    (_, _, step_s) = tables.pop("launch")[0]
    bare = Measured(
        name="this",
        timings={name: tuple(points) for name, points in tables.items()},
        triad=rates["triad"],
        reading=rates["reading"],
        launch_s=0.0,
        memory_bytes=memory_bytes,
        spread=spread,
    )
    # What the step takes beside its operations: modules, dispatch from Python, the cache's own.
    beside_s = step_s - estimate(counted, bare).time_s
    launches = sum(operation.count * operation.launches for operation in counted)
    return replace(bare, launch_s=max(beside_s / launches, 0.0))


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


TASK = Task(
    name="ceilings",
    config=CeilingsConfig,
    run=run,
    preload=loading.PRELOAD,
    headline=(
        "gemm_flop_per_s.float32",
        "gemm_flop_per_s.bfloat16",
        "triad_bytes_per_s",
        "read_bytes_per_s",
        "launch_s",
    ),
)
