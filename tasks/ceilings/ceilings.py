"""What this device can do at most: how long each operation of a model takes, and memory.

::

    product     one matrix product, by size, rows and dtype; of an inference and of a training step
    passes      norms, rotation, gate and residuals, the program around: what a layer of a
                reference model takes beside its products and its attention
    attention   fused causal attention, of a prefill, of one token, of a training step
    loss, optimizer   cross-entropy and AdamW
    triad       bytes/s of a = b + s * c into new memory by amount of data
    reading     bytes/s of weights by amount of them, multiplied with one row

All of it in several rounds, and of every point their median: an attempt's figures are medians too,
and on a machine that others share the best moment is not what an attempt meets. How much slower the
median is than the best round (``spread``) says how quiet the machine was. Predictions are held
against these ceilings; they are kept by hardware fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TYPE_CHECKING

from orchestrator.engines import transformers as loading
from orchestrator.host.memory import physical_bytes
from orchestrator.measure import Identity, Infeasible, MetricSpec, Recorder, Task
from orchestrator.model.measured_device import STEADY_SPREAD, Measured
from orchestrator.tasks.ceilings import layers as ceiling_layers
from orchestrator.tasks.ceilings.layers import ReferenceLayers
from orchestrator.tasks.ceilings.timed_operations import CPU, CUDA, Operations, Point, Timer

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
LAYERS = TRAINED = ("float32", "bfloat16")
# More rounds where the machine is busy: what disturbs may pass. After a minute none but the second.
_LEAST_ROUNDS, _MOST_ROUNDS, _MOST_S = 3, 7, 60.0

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
    timer = Timer(recorder.clock)
    on_cuda = kind == "cuda"
    operations = Operations(device, CUDA if on_cuda else CPU, timer)
    shape = ceiling_layers.CUDA if on_cuda else ceiling_layers.CPU
    layers = [
        ReferenceLayers(device, shape, name, timer, trained=name in TRAINED) for name in LAYERS
    ]
    rounds: list[Round] = []
    begin_ns = recorder.clock.now_ns()
    while len(rounds) < _MOST_ROUNDS:
        with recorder.phase("round"):
            rounds.append(_round(operations, layers))
        elapsed_s = (recorder.clock.now_ns() - begin_ns) / 1e9
        if len(rounds) >= _LEAST_ROUNDS and combine(rounds)[1] <= STEADY_SPREAD:
            break
        if len(rounds) > 1 and elapsed_s > _MOST_S:
            break
    typical, spread = combine(rounds)
    found = _measured(typical, spread, layers, _memory_bytes(device))
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
    """The median of every point, and the spread: how much slower it is than the best round.

    A quarter of the points has a larger spread.
    """
    typical: Round = {}
    spreads = []
    for key in {key: None for each in rounds for key in each}:
        found = [each[key] for each in rounds if key in each]
        typical[key] = median(found)
        spreads.append(typical[key] / min(found))
    return typical, quantiles(spreads, n=4)[2]


def _round(operations: Operations, layers: Sequence[ReferenceLayers]) -> Round:
    import torch

    points: list[Point] = []
    for name in DTYPES:
        points.extend(operations.inference(name))
    for name in TRAINED:
        points.extend(operations.training(name))
    for reference in layers:
        points.extend(reference.points())
    with torch.inference_mode():
        points.extend(operations.integer_products())
        scale = operations.scale
        points.extend(("triad", size, 1, operations.triad(size)) for size in scale.triad_bytes)
        points.extend(
            ("reading", size, 1, operations.reading(size)) for size in scale.reading_bytes
        )
    return {(name, x, y): seconds for name, x, y, seconds in points}


def _measured(
    typical: Round, spread: float, layers: Sequence[ReferenceLayers], memory_bytes: int
) -> Measured:
    whole = {key: seconds for key, seconds in typical.items() if key[0].startswith("layers.")}
    rates = {
        kind: tuple((size, 1 / s) for (name, size, _), s in sorted(typical.items()) if name == kind)
        for kind in ("triad", "reading")
    }
    tables: dict[str, list[tuple[float, float, float]]] = {}
    for (name, x, y), seconds in sorted(typical.items()):
        if name not in rates and (name, x, y) not in whole:
            tables.setdefault(name, []).append((x, y, seconds))
    bare = Measured(
        name="this",
        timings={name: tuple(points) for name, points in tables.items()},
        triad=rates["triad"],
        reading=rates["reading"],
        launch_s=0.0,
        memory_bytes=memory_bytes,
        spread=spread,
    )
    for reference in layers:
        for name, x, y, seconds in reference.passes(whole, bare):
            tables.setdefault(name, []).append((x, y, seconds))
    timings = {name: tuple(sorted(points)) for name, points in tables.items()}
    # A kernel of negligible size: what the program around it costs.
    launch_s = min(seconds for _, _, seconds in timings[f"passes.inference.{LAYERS[0]}"])
    return replace(bare, timings=timings, launch_s=launch_s)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    return physical_bytes()


TASK = Task(
    name="ceilings",
    config=CeilingsConfig,
    run=run,
    preload=loading.PRELOAD,
    metrics=(
        *(
            MetricSpec(f"gemm_flop_per_s.{name}", "flop/s", "higher", title=f"matmul {name}")
            for name in (*DTYPES, "int8")
        ),
        MetricSpec("spread", "1", "lower", meaning="how much slower the median was than the best"),
    ),
    headline=(
        "gemm_flop_per_s.float32",
        "gemm_flop_per_s.bfloat16",
        "triad_bytes_per_s",
        "read_bytes_per_s",
        "launch_s",
    ),
)
