"""Devices by their figures: from a data sheet (``conf/hardware``), or measured here.

Every figure is dense (no structured sparsity) and has a source beside it in the file; one that its
maker does not publish is null, and what would need it has no prediction.
"""

from __future__ import annotations

import bisect
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.errors import ConfigError
from orchestrator.measure.arithmetic.architecture import (
    ATTENTION,
    DEQUANTIZE,
    ELEMENTWISE,
    EMBEDDING,
    LOSS,
    OPTIMIZER,
)

Points = tuple[tuple[float, float], ...]
MEASURED_VERSION = 4
STEADY_SPREAD = 1.3

# Operator classes that write about as much as they read.
_WRITING = (ELEMENTWISE, EMBEDDING, DEQUANTIZE, OPTIMIZER, LOSS)

# Number formats a peak can be given for.
PEAK_DTYPES = ("float32", "tf32", "float16", "bfloat16", "float8", "int8", "float4", "int4")


@dataclass(frozen=True)
class Datasheet:
    """A device as its maker describes it.

    Attributes
    ----------
    name, title : str
        File name and what it is in words.
    memory_bytes : int
        As the driver reports it.
    bandwidth_bytes_per_s : float
        Of the device's memory.
    peaks : mapping of str to float or None
        Dense operations each second by number format; None where unknown or not supported.
    kernel_launch_s : float or None
        Cost of starting a kernel; None is counted as nothing.
    nvml_names : tuple of str
        What NVML calls it.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    peaks: Mapping[str, float | None] = field(default_factory=dict)
    kernel_launch_s: float | None = None
    nvml_names: tuple[str, ...] = ()

    @property
    def launch_s(self) -> float:
        """Cost of starting a kernel, nothing where it is not known."""
        return self.kernel_launch_s or 0.0

    def flops_per_s(
        self, dtype: str, rows: float = math.inf, part: str = "", *, packed: bool = False
    ) -> float:
        """Peak in ``dtype``; the same for any number of rows.

        Raises
        ------
        ConfigError
            If the device has none, or it is not known.
        """
        peak = self.peaks.get(dtype)
        if peak is None:
            known = ", ".join(kind for kind, value in self.peaks.items() if value)
            raise ConfigError(
                f"no peak for {dtype} is known",
                where=f"hardware {self.name}",
                fix=f"It has {known}",
            )
        return peak

    def bytes_per_s(self, working_bytes: float = math.inf, part: str = "") -> float:
        """Memory bandwidth; the same for any amount of data."""
        return self.bandwidth_bytes_per_s

    @classmethod
    def from_mapping(cls, name: str, tree: Mapping[str, Any]) -> Datasheet:
        """Read a file of ``conf/hardware``.

        Raises
        ------
        ConfigError
            Naming the field that is missing, unknown or no positive number.
        """
        required = ("title", "memory_bytes", "bandwidth_bytes_per_s", "peaks")
        for key in tree:
            if key not in (*required, "kernel_launch_s", "nvml_names", "sources"):
                raise ConfigError(f"unknown field {key}", where=f"hardware/{name}.yaml")
        for key in required:
            if tree.get(key) is None:
                raise ConfigError(f"lacks {key}", where=f"hardware/{name}.yaml")
        peaks = tree["peaks"]
        if not isinstance(peaks, Mapping):
            raise ConfigError("peaks is not a mapping", where=f"hardware/{name}.yaml")
        for kind in peaks:
            if kind not in PEAK_DTYPES:
                raise ConfigError(
                    f"unknown number format {kind}",
                    where=f"hardware/{name}.yaml",
                    fix=f"Known: {', '.join(PEAK_DTYPES)}",
                )
        launch = tree.get("kernel_launch_s")
        return cls(
            name=name,
            title=str(tree["title"]),
            memory_bytes=int(_positive(tree["memory_bytes"], name, "memory_bytes")),
            bandwidth_bytes_per_s=_positive(
                tree["bandwidth_bytes_per_s"], name, "bandwidth_bytes_per_s"
            ),
            peaks={
                str(kind): None if value is None else _positive(value, name, f"peaks.{kind}")
                for kind, value in peaks.items()
            },
            kernel_launch_s=None if launch is None else _positive(launch, name, "kernel_launch_s"),
            nvml_names=tuple(map(str, tree.get("nvml_names") or ())),
        )


def hardware_directory() -> Path:
    """``conf/hardware``: packaged with the program, or beside it in a checkout."""
    package = Path(orchestrator.__file__).resolve().parent
    packaged = package / "conf" / "hardware"
    return packaged if packaged.is_dir() else package.parent / "conf" / "hardware"


def known_hardware() -> list[str]:
    """Names of the devices with a data sheet, sorted."""
    return sorted(file.stem for file in hardware_directory().glob("*.yaml"))


@lru_cache(maxsize=64)
def load_datasheet(name: str) -> Datasheet:
    """The device of that name, or of a file of a person's own.

    Parameters
    ----------
    name : str
        A name of ``conf/hardware``, or the path of a YAML file like those.

    Raises
    ------
    ConfigError
        If there is none, or a figure of it is wrong.
    """
    import yaml

    own = name.endswith((".yaml", ".yml"))
    file = Path(name).expanduser() if own else hardware_directory() / f"{name}.yaml"
    if not file.is_file() or (not own and Path(name).name != name):
        near = difflib.get_close_matches(name, known_hardware(), n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(near)}" if near else f"Known: {', '.join(known_hardware())}"
        raise ConfigError(f"no hardware {name!r}", where="task.hardware", fix=hint)
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot be read: {line}", where=str(file)) from error
    if not isinstance(tree, Mapping):
        raise ConfigError("is no mapping of figures", where=str(file))
    return Datasheet.from_mapping(file.stem, tree)


def datasheet_of(nvml_name: str) -> Datasheet | None:
    """The data sheet of a device by the name that NVML has for it; None where there is none."""
    for name in known_hardware():
        sheet = load_datasheet(name)
        if nvml_name in sheet.nvml_names:
            return sheet
    return None


@dataclass(frozen=True)
class Measured:
    """A device as it was measured: peaks by rows, bandwidth by amount of data.

    Between measured points the logarithm is interpolated, outside them the nearest point holds.

    Attributes
    ----------
    products : mapping of str to tuple of (rows, flops_per_s)
        Matrix products by dtype, rows ascending; of many weights in turn, none still in a cache.
    cached_products : mapping of str to tuple of (rows, flops_per_s)
        Of one small weight that stays in a cache: computing alone.
    attention : mapping of str to tuple of (rows, flops_per_s)
        Fused causal attention by dtype and new tokens.
    triad : tuple of (bytes, bytes_per_s)
        Two streams read and one written into new memory, over so much data in all.
    reading : tuple of (bytes, bytes_per_s)
        So much weights read in turn, by products with one row.
    launch_s : float
        What one kernel costs in an eager transformers layer of negligible size.
    memory_bytes : int or None
    spread : float
        How much slower the typical measurement of a point was than its best: near 1 on a machine
        that did nothing else.
    """

    name: str
    products: Mapping[str, Points]
    cached_products: Mapping[str, Points]
    attention: Mapping[str, Points]
    triad: Points
    reading: Points
    launch_s: float
    memory_bytes: int | None = None
    spread: float = 1.0

    @property
    def is_steady(self) -> bool:
        """Whether the machine was quiet enough for this to be called a ceiling."""
        return self.spread <= STEADY_SPREAD

    def merged(self, other: Measured) -> Measured:
        """The better of two measurements, point by point: a ceiling is what was ever reached."""
        return Measured(
            name=self.name,
            products=_best_of(self.products, other.products),
            cached_products=_best_of(self.cached_products, other.cached_products),
            attention=_best_of(self.attention, other.attention),
            triad=_best(self.triad, other.triad),
            reading=_best(self.reading, other.reading),
            launch_s=min(self.launch_s, other.launch_s),
            memory_bytes=self.memory_bytes,
            spread=min(self.spread, other.spread),
        )

    def flops_per_s(
        self, dtype: str, rows: float = math.inf, part: str = "", *, packed: bool = False
    ) -> float:
        """What products of so many rows reached; fused attention in its own ceiling.

        Raises
        ------
        ConfigError
            If ``dtype`` could not be measured.
        """
        points = (self.cached_products if packed else self.products).get(dtype)
        if part == ATTENTION:
            points = self.attention.get(dtype) or points
        if not points:
            raise ConfigError(
                f"no product in {dtype} could be measured",
                where=f"hardware {self.name}",
                fix=f"It has {', '.join(self.products)}",
            )
        return _interpolated(points, rows)

    def bytes_per_s(self, working_bytes: float = math.inf, part: str = "") -> float:
        """Bandwidth over so much data: reading for products, else of the triad."""
        points = self.triad if part in _WRITING else self.reading
        return _interpolated(points, working_bytes)

    def peak(self, dtype: str) -> float | None:
        """The best that products in ``dtype`` reached, None where they were not measured."""
        points = self.products.get(dtype)
        return max(value for _, value in points) if points else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "version": MEASURED_VERSION,
            "name": self.name,
            "products": _lists(self.products),
            "cached_products": _lists(self.cached_products),
            "attention": _lists(self.attention),
            "triad": [list(point) for point in self.triad],
            "reading": [list(point) for point in self.reading],
            "launch_s": self.launch_s,
            "memory_bytes": self.memory_bytes,
            "spread": self.spread,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Measured:
        """Inverse of :meth:`to_json`; raises ``ValueError`` or ``KeyError`` on anything else."""
        if tree["version"] != MEASURED_VERSION:
            raise ValueError("ceilings of another version")
        triad, reading = _points(tree["triad"]), _points(tree["reading"])
        if not triad or not reading:
            raise ValueError("no bandwidth")
        memory = tree["memory_bytes"]
        return cls(
            name=str(tree["name"]),
            products=_tuples(tree["products"]),
            cached_products=_tuples(tree["cached_products"]),
            attention=_tuples(tree["attention"]),
            triad=triad,
            reading=reading,
            launch_s=float(tree["launch_s"]),
            memory_bytes=None if memory is None else int(memory),
            spread=float(tree["spread"]),
        )


def _points(values: Sequence[Sequence[float]]) -> Points:
    points = tuple(sorted((float(at), float(value)) for at, value in values))
    if any(at <= 0 or value <= 0 for at, value in points):
        raise ValueError("a measured point is not positive")
    return points


def _lists(points: Mapping[str, Points]) -> dict[str, list[list[float]]]:
    return {name: [list(point) for point in found] for name, found in points.items()}


def _tuples(tree: Mapping[str, Any]) -> dict[str, Points]:
    return {str(name): _points(found) for name, found in tree.items()}


def _best(a: Points, b: Points) -> Points:
    best = dict(a)
    for at, value in b:
        best[at] = max(value, best.get(at, 0.0))
    return tuple(sorted(best.items()))


def _best_of(a: Mapping[str, Points], b: Mapping[str, Points]) -> dict[str, Points]:
    return {name: _best(a.get(name, ()), b.get(name, ())) for name in {**a, **b}}


def _interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    place = bisect.bisect_left([x for x, _ in points], at)
    if place == 0:
        return points[0][1]
    if place == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    share = math.log(at / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) + share * math.log(y1 / y0))


def _positive(value: Any, name: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(
            f"{key}={value!r} is not a positive number", where=f"hardware/{name}.yaml"
        )
    return float(value)
