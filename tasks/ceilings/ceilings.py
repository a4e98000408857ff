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
against these ceilings; they are kept by hardware fingerprint. After a sweep only the operations
that its trials consist of are measured.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from orchestrator.engines import transformers as loading
from orchestrator.errors import ConfigError
from orchestrator.host.memory import usable_bytes
from orchestrator.measure import Identity, MetricSpec, Recorder, Task
from orchestrator.model.measured_device import OPERATIONS, STEADY_SPREAD, Measured
from orchestrator.tasks._cuda_memory import device_memory_bytes
from orchestrator.tasks.ceilings import layers as ceiling_layers
from orchestrator.tasks.ceilings.layers import ReferenceLayers
from orchestrator.tasks.ceilings.timed_operations import CPU, CUDA, Operations, Point, Timer

if TYPE_CHECKING:
    pass

DTYPES = ("float32", "bfloat16", "float16")
TRAINED = ("float32", "bfloat16")
ALL = "all"
# More rounds where the machine is busy: what disturbs may pass. But none, save the second, that
# would end later than this; after a sweep somebody waits for it.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 7
_MOST_S, _MOST_AFTER_A_SWEEP_S = 60.0, 15.0

# Table and two sizes of a point, and its seconds: less is better.
Round = dict[tuple[str, float, float], float]


@dataclass
class CeilingsConfig:
    """Options of ``task=ceilings``.

    Attributes
    ----------
    operations : str
        What to measure, joined by ``+``: ``inference.bfloat16+training.bfloat16``; or ``all``.
    """

    name: str = "ceilings"
    operations: str = ALL


def check(identity: Identity) -> str | None:
    """None; :class:`ConfigError` for operations that nobody knows."""
    asked_operations(identity["task"])
    return None


def asked_operations(options: Mapping[str, Any]) -> frozenset[str]:
    """The operations that ``task.operations`` names.

    Raises
    ------
    ConfigError
        One of them is not among :data:`~orchestrator.model.measured_device.OPERATIONS`.
    """
    if options["operations"] == ALL:
        return frozenset(OPERATIONS)
    asked = frozenset(str(options["operations"]).split("+"))
    if unknown := sorted(asked - set(OPERATIONS)):
        raise ConfigError(
            f"no operations {unknown[0]!r}",
            where="task.operations",
            fix=f"Known: {', '.join(OPERATIONS)}",
        )
    return asked


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure the ceilings that were asked for; all that was found is the fact ``ceilings``."""
    asked = asked_operations(identity["task"])
    most_s = _MOST_S if asked == frozenset(OPERATIONS) else _MOST_AFTER_A_SWEEP_S
    device = loading.use_device(identity["device"])
    timer = Timer(recorder.clock)
    on_cuda = device.type == "cuda"
    operations = Operations(device, CUDA if on_cuda else CPU, timer)
    shape = ceiling_layers.CUDA if on_cuda else ceiling_layers.CPU
    layers = [
        ReferenceLayers(device, shape, name, timer, trained=f"training.{name}" in asked)
        for name in DTYPES
        if f"inference.{name}" in asked
    ]
    rounds: list[Round] = []
    begin_ns = recorder.clock.now_ns()
    while len(rounds) < _MOST_ROUNDS:
        with recorder.phase("round"):
            rounds.append(_round(operations, layers, asked))
        elapsed_s = (recorder.clock.now_ns() - begin_ns) / 1e9
        if len(rounds) >= _LEAST_ROUNDS and combine(rounds)[1] <= STEADY_SPREAD:
            break
        if len(rounds) > 1 and elapsed_s * (1 + 1 / len(rounds)) > most_s:
            break
    typical, spread = combine(rounds)
    memory_bytes = device_memory_bytes(device.type) or usable_bytes()
    found = _measured(typical, spread, layers, memory_bytes, asked)
    for name in (*DTYPES, "int8"):
        if not {name, f"inference.{name}"} & asked:
            continue
        metric, peak = f"gemm_flop_per_s.{name}", found.peak(name)
        if peak is not None:
            recorder.value(metric, "flop/s", peak)
        else:
            recorder.absent(metric, "flop/s", "torch has none here, or it takes too long")
    recorder.value("triad_bytes_per_s", "bytes/s", found.triad[-1][1])
    recorder.value("read_bytes_per_s", "bytes/s", found.reading[-1][1])
    if found.launch_s:
        recorder.value("launch_s", "s", found.launch_s)
    else:
        recorder.absent(
            "launch_s", "s", "no layer was timed, or none took longer than its products"
        )
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


def _round(
    operations: Operations, layers: Sequence[ReferenceLayers], asked: Collection[str]
) -> Round:
    import torch

    points: list[Point] = []
    for name in DTYPES:
        if f"inference.{name}" in asked:
            points.extend(operations.inference(name))
    for name in TRAINED:
        if f"training.{name}" in asked:
            points.extend(operations.training(name))
    for reference in layers:
        points.extend(reference.points())
    with torch.inference_mode():
        if "int8" in asked:
            points.extend(operations.integer_products())
        scale = operations.scale
        points.extend(("triad", size, 1, operations.triad(size)) for size in scale.triad_bytes)
        points.extend(
            ("reading", size, 1, operations.reading(size)) for size in scale.reading_bytes
        )
    return {(name, x, y): seconds for name, x, y, seconds in points}


def _measured(
    typical: Round,
    spread: float,
    layers: Sequence[ReferenceLayers],
    memory_bytes: int,
    asked: Collection[str],
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
        operations=frozenset(asked),
    )
    for reference in layers:
        for name, x, y, seconds in reference.passes(whole, bare):
            tables.setdefault(name, []).append((x, y, seconds))
    timings = {name: tuple(sorted(points)) for name, points in tables.items()}
    # A kernel of negligible size: what the program around it costs.
    passes = [s for n, found in timings.items() if n.startswith("passes.inf") for _, _, s in found]
    launch_s = min(passes, default=0.0)
    return replace(bare, timings=timings, launch_s=launch_s)


TASK = Task(
    name="ceilings",
    config=CeilingsConfig,
    run=run,
    unread=("model", "quant", "protocol", "seed"),
    check=check,
    preload=loading.PRELOAD,
    content=lambda identity: {},
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
