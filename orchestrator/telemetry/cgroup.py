"""Finds the accounting files of the control group this process is in, version 1 or 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Cgroup:
    """Files to read, by what they tell, and why the others are missing.

    Attributes
    ----------
    files : dict of str to Path
        ``cpu`` (``cpu.stat``), ``memory`` (now), ``memory_peak`` (since the group was made).
    throttled_key, throttled_unit_s : str, float
        Line of ``cpu.stat`` with the time spent throttled, and its unit in seconds.
    """

    files: dict[str, Path] = field(default_factory=dict)
    throttled_key: str = ""
    throttled_unit_s: float = 1.0
    absent: dict[str, str] = field(default_factory=dict)


def find_cgroup(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Cgroup:
    """The control group of the current process.

    Inside a container the path in ``/proc/self/cgroup`` may name the host's tree, of which only
    this container's part is mounted: then the mount's root is our group.
    """
    mount = sys / "fs" / "cgroup"
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError as error:
        return _incomplete({}, f"/proc/self/cgroup: {error.strerror}", "", 1.0)
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path.lstrip("/")
    if "memory" in paths or "cpu" in paths:
        memory = _directory(mount / "memory", paths.get("memory", ""))
        cpu = _directory(mount / "cpu", paths.get("cpu", ""))
        wanted = {
            "cpu": cpu / "cpu.stat",
            "memory": memory / "memory.usage_in_bytes",
            "memory_peak": memory / "memory.max_usage_in_bytes",
        }
        return _incomplete(wanted, "not in this host's cgroups (v1)", "throttled_time", 1e-9)
    if "" in paths:
        group = _directory(mount, paths[""])
        wanted = {
            "cpu": group / "cpu.stat",
            "memory": group / "memory.current",
            "memory_peak": group / "memory.peak",
        }
        return _incomplete(wanted, "not in this host's cgroup (v2)", "throttled_usec", 1e-6)
    return _incomplete({}, "this host has no cgroups", "", 1.0)


def _directory(mount: Path, path: str) -> Path:
    return mount / path if (mount / path).is_dir() else mount


_METRICS = {
    "cpu": "cgroup_throttled_s",
    "memory": "cgroup_memory_bytes",
    "memory_peak": "cgroup_memory_peak_bytes",
}


def _incomplete(wanted: dict[str, Path], reason: str, key: str, unit_s: float) -> Cgroup:
    files = {name: path for name, path in wanted.items() if path.is_file()}
    absent = {metric: reason for name, metric in _METRICS.items() if name not in files}
    return Cgroup(files, key, unit_s, absent)
