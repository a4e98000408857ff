"""Devices by the figures of their data sheets (``conf/hardware``).

Every figure is dense (no structured sparsity) and has beside it in the file the document that says
it, ``[n]`` of ``sources``, and the formula where it is derived; one that is not known is null, and
what would need it has no prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import orchestrator
from orchestrator.errors import ConfigError, nearest, one_line
from orchestrator.model.operations import Operation

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

    def flops_per_s(self, dtype: str, rows: float = math.inf, *, packed: bool = False) -> float:
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

    def timed_s(self, operation: Operation) -> float | None:
        """None: a data sheet times nothing, it bounds."""
        return None

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
        fix = nearest(name, known_hardware())
        raise ConfigError(f"no hardware {name!r}", where="task.hardware", fix=fix)
    try:
        tree = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {one_line(error)}", where=str(file)) from error
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


def _positive(value: Any, name: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigError(
            f"{key}={value!r} is not a positive number", where=f"hardware/{name}.yaml"
        )
    return float(value)
