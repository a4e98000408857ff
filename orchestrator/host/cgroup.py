"""This process's control groups, version 1, 2 or both: their limits and what they count.

A limit binds everything beneath it, and jobs of Slurm, systemd or Kubernetes lie several levels
deep: the one in force is the smallest from the process's own group up to the root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# Version 1 writes a number near 2**63 for "no limit".
_NO_LIMIT = 1 << 60
# Limit and use of memory; in ``memory.stat``, what of it are files that nobody uses just now.
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    2: ("memory.max", "memory.current", "inactive_file "),
}


@dataclass(frozen=True)
class Group:
    """One controller's group of this process.

    Attributes
    ----------
    path : Path
        Its directory.
    top : Path
        The highest directory of its tree that can be seen here.
    version : int
        1 or 2, which differ in the names of files.
    """

    path: Path
    top: Path
    version: int

    def levels(self) -> Iterator[Path]:
        """The group's directory and all above it."""
        yield self.path
        above = self.path
        while above != self.top:
            above = above.parent
            yield above


def group_of(controller: str, root: Path = ROOT) -> Group | None:
    """The group that ``controller`` (``cpu``, ``memory``) keeps this process in, None without one.

    Inside a container ``/proc/self/cgroup`` may name the host's tree, of which only this
    container's part is mounted: then the mount's root is our group.
    """
    mount = root / "sys/fs/cgroup"
    unified = None
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            # Beside groups of version 1 the tree of version 2 stands in a directory of its own.
            hybrid = mount / "unified"
            unified = _group(hybrid if hybrid.is_dir() else mount, path, 2)
        elif controller in controllers.split(","):
            of_one = mount / controller
            return _group(of_one if of_one.is_dir() else mount / controllers, path, 1)
    return unified


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Memory that this process's groups allow, in bytes; None without a limit."""
    return min((limit for limit, _ in _memory_limits(root)), default=None)


def memory_left_bytes(root: Path = ROOT) -> int | None:
    """What these groups leave; files in the page cache give way. None without a limit."""
    return min((max(0, limit - used) for limit, used in _memory_limits(root)), default=None)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each group that has one, and what of it is in use."""
    group = group_of("memory", root)
    if group is None:
        return
    limit, usage, files = _MEMORY_FILES[group.version]
    for level in group.levels():
        found = _numbers(level / limit)
        if not found or found[0] >= _NO_LIMIT:
            continue
        used = sum(_numbers(level / usage))
        with contextlib.suppress(OSError):
            lines = (level / "memory.stat").read_text().splitlines()
            used -= sum(int(line.split()[1]) for line in lines if line.startswith(files))
        yield found[0], used


def cpu_limit(root: Path = ROOT) -> float | None:
    """CPUs' worth of time that this process's groups allow; None without a limit."""
    group = group_of("cpu", root)
    if group is None:
        return None
    limits = []
    for level in group.levels():
        if group.version == 2:
            quota = _numbers(level / "cpu.max")
        else:
            quota = _numbers(level / "cpu.cfs_quota_us") + _numbers(level / "cpu.cfs_period_us")
        # "max 100000" has one number, version 1 writes -1 for "no limit".
        if len(quota) == 2 and quota[0] > 0:
            limits.append(quota[0] / quota[1])
    return min(limits, default=None)


def oom_kills(root: Path = ROOT) -> int | None:
    """How often the kernel's OOM killer has struck in this process's group, else on this machine.

    Two readings around a SIGKILL tell whether it was the kernel's. None where nothing counts it.
    """
    group = group_of("memory", root)
    counters = [root / "proc/vmstat"]
    if group is not None:
        name = "memory.events" if group.version == 2 else "memory.oom_control"
        counters.insert(0, group.path / name)
    for counter in counters:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in counter.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return None


def _group(mount: Path, path: str, version: int) -> Group:
    inside = mount / path.strip("/")
    seen = ".." not in inside.parts and inside.is_dir()
    return Group(inside if seen else mount, mount, version)


def _numbers(path: Path) -> list[int]:
    """Whole numbers in a small file of the kernel's; words among them (``max``) are left out."""
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return [int(word) for word in words if word.lstrip("-").isdigit()]
