"""The accounting files of the control groups this process is in, version 1 or 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.host.cgroup import ROOT, group_of


@dataclass(frozen=True)
class Cgroup:
    """Files to read, by what they tell, and why the others are missing.

    Attributes
    ----------
    files : dict of str to Path
        ``cpu`` (``cpu.stat``), ``memory`` (now), ``memory_peak`` (since the group was made).
    throttled_key, throttled_unit_s : str, float
        Line of ``cpu.stat`` with the time spent throttled, and its unit in seconds.
    absent : dict of str to str
        Why a metric cannot be read, by its name.
    """

    files: dict[str, Path] = field(default_factory=dict)
    throttled_key: str = ""
    throttled_unit_s: float = 1.0
    absent: dict[str, str] = field(default_factory=dict)


# What is read, its metric, its controller and its file's name in version 1 and in version 2.
_FILES = {
    "cpu": ("cgroup_throttled_s", "cpu", "cpu.stat", "cpu.stat"),
    "memory": ("cgroup_memory_bytes", "memory", "memory.usage_in_bytes", "memory.current"),
    "memory_peak": (
        "cgroup_memory_peak_bytes", "memory", "memory.max_usage_in_bytes", "memory.peak",
    ),
}  # fmt: skip
_THROTTLED = {1: ("throttled_time", 1e-9), 2: ("throttled_usec", 1e-6)}


def find_cgroup(root: Path = ROOT) -> Cgroup:
    """The files of the current process's groups."""
    files, absent = {}, {}
    for name, (metric, controller, *names) in _FILES.items():
        group = group_of(controller, root)
        if group is None:
            absent[metric] = f"this host has no {controller} cgroups"
        elif (path := group.path / names[group.version - 1]).is_file():
            files[name] = path
        else:
            absent[metric] = f"not in this host's cgroups (v{group.version})"
    cpu = group_of("cpu", root)
    return Cgroup(files, *_THROTTLED.get(cpu.version if cpu else 0, ("", 1.0)), absent)
