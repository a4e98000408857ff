"""What this device can do at most: matrix products, attention, memory, and starting a kernel.

::

    products    FLOP/s by dtype and number of rows, with many weights in turn as in a model: one
                that is still in a cache is multiplied up to four times as fast, which bounds
                weights that are unpacked on the way (cached_products)
    attention   FLOP/s of fused causal attention by dtype and new tokens
    triad       bytes/s of a = b + s * c into new memory by amount of data
    reading     bytes/s of weights by amount of them, multiplied with one row
    launch      kernels started a second in an eager transformers layer of negligible size

All of it in several rounds, the best of which counts: what disturbs one round is not there in the
next. How much better it was than the typical round (``spread``) says how quiet the machine was.
Predictions are held against these ceilings; they are kept by hardware fingerprint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from orchestrator.measure import Clock, Identity, Infeasible, Recorder, Task
from orchestrator.measure.arithmetic.hardware import MEASURED_VERSION, STEADY_SPREAD
from tasks import loading

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
ROWS = (1, 8, 64, 512, 1024)
SPANS = (1, 128, 1024)
_HEADS, _HEAD_DIM, _PAST = 8, 64, 512
# A point of a round is the faster of some blocks of calls. Where one call takes too long the point
# is left out, and so are larger ones.
_BLOCKS, _BLOCK_S, _LONGEST_S = 2, 0.003, 0.4
# More rounds where the machine is busy: what disturbs may pass.
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 7

# Kind, dtype and size of a point, and its rate: more is better.
Round = dict[tuple[str, str, int], float]


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
    rounds: list[Round] = []
    with torch.inference_mode():
        launch = _launcher(device)
        while len(rounds) < _MOST_ROUNDS:
            with recorder.phase("round"):
                rounds.append(_round(device, scale, timer, launch))
            if len(rounds) >= _LEAST_ROUNDS and combine(rounds)[1] <= STEADY_SPREAD:
                break
    best, spread = combine(rounds)
    for name in (*DTYPES, "int8"):
        points = _series(best, "products", name)
        metric = f"gemm_flop_per_s.{name}"
        if points:
            recorder.value(metric, "flop/s", max(rate for _, rate in points))
        else:
            recorder.absent(metric, "flop/s", "torch has none here, or it takes too long")
    recorder.value("triad_bytes_per_s", "bytes/s", _series(best, "triad")[-1][1])
    recorder.value("read_bytes_per_s", "bytes/s", _series(best, "reading")[-1][1])
    recorder.value("launch_s", "s", 1 / best["launch", "", 0])
    recorder.value("spread", "1", spread)
    recorder.fact("ceilings", _fact(best, spread, _memory_bytes(device)))


def combine(rounds: Sequence[Round]) -> tuple[Round, float]:
    """The best of every point, and the spread: how much better it is than the median round.

    A quarter of the points has a larger spread.
    """
    best: Round = {}
    spreads = []
    for key in rounds[0]:
        found = [each[key] for each in rounds if key in each]
        best[key] = max(found)
        spreads.append(max(found) / median(found))
    return best, quantiles(spreads, n=4)[2]


class _Timer:
    """The least time of a call, in blocks long enough for the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def seconds(self, call: Callable[[], Any]) -> float | None:
        """Seconds of one call; None where it takes too long to be measured."""
        call()
        once_s = self._block(call, 1)
        if once_s > _LONGEST_S:
            return None
        count = max(1, round(_BLOCK_S / max(once_s, 1e-7)))
        return min(self._block(call, count) for _ in range(_BLOCKS))

    def _block(self, call: Callable[[], Any], count: int) -> float:
        self._clock.sync()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        self._clock.sync()
        return (time.perf_counter() - begin) / count


def _round(
    device: torch.device, scale: _Scale, timer: _Timer, launch: tuple[Callable[[], Any], int]
) -> Round:
    found: Round = {}
    for name in DTYPES:
        for rows, rate in _products(name, device, scale, timer):
            found["products", name, rows] = rate
        for rows, rate in _products(name, device, replace(scale, weights_bytes=0), timer):
            found["cached_products", name, rows] = rate
        for span, rate in _attention(name, device, timer):
            found["attention", name, span] = rate
    for rows, rate in _integer_products(device, scale, timer):
        found["products", "int8", rows] = rate
    for size in scale.triad_bytes:
        found["triad", "", size] = _triad(size, device, timer)
    for size in scale.reading_bytes:
        found["reading", "", size] = _reading(size, device, timer)
    step, launches = launch
    seconds = timer.seconds(step)
    assert seconds is not None
    found["launch", "", 0] = launches / seconds
    return found


Points = list[tuple[int, float]]


def _products(name: str, device: torch.device, scale: _Scale, timer: _Timer) -> Points:
    import torch
    from torch.nn.functional import linear

    dtype = getattr(torch, name)
    first = torch.rand(scale.width, scale.width, device=device).to(dtype)
    count = max(1, scale.weights_bytes // first.nbytes)
    turn = cycle([first, *(first.clone() for _ in range(count - 1))])
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
    b, c = torch.rand(count, device=device), torch.rand(count, device=device)
    # Into new memory, as eager code does: writing to what is in a cache already is faster.
    seconds = timer.seconds(lambda: torch.add(b, c, alpha=1.5))
    assert seconds is not None
    return 12 * count / seconds


def _reading(size: int, device: torch.device, timer: _Timer) -> float:
    import torch
    from torch.nn.functional import linear

    width = 1024
    rows = min(size // (4 * width), 4 * width if device.type == "cuda" else width)
    first = torch.rand(rows, width, device=device)
    count = max(1, size // first.nbytes)
    turn = cycle([first, *(first.clone() for _ in range(count - 1))])
    vector = torch.rand(1, width, device=device)
    seconds = timer.seconds(lambda: linear(vector, next(turn)))
    assert seconds is not None
    return float(first.nbytes / seconds)


def _launcher(device: torch.device) -> tuple[Callable[[], Any], int]:
    """A decode step of tiny layers, and the launches that arithmetic counts in it."""
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

    architecture = Architecture.from_config(config.to_dict())
    weights, cache = WeightFormat("none", "float32"), CacheFormat("float32")
    operations = decode(architecture, 1, 0, weights, cache, EAGER)
    return step, sum(operation.count * operation.launches for operation in operations)


def _fact(best: Round, spread: float, memory_bytes: int) -> dict[str, Any]:
    """As ``arithmetic.Measured`` reads it."""

    def by_dtype(kind: str) -> dict[str, Points]:
        names = dict.fromkeys(dtype for found, dtype, _ in best if found == kind)
        return {name: _series(best, kind, name) for name in names}

    return {
        "version": MEASURED_VERSION,
        "name": "this",
        "products": by_dtype("products"),
        "cached_products": by_dtype("cached_products"),
        "attention": by_dtype("attention"),
        "triad": _series(best, "triad"),
        "reading": _series(best, "reading"),
        "launch_s": 1 / best["launch", "", 0],
        "memory_bytes": memory_bytes,
        "spread": spread,
    }


def _series(best: Round, kind: str, dtype: str = "") -> Points:
    found = ((at, rate) for (a, b, at), rate in best.items() if (a, b) == (kind, dtype))
    return sorted(found)


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
