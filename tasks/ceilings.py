"""What this device can do at most: matrix products, attention, memory, and starting a kernel.

::

    products    FLOP/s by dtype and number of rows, with many weights in turn as in a model: one
                that is still in a cache is multiplied up to four times as fast, which bounds
                weights that are unpacked on the way (cached_products)
    attention   FLOP/s of fused causal attention by dtype and new tokens
    triad       bytes/s of a = b + s * c by amount of data
    reading     bytes/s of weights by amount of them, multiplied with one row
    launch      seconds a kernel costs in an eager transformers layer of negligible size

Predictions are held against these. They are kept by hardware fingerprint, so each kind of hardware
is measured once; ``task=ceilings`` measures it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Clock, Identity, Infeasible, Recorder, Task
from tasks import loading

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
ROWS = (1, 8, 64, 512, 1024)
SPANS = (1, 128, 1024)
_HEADS, _HEAD_DIM, _PAST = 8, 64, 512
# Each point: the fastest of some blocks of calls, because a ceiling is what can be reached. Where
# one call takes too long the point is left out, and so are larger ones.
_BLOCKS, _BLOCK_S, _LONGEST_S = 5, 0.004, 0.4


@dataclass
class CeilingsConfig:
    """Options of ``task=ceilings``."""

    name: str = "ceilings"


@dataclass(frozen=True)
class _Scale:
    """Sizes of what is measured: widths that models have, and more weights than a cache holds."""

    width: int
    weights_bytes: int
    triad_bytes: tuple[int, ...]
    reading_bytes: tuple[int, ...]


_CPU = _Scale(
    768,
    1 << 26,
    tuple(3 << n for n in (15, 18, 21, 24, 26)),
    tuple(1 << n for n in (20, 23, 26, 28)),
)
_CUDA = _Scale(
    8192, 1 << 29, tuple(3 << n for n in (20, 24, 28)), tuple(1 << n for n in (22, 26, 30))
)


def run(identity: Identity, recorder: Recorder) -> None:
    """Measure all ceilings; the whole of them is the fact ``ceilings``."""
    import torch

    kind = identity["device"]["kind"]
    if kind == "cuda" and not torch.cuda.is_available():
        raise Infeasible("torch sees no CUDA device here", where="device=cuda")
    torch.set_num_threads(loading.thread_count(identity["device"]))
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    scale = _CUDA if kind == "cuda" else _CPU
    timer = _Timer(recorder.clock)
    with torch.inference_mode(), recorder.phase("products"):
        products = {name: _products(name, device, scale, timer) for name in DTYPES}
        cached = {
            name: _products(name, device, replace(scale, weights_bytes=0), timer) for name in DTYPES
        }
        attention = {name: _attention(name, device, timer) for name in DTYPES}
        integers = _integer_products(device, scale, timer)
    with torch.inference_mode(), recorder.phase("memory"):
        triad = [(size, _triad(size, device, timer)) for size in scale.triad_bytes]
        reading = [(size, _reading(size, device, timer)) for size in scale.reading_bytes]
    with torch.inference_mode(), recorder.phase("launch"):
        launch_s = _launch_s(device, timer)
    if integers:
        products["int8"] = integers
    for name, points in products.items():
        best = max((value for _, value in points), default=None)
        metric = f"gemm_flop_per_s.{name}"
        if best is None:
            recorder.absent(metric, "flop/s", "one product takes too long to be measured")
        else:
            recorder.value(metric, "flop/s", best)
    recorder.value("triad_bytes_per_s", "bytes/s", triad[-1][1])
    recorder.value("read_bytes_per_s", "bytes/s", reading[-1][1])
    recorder.value("launch_s", "s", launch_s)
    recorder.value("spread", "1", timer.spread)
    from orchestrator.measure.arithmetic.hardware import MEASURED_VERSION

    recorder.fact(
        "ceilings",
        {
            "version": MEASURED_VERSION,
            "name": "this",
            "products": {name: points for name, points in products.items() if points},
            "cached_products": {name: points for name, points in cached.items() if points},
            "attention": {name: points for name, points in attention.items() if points},
            "triad": triad,
            "reading": reading,
            "launch_s": launch_s,
            "memory_bytes": _memory_bytes(device),
            "spread": timer.spread,
        },
    )


class _Timer:
    """The least time of a call, in blocks long enough for the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._spreads: list[float] = []

    @property
    def spread(self) -> float:
        """How much slower a typical block was than the best; a quarter of the points is worse."""
        return quantiles(self._spreads, n=4)[2]

    def seconds(self, call: Callable[[], Any]) -> float | None:
        """Seconds of one call; None where it takes too long to be measured."""
        call()
        once_s = self._block(call, 1)
        if once_s > _LONGEST_S:
            return None
        count = max(1, round(_BLOCK_S / max(once_s, 1e-7)))
        times = [self._block(call, count) for _ in range(_BLOCKS)]
        self._spreads.append(median(times) / min(times))
        return min(times)

    def _block(self, call: Callable[[], Any], count: int) -> float:
        self._clock.sync()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        self._clock.sync()
        return (time.perf_counter() - begin) / count


