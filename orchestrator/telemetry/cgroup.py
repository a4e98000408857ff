"""The accounting files of the control groups this process is in, version 1 or 2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.host.cgroup import ROOT, Group, group_of
from orchestrator.telemetry.procfs import numbers


@dataclass(frozen=True)
class Cgroup:
    """Files to read, by what they tell, and why the others are missing.

    Attributes
    ----------
    files : dict of str to Path
        ``memory`` (now), ``memory_peak`` (since the group was made).
    throttled : tuple of Path
        Files whose times add up to how long the group was throttled. None of them, and no reason
        in ``absent``: no group of this process can have a quota.
    throttled_key, throttled_unit_s : str, float
        Their line with that time, which is summed over the cores, and its unit in seconds.
    absent : dict of str to str
        Why a metric cannot be read, by its name.
    """

    files: dict[str, Path] = field(default_factory=dict)
    throttled: tuple[Path, ...] = ()
    throttled_key: str = ""
    throttled_unit_s: float = 1.0
    absent: dict[str, str] = field(default_factory=dict)


# What is read, its metric, and its file's name in version 1 and in version 2.
_FILES = {
    "memory": ("cgroup_memory_bytes", "memory.usage_in_bytes", "memory.current"),
    "memory_peak": ("cgroup_memory_peak_bytes", "memory.max_usage_in_bytes", "memory.peak"),
}
_THROTTLED = {1: ("throttled_time", 1e-9), 2: ("throttled_usec", 1e-6)}


def find_cgroup(root: Path = ROOT) -> Cgroup:
    """The files of the current process's groups."""
    files, absent = {}, {}
    memory = group_of("memory", root)
    for name, (metric, *names) in _FILES.items():
        if memory is None:
            absent[metric] = "this host has no memory cgroups"
        elif (path := memory.path / names[memory.version - 1]).is_file():
            files[name] = path
        else:
            absent[metric] = f"not in this host's cgroups (v{memory.version})"
    cpu = group_of("cpu", root)
    if cpu is None:
        absent["cgroup_throttled_s"] = "this host has no cpu cgroups"
        return Cgroup(files, absent=absent)
    throttled = _throttled(cpu)
    if throttled is None:
        absent["cgroup_throttled_s"] = "the control groups seen here do not tell it"
    return Cgroup(files, throttled or (), *_THROTTLED[cpu.version], absent)


def _throttled(group: Group) -> tuple[Path, ...] | None:
    """None where a quota may be in force that no file here tells of.

    A group's ``cpu.stat`` knows of its own quota only, and a job's quota stands levels above its
    steps. Since Linux 6.6 ``cpu.stat.local`` has what all quotas did to this one group, also those
    above what a container sees.
    """
    key = _THROTTLED[group.version][0]
    local = group.path / "cpu.stat.local"
    if _tells(local, key):
        return (local,)
    found = tuple(path for level in group.levels() if _tells(path := level / "cpu.stat", key))
    # Of version 2 a level without the controller has no quota, and the root alone has no events.
    whole = (group.top / "cpu.stat").is_file() and not (group.top / "cgroup.events").exists()
    return found if found or whole else None


def _tells(path: Path, key: str) -> bool:
    try:
        return key in numbers(path.read_bytes())
    except OSError:
        return False
