"""A device as it was measured: how long each kind of operation took there, by its size.

::

    product     one matrix product        by elements of the weight and rows
    passes      one pass over activations by bytes it moves, with the program around it
    attention   fused attention           by new tokens, and query heads that share a key;
                of one token              by FLOPs, and query heads that share a key
    append      the growth of a cache     by bytes read and written
    loss        cross-entropy             by logits
    optimizer   AdamW                     by elements of one tensor

Each is held apart by number format and by *mode*, because the same operation costs another amount
in each: ``inference`` reuses its memory, ``forward`` keeps its results for the way back, and
``backward`` computes gradients. Products of an inference are measured with weights ``near`` (in a
last-level cache) and ``far`` (in memory): how much a model reads in turn decides between them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.model.architecture import (
    ATTENTION,
    DEQUANTIZE,
    ELEMENTWISE,
    EMBEDDING,
    LOSS,
    OPTIMIZER,
)
from orchestrator.model.operations import INFERENCE, Operation

# (size, second size, seconds), see the module; the second is 1 where there is only one.
Timing = tuple[float, float, float]
Points = tuple[tuple[float, float], ...]
MEASURED_VERSION = 8
STEADY_SPREAD = 1.3

# What ``task=ceilings`` can measure: operations of an inference and of a training step, by dtype.
OPERATIONS = (
    "inference.float32",
    "inference.bfloat16",
    "inference.float16",
    "training.float32",
    "training.bfloat16",
    "int8",
)

# Operator classes that write about as much as they read.
_WRITING = (ELEMENTWISE, EMBEDDING, DEQUANTIZE, OPTIMIZER, LOSS)
NEAR, FAR = "near", "far"


@dataclass(frozen=True)
class Measured:
    """Ceilings of a device that were measured on it.

    Between measured points the logarithm is interpolated. Beyond the largest an operation takes
    time in proportion to its size, below the smallest as long as that one.

    Attributes
    ----------
    timings : mapping of str to tuple of (size, second size, seconds)
        By ``kind.mode.dtype``. Attention of a prefill is in seconds per FLOP.
    triad : tuple of (bytes, bytes_per_s)
        Two streams read and one written into new memory, over so much data in all.
    reading : tuple of (bytes, bytes_per_s)
        So much weights read in turn, by products with one row.
    launch_s : float
        What the smallest of the passes takes: starting a kernel and the program around it, for an
        operation that is bounded and not timed. 0 where no passes were measured: not known.
    memory_bytes : int or None
    operations : frozenset of str
        Those of :data:`OPERATIONS` that were asked for, also where they took too long to be timed.
    spread : float
        How much slower the median measurement of a point was than its best: near 1 on a machine
        that did nothing else.
    """

    name: str
    timings: Mapping[str, tuple[Timing, ...]]
    triad: Points
    reading: Points
    launch_s: float
    memory_bytes: int | None = None
    spread: float = 1.0
    operations: frozenset[str] = frozenset()
    _columns: dict[str, dict[float, Points]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def is_steady(self) -> bool:
        """Whether the machine was quiet enough for this to be called a ceiling."""
        return self.spread <= STEADY_SPREAD

    @property
    def disturbance(self) -> str | None:
        """Why no time is predicted from this; None where the machine was quiet enough."""
        if self.is_steady:
            return None
        return (
            "this machine was too busy when its ceilings were measured: a typical measurement was "
            f"{self.spread:.1f} times its best"
        )

    def merged(self, newer: Measured) -> Measured:
        """What ``newer`` has, and what only this one has."""
        return replace(
            newer,
            timings={**self.timings, **newer.timings},
            launch_s=min(filter(None, (self.launch_s, newer.launch_s)), default=0.0),
            spread=max(self.spread, newer.spread),
            operations=self.operations | newer.operations,
        )

    def timed_s(self, operation: Operation) -> float | None:
        """Seconds of one such operation by itself; None where nothing like it was measured."""
        o = operation
        if o.packed or o.part == DEQUANTIZE or not o.groups:
            return None
        if o.part == OPTIMIZER:
            return self._seconds("optimizer", o, o.elements)
        if o.part == LOSS:
            return self._seconds("loss", o, o.elements)
        if o.part == ATTENTION and o.flops:
            return self._attention_s(o)
        if o.part == ATTENTION:
            once_s = self._seconds("append", o, o.bytes / o.launches)
            return None if once_s is None else once_s * o.launches
        if o.rows and o.elements:
            once_s = self._product_s(o)
            return None if once_s is None else once_s * o.launches
        if o.bytes:
            once_s = self._seconds("passes", o, o.bytes / o.launches)
            return None if once_s is None else once_s * o.launches
        return None

    def flops_per_s(self, dtype: str, rows: float = math.inf, *, packed: bool = False) -> float:
        """What products of so many rows reached; with ``packed`` weights, computing alone.

        Raises
        ------
        ConfigError
            If ``dtype`` could not be measured.
        """
        place = NEAR if packed else FAR
        columns = self._columns_of(f"product.{place}.{dtype}")
        if not columns:
            known = sorted(
                n.rpartition(".")[2] for n in self.timings if n.startswith("product.far")
            )
            raise ConfigError(
                f"no product in {dtype} could be measured",
                where=f"hardware {self.name}",
                fix=f"It has {', '.join(known)}; task=ceilings measures all of this machine's",
            )
        # Computing is what a large weight shows.
        elements = max(columns)
        rates = tuple((at, 2 * at * elements / seconds) for at, seconds in columns[elements])
        return _interpolated(rates, rows)

    def bytes_per_s(self, working_bytes: float = math.inf, part: str = "") -> float:
        """Bandwidth over so much data: reading for products, else of the triad."""
        points = self.triad if part in _WRITING else self.reading
        return _interpolated(points, working_bytes)

    def peak(self, dtype: str) -> float | None:
        """The best that products in ``dtype`` reached, None where they were not measured."""
        found = [
            2 * elements * rows / seconds
            for place in (NEAR, FAR)
            for elements, rows, seconds in self.timings.get(f"product.{place}.{dtype}", ())
        ]
        return max(found, default=None)

    def _attention_s(self, o: Operation) -> float | None:
        if o.rows > 1:
            per_flop = self._at(f"attention.{o.mode}.{o.dtype}", o.rows, o.groups, scales=False)
            return None if per_flop is None else per_flop * o.flops
        return self._seconds("attention_step", o, o.flops, o.groups)

    def _product_s(self, o: Operation) -> float | None:
        if o.mode != INFERENCE:
            return self._seconds("product", o, o.elements, o.rows)
        near = self._at(f"product.{NEAR}.{o.dtype}", o.elements, o.rows)
        far = self._at(f"product.{FAR}.{o.dtype}", o.elements, o.rows)
        if near is None or far is None:
            return None
        return near + self._share_far(o.working_bytes) * max(far - near, 0.0)

    def _share_far(self, working_bytes: float) -> float:
        """How much of what is read in turn comes from memory and not from a cache, 0 to 1."""
        pace = [(at, 1 / rate) for at, rate in self.reading]
        (_, least), (_, most) = pace[0], pace[-1]
        if most <= least:
            return 0.0
        share = (_interpolated(pace, working_bytes) - least) / (most - least)
        return min(1.0, max(0.0, share))

    def _seconds(self, kind: str, o: Operation, x: float, y: float = 1.0) -> float | None:
        return self._at(f"{kind}.{o.mode}.{o.dtype}", x, y)

    def _at(self, name: str, x: float, y: float, *, scales: bool = True) -> float | None:
        """A table at a place: along its second size in each column, then along the first."""
        columns = self._columns_of(name)
        if not columns:
            return None
        across = tuple((at, _along(points, y, scales)) for at, points in columns.items())
        return _along(across, x, scales)

    def _columns_of(self, name: str) -> dict[float, Points]:
        if name not in self._columns:
            columns: dict[float, list[tuple[float, float]]] = {}
            for x, y, seconds in sorted(self.timings.get(name, ())):
                columns.setdefault(x, []).append((y, seconds))
            self._columns[name] = {x: tuple(points) for x, points in columns.items()}
        return self._columns[name]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "version": MEASURED_VERSION,
            "name": self.name,
            "timings": {name: [list(p) for p in found] for name, found in self.timings.items()},
            "triad": [list(point) for point in self.triad],
            "reading": [list(point) for point in self.reading],
            "launch_s": self.launch_s,
            "memory_bytes": self.memory_bytes,
            "spread": self.spread,
            "operations": sorted(self.operations),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Measured:
        """Inverse of :meth:`to_json`; raises ``ValueError`` or ``KeyError`` on anything else."""
        if tree["version"] != MEASURED_VERSION:
            raise ValueError("ceilings of another version")
        triad, reading = _points(tree["triad"]), _points(tree["reading"])
        if not triad or not reading:
            raise ValueError("no bandwidth")
        timings = {
            str(name): tuple(sorted((float(x), float(y), float(s)) for x, y, s in found))
            for name, found in tree["timings"].items()
        }
        if any(value <= 0 for found in timings.values() for point in found for value in point):
            raise ValueError("a measured point is not positive")
        memory = tree["memory_bytes"]
        return cls(
            name=str(tree["name"]),
            timings=timings,
            triad=triad,
            reading=reading,
            launch_s=float(tree["launch_s"]),
            memory_bytes=None if memory is None else int(memory),
            spread=float(tree["spread"]),
            operations=frozenset(map(str, tree["operations"])),
        )


def _points(values: Sequence[Sequence[float]]) -> Points:
    points = tuple(sorted((float(at), float(value)) for at, value in values))
    if any(at <= 0 or value <= 0 for at, value in points):
        raise ValueError("a measured point is not positive")
    return points


def _along(points: Sequence[tuple[float, float]], at: float, scales: bool) -> float:
    """Interpolated; beyond the last point in proportion, where ``scales``."""
    last, value = points[-1]
    if scales and at > last:
        return value * at / last
    return _interpolated(points, at)


def _interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    place = bisect.bisect_left([x for x, _ in points], at)
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    share = math.log(at / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) + share * math.log(y1 / y0))