Points = list[tuple[int, float]]


def _products(name: str, device: torch.device, scale: _Scale, timer: _Timer) -> Points:
    import torch
    from torch.nn.functional import linear

    dtype = getattr(torch, name)
    count = max(1, scale.weights_bytes // (scale.width**2 * dtype.itemsize))
    weights = [torch.rand(scale.width, scale.width, device=device).to(dtype) for _ in range(count)]
    turn = cycle(weights)
    points: Points = []
    for rows in ROWS:
        x = torch.randn(rows, scale.width, device=device).to(dtype)
        seconds = timer.seconds(lambda x=x: linear(x, next(turn)))  # type: ignore[misc]
        if seconds is None:
            break
        points.append((rows, 2 * rows * scale.width**2 / seconds))
    return points


def _integer_products(device: torch.device, scale: _Scale, timer: _Timer) -> Points:
    """Products of 8-bit integers, where torch has them for this device."""
    import torch

    weight = torch.randint(-127, 127, (scale.width, scale.width), dtype=torch.int8, device=device)
    points: Points = []
    for rows in ROWS:
        x = torch.randint(-127, 127, (rows, scale.width), dtype=torch.int8, device=device)
        try:
            seconds = timer.seconds(partial(torch._int_mm, x, weight))
        except RuntimeError:
            continue  # CUDA wants more rows
        if seconds is None:
            break
        points.append((rows, 2 * rows * scale.width**2 / seconds))
    return points


def _attention(name: str, device: torch.device, timer: _Timer) -> Points:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    dtype = getattr(torch, name)

    def heads(tokens: int) -> torch.Tensor:
        return torch.randn(1, _HEADS, tokens, _HEAD_DIM, device=device).to(dtype)

    points: Points = []
    for span in SPANS:
        # A single token looks back; more of them are a prefill.
        past = _PAST if span == 1 else 0
        query, key, value = heads(span), heads(past + span), heads(past + span)
        attend = partial(scaled_dot_product_attention, query, key, value, is_causal=span > 1)
        seconds = timer.seconds(attend)
        if seconds is None:
            break
        pairs = past * span + span * (span + 1) // 2
        points.append((span, 4 * pairs * _HEADS * _HEAD_DIM / seconds))
    return points


def _triad(size: int, device: torch.device, timer: _Timer) -> float:
    import torch

    count = size // 12
    a, b, c = (torch.rand(count, device=device) for _ in range(3))
    seconds = timer.seconds(lambda: torch.add(b, c, alpha=1.5, out=a))
    assert seconds is not None
    return 12 * count / seconds


def _reading(size: int, device: torch.device, timer: _Timer) -> float:
    import torch
    from torch.nn.functional import linear

    width = 1024
    rows = min(size // (4 * width), 4 * width if device.type == "cuda" else width)
    count = max(1, size // (4 * rows * width))
    turn = cycle([torch.rand(rows, width, device=device) for _ in range(count)])
    vector = torch.rand(1, width, device=device)
    seconds = timer.seconds(lambda: linear(vector, next(turn)))
    assert seconds is not None
    return 4 * rows * width / seconds


def _launch_s(device: torch.device, timer: _Timer) -> float:
    """What a kernel costs: a decode step of tiny layers, by the launches that arithmetic counts."""
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
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def step() -> None:
        model(token, past_key_values=DynamicCache(config=config), logits_to_keep=1)

    seconds = timer.seconds(step)
    assert seconds is not None
    architecture = Architecture.from_config(config.to_dict())
    weights, cache = WeightFormat("none", "float32"), CacheFormat("float32")
    operations = decode(architecture, 1, 0, weights, cache, EAGER)
    return seconds / sum(operation.count * operation.launches for operation in operations)


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
